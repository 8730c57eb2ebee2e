"""The table that a person reads at the end; pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgkeeper.trial.figures import PATCHED, UNPATCHED

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pgkeeper.trial.figures import Report, Result, Spread

__all__ = ["amount", "report_text", "result_line"]

_HEADINGS = (
    ("MODE", "", False),
    ("SIDE", "", False),
    ("KILLS", "", True),
    ("SURVIVED", "", True),
    ("LOST", "", True),
    ("BYTES", "COMPARED", True),
    ("DIFFER", "", True),
    ("ROWS", "TWICE", True),
    ("ROWS", "MISSING", True),
    ("PAUSE, ms", "median / p99 / max", True),
    ("NO KILL, ms", "median / max", True),
    ("FIRST ANSWER, ms", "median / max", True),
    ("DOWN, ms", "median / max", True),
)


def report_text(report: Report) -> str:
    """The table, what ended sessions, and the verdict."""
    blocks = (_table(report.results), _remarks(report.results), _verdict(report))
    return "\n\n".join(block for block in blocks if block)


def result_line(result: Result) -> str:
    """One result, for somebody who waits for the table."""
    wrong = f", {result.different} answers differ" if result.different else ""
    return (
        f"{result.mode}, {result.side}: {result.survived} of {result.sessions} sessions survived"
        f" {len(result.kills)} kills{wrong}"
    )


def amount(count: int) -> str:
    """Bytes as a person says them: "812 B", "12.3 MB"."""
    if count < 1000:
        return f"{count} B"
    for unit, size in (("kB", 1e3), ("MB", 1e6)):
        if count < 999.95 * size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e9:.1f} GB"


def _table(results: Sequence[Result]) -> str:
    if not results:
        return ""
    rows = [
        tuple(heading for heading, _, _ in _HEADINGS),
        tuple(unit for _, unit, _ in _HEADINGS),
        *(_row(result) for result in results),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    return "\n".join(_aligned(row, widths) for row in rows)


def _aligned(row: Iterable[str], widths: Iterable[int]) -> str:
    cells = (
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, (_, _, right) in zip(row, widths, _HEADINGS, strict=True)
    )
    return "  ".join(cells).rstrip()


def _row(result: Result) -> tuple[str, ...]:
    books = result.books
    counted = books is not None and books.told + books.doubtful > 0
    return (
        result.mode,
        result.side,
        str(len(result.kills)),
        f"{result.survived} of {result.sessions}",
        str(result.lost),
        amount(result.bytes_compared),
        str(result.different),
        str(books.duplicates + books.foreign) if books and counted else "-",
        str(books.missing) if books and counted else "-",
        _milliseconds(result.pause, ("median", "p99", "longest")),
        _milliseconds(result.quiet, ("median", "longest")),
        _milliseconds(result.first_answer, ("median", "longest")),
        _milliseconds(result.down, ("median", "longest")),
    )


def _milliseconds(spread: Spread | None, names: Sequence[str]) -> str:
    if spread is None:
        return "-"
    return " / ".join(f"{getattr(spread, name) * 1000:.1f}" for name in names)


def _remarks(results: Sequence[Result]) -> str:
    lines = []
    for result in results:
        where = f"{result.mode}, {result.side}:"
        if result.cut_short:
            lines.append(f"{where} cut short, rows not counted")
        if result.reasons:
            said = ", ".join(f"{count} x {reason}" for reason, count in result.reasons[:3])
            lines.append(f"{where} lost by {said}")
        lines += [f"{where} DIFFERENT: {text}" for text in result.differences]
    return "\n".join(lines)


def _verdict(report: Report) -> str:
    sentences = []
    if report.interrupted:
        sentences.append("interrupted;")
    patched = [result for result in report.results if result.side == PATCHED]
    if not patched:
        return " ".join([*sentences, "nothing was tried"])
    began = sum(result.sessions for result in patched)
    survived = sum(result.survived for result in patched)
    kills = sum(len(result.kills) for result in patched)
    compared = amount(sum(result.bytes_compared for result in patched))
    if report.held:
        sentences.append(
            f"held: all {began} sessions survived, over {kills} kills;"
            f" {compared} compared, nothing lost, repeated or different"
        )
    else:
        sentences.append(
            f"NOT HELD: {survived} of {began} sessions survived {kills} kills"
            " with everything as it should be"
        )
    alone = [result for result in report.results if result.side == UNPATCHED]
    if alone:
        lived = sum(result.survived for result in alone)
        sentences.append(
            f"(without pgkeeper {lived} of {sum(result.sessions for result in alone)} survived)"
        )
    return " ".join(sentences)
