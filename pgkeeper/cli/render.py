"""Reports as text for people and as JSON values; pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgkeeper.control.report import token_name
from pgkeeper.control.shape import to_plain
from pgkeeper.inifile import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pgkeeper.control.report import HandoffReport, Session, Status

__all__ = [
    "duration",
    "handoff_text",
    "plural",
    "session_plain",
    "sessions_text",
    "status_text",
    "warnings_text",
]

_HEADINGS = ("TOKEN", "KIND", "USER@DATABASE", "STATE", "HELD", "DOING", "LINKED")


def status_text(status: Status, warnings: Iterable[str]) -> str:
    """`pgkeeper status`, several lines; the warnings stand last, where they are seen."""
    hanger, pgbouncer = status.hanger, status.pgbouncer
    sessions, adoptions, crashes = status.sessions, status.adoptions, status.crashes
    process = f", pid {pgbouncer.pid}" if pgbouncer.pid is not None else ""
    standby = f", standby pid {pgbouncer.standby_pid}" if pgbouncer.standby_pid is not None else ""
    last = f", the last took {adoptions.last_ms:.1f} ms" if adoptions.last_ms is not None else ""
    version, uptime = printable(hanger.version), duration(hanger.uptime_s)
    rows = [
        ("hanger", f"pid {hanger.pid}, version {version}, up {uptime}"),
        (
            "pgbouncer",
            f"{pgbouncer.state.value}{process}, incarnation {pgbouncer.incarnation}{standby}",
        ),
        (
            "held",
            f"{plural(sessions.clients_held, 'client')}, {plural(sessions.servers_held, 'server')}",
        ),
        ("not held", counts(sessions.unheld) or "none"),
        (
            "adoptions",
            f"{adoptions.count}{last}, {plural(adoptions.sessions_lost, 'session')} lost",
        ),
    ]
    if crashes.hangs:
        rows.append(("watchdog", f"{plural(crashes.hangs, 'hanging pgbouncer')} killed"))
    quarantine = crashes.quarantine
    if quarantine.ended or quarantine.logins_refused or quarantine.addresses:
        text = f"sessions ended: {counts(quarantine.ended) or 'none'}"
        refused = plural(quarantine.logins_refused, "login")
        rows.append(
            ("crashes", f"{text}; {refused} refused, addresses kept out: {quarantine.addresses}")
        )
    width = max(len(label) for label, _ in rows)
    lines = [f"{label:<{width}}  {text}" for label, text in rows]
    return "\n".join(lines + warnings_text(warnings))


def warnings_text(warnings: Iterable[str]) -> list[str]:
    """A line for each of `warnings`."""
    return [f"WARNING: {printable(warning)}" for warning in warnings]


def sessions_text(sessions: Sequence[Session]) -> str:
    """`pgkeeper sessions`: an aligned table, or a line that says there are none."""
    if not sessions:
        return "no sessions"
    rows = [_HEADINGS, *(_row(session) for session in sessions)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _row(session: Session) -> tuple[str, ...]:
    held = "yes" if session.held else f"no: {session.reason or 'unknown'}"
    cells = (
        token_name(session.token),
        session.kind,
        f"{session.user or '-'}@{session.database or '-'}",
        session.state,
        held,
        session.doing,
        "-" if session.linked is None else token_name(session.linked),
    )
    return tuple(printable(cell) for cell in cells)


def session_plain(session: Session) -> dict[str, Any]:
    """`session` for `--json`; tokens by name, which tools that know only doubles cannot round."""
    linked = None if session.linked is None else token_name(session.linked)
    plain: dict[str, Any] = to_plain(session)
    return {**plain, "token": token_name(session.token), "linked": linked}


def handoff_text(report: HandoffReport) -> str:
    """`pgkeeper handoff` succeeded: one line."""
    lost = counts(report.lost)
    return (
        f"pgbouncer {report.pid} (incarnation {report.incarnation}) serves"
        f" {plural(report.clients, 'client')} and {plural(report.servers, 'server')}"
        f" after a pause of {report.pause_ms:.1f} ms; lost: {lost or 'none'}"
    )


def counts(numbers: Mapping[str, int]) -> str:
    """ "3 tls, 1 ledger-full", the most frequent first; what is 0 is left out."""
    shown = sorted((-number, name) for name, number in numbers.items() if number)
    return ", ".join(f"{-number} {printable(name)}" for number, name in shown)


def plural(number: int, noun: str) -> str:
    """ "1 client", "2 clients"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def duration(seconds: float) -> str:
    """`seconds` in the two largest units that matter: "42 s", "3 min 5 s", "2 d 7 h"."""
    whole = max(0, int(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
