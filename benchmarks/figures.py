"""One measured line of the benchmarks: three programs, a ratio, and the bar it has to clear."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Bar", "Figure", "paired", "table"]


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure is to be: its ratio to the unpatched program, or the keeper's own value."""

    limit: float
    at_least: bool = False
    ratio: bool = True

    def met(self, figure: Figure) -> bool | None:
        """Whether the figure clears it; None if it was not measured."""
        value = figure.ratio if self.ratio else figure.keeper
        if value is None:
            return None
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        return f"{sign} {self.limit:g}" + (" x" if self.ratio else "")


@dataclass(frozen=True, slots=True)
class Figure:
    """Medians by program, and the median and quartiles of the paired ratios keeper/unpatched."""

    group: str
    what: str
    unit: str
    unpatched: float | None = None
    keeper: float | None = None
    direct: float | None = None
    ratio: float | None = None
    lower: float | None = None
    upper: float | None = None
    rounds: int = 1
    bar: Bar | None = None

    @property
    def met(self) -> bool | None:
        """Whether the bar is cleared; None without one."""
        return None if self.bar is None else self.bar.met(self)

    def plain(self) -> dict[str, Any]:
        """The figure as JSON values."""
        bar = None if self.bar is None else str(self.bar)
        return {**asdict(self), "bar": bar, "met": self.met}


def paired(
    group: str,
    what: str,
    unit: str,
    rounds: Sequence[dict[str, float]],
    bar: Bar | None = None,
) -> Figure:
    """A figure of rounds that each measured `unpatched`, `keeper` and perhaps `direct` in turn."""
    ratios = sorted(one["keeper"] / one["unpatched"] for one in rounds)
    lower, upper = ratios[0], ratios[-1]
    if len(ratios) > 3:
        lower, _, upper = statistics.quantiles(ratios, n=4)
    medians = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    return Figure(
        group,
        what,
        unit,
        medians["unpatched"],
        medians["keeper"],
        medians.get("direct"),
        statistics.median(ratios),
        lower,
        upper,
        len(rounds),
        bar,
    )


def table(figures: Iterable[Figure]) -> str:
    """What a person reads: a line a figure, misses marked."""
    headings = ("", "unit", "unpatched", "keeper", "direct", "ratio (quartiles)", "bar", "")
    rows: list[tuple[str, ...]] = [headings]
    group = None
    for figure in figures:
        if figure.group != group:
            group = figure.group
            rows.append((group, *("",) * 7))
        rows.append(_row(figure))
    widths = [max(len(row[column]) for row in rows) for column in range(len(headings))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in (0, 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _row(figure: Figure) -> tuple[str, ...]:
    ratio = ""
    if figure.ratio is not None:
        ratio = f"{figure.ratio:.3f} ({figure.lower:.3f} .. {figure.upper:.3f})"
    verdict = {None: "", True: "met", False: "MISSED"}[figure.met]
    return (
        f"  {figure.what}",
        figure.unit,
        _number(figure.unpatched),
        _number(figure.keeper),
        _number(figure.direct),
        ratio,
        "" if figure.bar is None else str(figure.bar),
        verdict,
    )


def _number(value: float | None) -> str:
    """Four digits that matter."""
    if value is None:
        return ""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
