"""The table a person reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

    from demo.stage import Result
    from demo.story import Outcome


def show(console: Console, kept: Result, alone: Result) -> None:
    """Print both sides session by session, and what it comes to."""
    table = Table(
        box=box.ROUNDED,
        title=f"kill -9 of pgbouncer, under {len(kept.outcomes)} sessions",
        caption=f"with pgkeeper: pgbouncer {kept.killed} killed, {kept.successor} serves"
        f" after {_milliseconds(kept.recovered_s)}; "
        f"without: {alone.killed} killed, {alone.successor} after"
        f" {_milliseconds(alone.recovered_s)}",
    )
    table.add_column("the session has")
    table.add_column("driver")
    table.add_column("pool")
    table.add_column("with pgkeeper")
    table.add_column("PgBouncer alone")
    for with_it, without in zip(kept.outcomes, alone.outcomes, strict=True):
        table.add_row(
            with_it.title,
            with_it.driver,
            with_it.database,
            _verdict(with_it),
            _verdict(without),
        )
    console.print(table)
    count = len(kept.outcomes)
    good = kept.held == count
    console.print(
        Text.assemble(
            (f"{kept.held} of {count} sessions went on", "bold green" if good else "bold red"),
            f" with pgkeeper, the longest pause {_milliseconds(kept.pause_s)};"
            f" {alone.held} of {count} without.",
        )
    )


def _verdict(outcome: Outcome) -> Text:
    if outcome.held:
        return Text(f"✔ went on, {_milliseconds(outcome.pause_s)}", "green")
    return Text(f"✘ lost: {outcome.reason}", "red")


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
