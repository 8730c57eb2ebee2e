"""`pgkeeper trial`: kill pgbouncer under sessions, and see what becomes of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgkeeper.cli.common import json_option
from pgkeeper.errors import PgkeeperError
from pgkeeper.trial.dsn import parse_dsn
from pgkeeper.trial.options import DEFAULT_MODES, Mode, PoolMode, TrialOptions
from pgkeeper.trial.table import report_text, result_line

if TYPE_CHECKING:
    from pgkeeper.trial.figures import Result

__all__ = ["command"]

_EXIT_CANNOT = 2
_EXIT_INTERRUPTED = 130


class _Trial(click.Command):
    """Wrong usage ends as a trial that cannot start does: 1 and 0 are verdicts."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            error.show()
            raise click.exceptions.Exit(_EXIT_CANNOT) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            error.show()
            ctx.exit(_EXIT_CANNOT)
        except PgkeeperError as error:
            click.echo(f"pgkeeper: {error.message}", err=True)
            ctx.exit(_EXIT_CANNOT)


_COUNT = click.IntRange(min=1)


@click.command("trial", cls=_Trial)
@click.option("--kills", type=_COUNT, default=10, show_default=True, help="Of each mode and side.")
@click.option("--sessions", type=_COUNT, default=20, show_default=True, help="Under each kill.")
@click.option(
    "--mode",
    "modes",
    type=click.Choice([mode.value for mode in Mode]),
    multiple=True,
    help="What the sessions do.  Repeatable.  Default: all but container.",
)
@click.option("--png", type=click.Path(path_type=Path, dir_okay=False), help="Draw a picture.")
@json_option
@click.option("--dsn", help="A PostgreSQL for both sides.  Default: a private one is started.")
@click.option("--target", help="A pooler that runs already: connection string of its port.")
@click.option("--unpatched-target", help="One without pgkeeper, killed in the same way.")
@click.option(
    "--pool-mode",
    type=click.Choice([mode.value for mode in PoolMode]),
    default=PoolMode.TRANSACTION.value,
    show_default=True,
    help="Of the target's database.",
)
@click.option("--kill-command", help="Kills the target's pgbouncer.  Default: you do.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1),
    default=60.0,
    show_default=True,
    help="How long to watch each mode while you kill.",
)
@click.option(
    "--container",
    default="pgbouncer",
    show_default=True,
    help="What mode container kills and starts, by docker.",
)
@click.option(
    "--pgbouncer",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Another patched binary than `pgkeeper build` makes.",
)
@click.option("--standby/--no-standby", default=True, show_default=True, help="As of pgkeeper run.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the moments of kills.")
@click.pass_context
def command(
    ctx: click.Context,
    kills: int,
    sessions: int,
    modes: tuple[str, ...],
    png: Path | None,
    as_json: bool,
    dsn: str | None,
    target: str | None,
    unpatched_target: str | None,
    pool_mode: str,
    kill_command: str | None,
    seconds: float,
    container: str,
    pgbouncer: Path | None,
    standby: bool,
    seed: int,
) -> None:
    """Kill pgbouncer under working sessions, and count what is lost.

    Starts PostgreSQL, a pgbouncer with pgkeeper and one without, all private, and
    kills each of the two so many times under so many sessions. Every byte that a
    session is told is compared with what an unkilled one is told, and inserted
    rows are counted. Nothing is left behind, also after Ctrl-C.

    \b
    Modes:
      idle         sessions rest, and are asked for all they have after each kill
      busy         queries of all protocols, transactions with inserts
      bulk         large results, COPY in and out
      login-storm  a connection for each question; each login must succeed
      container    busy, while a container is killed (needs --target)

    With --target a deployment that runs already is tried, killed by
    --kill-command or by you. Its database gets a table for the time of it.
    The password may be in PGPASSWORD.

    \b
    Exit status:
      0    every session survived (of the patched side), and nothing differed
      1    not so
      2    could not start, or wrong usage
      130  interrupted; the table says what there was by then

    \b
    Examples:
      pgkeeper trial
      pgkeeper trial --kills 100 --sessions 50 --mode busy --png trial.png
      pgkeeper trial --target "host=db port=6432 user=app" \\
          --kill-command "systemctl kill -s KILL pgbouncer" --mode busy
      pgkeeper trial --target "port=6432 user=app" --mode container
    """
    chosen = tuple(dict.fromkeys(Mode(mode) for mode in modes)) or DEFAULT_MODES
    _check_usage(chosen, target, unpatched_target, kill_command)
    if png is not None:
        from pgkeeper.trial.picture import check_drawing

        check_drawing(png)
    options = TrialOptions(
        kills=kills,
        sessions=sessions,
        modes=chosen,
        server=parse_dsn(dsn) if dsn else None,
        target=parse_dsn(target) if target else None,
        unpatched_target=parse_dsn(unpatched_target) if unpatched_target else None,
        pool_mode=PoolMode(pool_mode),
        kill_command=kill_command,
        watch_s=seconds,
        container=container,
        pgbouncer=pgbouncer,
        standby=standby,
        seed=seed,
    )
    # Only here: --help needs none of it.
    from pgkeeper.trial.trial import run_trial

    display = _Display()
    try:
        report = run_trial(options, display)
    finally:
        display.close()
    click.echo(json.dumps(report.plain(), indent=1) if as_json else report_text(report))
    if png is not None and report.results:
        from pgkeeper.trial.picture import draw

        draw(report, png)
    if report.interrupted:
        ctx.exit(_EXIT_INTERRUPTED)
    ctx.exit(0 if report.held else 1)


def _check_usage(
    modes: tuple[Mode, ...],
    target: str | None,
    unpatched_target: str | None,
    kill_command: str | None,
) -> None:
    if target is None:
        for given, name in (
            (unpatched_target, "--unpatched-target"),
            (kill_command, "--kill-command"),
        ):
            if given is not None:
                raise click.UsageError(f"{name} needs --target")
        if Mode.CONTAINER in modes:
            raise click.UsageError("--mode container needs --target")
    elif Mode.CONTAINER in modes and len(modes) > 1:
        raise click.UsageError("--mode container cannot be combined with other modes")


class _Display:
    """Progress on stderr: a bar on a terminal, else a line for each mode and side."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._bar: Any = None

    def doing(self, text: str) -> None:
        """See `Watcher`."""
        click.echo(text, err=True)

    def begin(self, mode: str, side: str, kills: int) -> None:
        """See `Watcher`."""
        if self._terminal:
            label = f"{mode}, {side}".ljust(22)
            self._bar = click.progressbar(
                length=kills, label=label, file=sys.stderr, item_show_func=None, show_pos=True
            )
            self._bar.__enter__()

    def killed(self) -> None:
        """See `Watcher`."""
        if self._bar is not None:
            self._bar.update(1)

    def end(self, result: Result) -> None:
        """See `Watcher`."""
        self.close()
        if not self._terminal:
            click.echo(result_line(result), err=True)

    def close(self) -> None:
        """The bar's line is over."""
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.__exit__(None, None, None)
