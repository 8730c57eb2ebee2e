"""What `pgkeeper top` shows, as text; pure functions.

Names and addresses come from clients: nothing of them may move the cursor or be taken for markup.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from rich.text import Text

from pgkeeper.control.report import token_name
from pgkeeper.inifile import printable
from pgkeeper.states import ServiceState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pgkeeper.control.protocol import TopReply
    from pgkeeper.control.report import Status, TopQuery, TopRow

__all__ = ["COLUMNS", "age_text", "cells", "details", "position", "summary"]

#: Heading and width; with their gaps they fill 80 columns, what is last gets what is left.
COLUMNS: Final = (
    *(("TOKEN", 6), ("USER", 9), ("DATABASE", 9), ("ADDRESS", 13)),
    *(("STATE", 7), ("HELD", 4), ("SURV", 4), ("AGE", 5), ("DOING", None)),
)
_STATE_STYLES: Final[Mapping[ServiceState, str]] = {
    ServiceState.ACTIVE: "bold green",
    ServiceState.ADOPTING: "bold yellow",
    ServiceState.STARTING: "bold yellow",
    ServiceState.DOWN: "bold red",
    ServiceState.CRASH_LOOP: "bold red",
}
_SHORTER: Final = (
    (re.compile(r"^in query \(1 request outstanding\)"), "query"),
    (re.compile(r"^in query \((\d+) requests outstanding\)"), r"query x\1"),
    (re.compile(r"^in transaction"), "transaction"),
    (re.compile(r"^in COPY"), "COPY"),
    (re.compile(r", message in flight \(type (.)\)$"), r", \1 in flight"),
    (re.compile(r", message in flight \((\d+) bytes to come\)$"), r", \1 B to come"),
)
_MINUTE: Final = 60
_HOUR: Final = 60 * _MINUTE
_DAY: Final = 24 * _HOUR


def summary(reply: TopReply) -> Text:
    """Three lines about hanger, pgbouncer and what is held; then a line for each warning."""
    status = reply.status
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append_text(_processes(status)).append("\n")
    text.append_text(_held(status)).append("\n")
    text.append_text(_past(status))
    for warning in reply.warnings:
        text.append("\n").append(printable(warning), style="yellow")
    return text


def _processes(status: Status) -> Text:
    hanger, bouncer = status.hanger, status.pgbouncer
    text = Text("pgbouncer ")
    text.append(bouncer.state.value, style=_STATE_STYLES[bouncer.state])
    if bouncer.pid is not None:
        text.append(f" {bouncer.pid}")
    text.append(f", incarnation {bouncer.incarnation}, ")
    if bouncer.standby_pid is None:
        text.append("no standby", style="yellow")
    else:
        text.append(f"standby {bouncer.standby_pid}")
    return text.append(f"; hanger {hanger.pid}, up {age_text(hanger.uptime_s)}")


def _held(status: Status) -> Text:
    sessions = status.sessions
    text = Text(f"held: {sessions.clients_held} clients, {sessions.servers_held} servers; not: ")
    unheld = [f"{number} {name}" for name, number in sessions.unheld.items() if number]
    if unheld:
        return text.append(", ".join(unheld), style="red")
    return text.append("none")


def _past(status: Status) -> Text:
    adoptions, crashes = status.adoptions, status.crashes
    text = Text(f"adoptions: {adoptions.count}")
    if adoptions.last_ms is not None:
        text.append(f", last {adoptions.last_ms:.1f} ms")
    text.append(f", lost {adoptions.sessions_lost}", style="red" if adoptions.sessions_lost else "")
    if crashes.hangs:
        text.append(f"; hangs {crashes.hangs}", style="yellow")
    quarantine = crashes.quarantine
    if ended := sum(quarantine.ended.values()):
        text.append(f"; quarantined {ended}", style="yellow")
    if quarantine.addresses:
        text.append(f"; addresses kept out {quarantine.addresses}", style="yellow")
    return text


def position(reply: TopReply, query: TopQuery) -> Text:
    """Which part of the list is shown, and of which list."""
    top = reply.top
    kind = {"client": "clients", "server": "servers", "all": "sockets"}[query.side]
    first = query.offset + 1 if top.rows else 0
    text = Text(no_wrap=True, overflow="ellipsis", style="reverse")
    text.append(f" {first}-{query.offset + len(top.rows)} of {top.matching} {kind}")
    if query.match:
        text.append(f" that match {printable(query.match)!r} (of {top.total})")
    text.append(f", by {query.order}{' backwards' if query.reverse else ''} ")
    return text


def cells(row: TopRow) -> tuple[Text, ...]:
    """A row of the table: as many as `COLUMNS`."""
    session = row.session
    held = Text("yes", style="green") if session.held else Text("no", style="bold red")
    doing = _short(printable(session.doing))
    if not session.held:
        doing = f"({printable(session.reason or 'unknown')}) {doing}"
    found = (
        Text(token_name(session.token)),
        _name(session.user),
        _name(session.database),
        _name(row.address),
        Text(session.state),
        held,
        Text(f"{row.survived:>4}"),
        Text("" if row.age is None else f"{age_text(row.age):>5}"),
        Text(doing),
    )
    for text, (_, width) in zip(found, COLUMNS, strict=True):
        if width is not None:
            text.truncate(width, overflow="ellipsis")
    return found


def _short(doing: str) -> str:
    """`Session.doing` where there is little room: "query", "query x3, D 12 bytes"."""
    for pattern, replacement in _SHORTER:
        doing = pattern.sub(replacement, doing)
    return doing


def _name(name: str | None) -> Text:
    return Text("-", style="dim") if name is None else Text(printable(name))


def details(row: TopRow) -> Text:
    """Everything about one session, a line each."""
    session = row.session
    linked = "-" if session.linked is None else token_name(session.linked)
    held = "yes" if session.held else f"no: {session.reason or 'unknown'}"
    lines = (
        ("token", f"{token_name(session.token)} ({session.kind})"),
        ("user", session.user or "-"),
        ("database", session.database or "-"),
        ("address", row.address or "-"),
        ("state", session.state),
        ("doing", session.doing),
        ("for", "-" if row.age is None else age_text(row.age)),
        ("linked to", linked),
        ("held", held),
        ("survived", f"{row.survived} adoptions"),
    )
    return Text("\n".join(f"{label:<10}{printable(value)}" for label, value in lines))


def age_text(seconds: float) -> str:
    """In five characters: "0.3s", "59s", "12m", "3h", "12d"."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    if seconds < _MINUTE:
        return f"{seconds:.0f}s"
    if seconds < _HOUR:
        return f"{seconds // _MINUTE:.0f}m"
    if seconds < _DAY:
        return f"{seconds // _HOUR:.0f}h"
    return f"{seconds // _DAY:.0f}d"
