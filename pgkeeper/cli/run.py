"""`pgkeeper run`: the hanger, in the foreground."""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from pgkeeper import log
from pgkeeper.config import BouncerIni
from pgkeeper.errors import PgkeeperError
from pgkeeper.options import (
    DEFAULT_HANG_TIMEOUT,
    DEFAULT_HOLD_TIMEOUT,
    LEAST_HANG_TIMEOUT,
    BadEndpointError,
    Endpoint,
    RunOptions,
    UnknownUserError,
    uid_of,
)

if TYPE_CHECKING:
    from pgkeeper.takeover.heir import Heir

__all__ = ["command"]

_PATH: Final = click.Path(path_type=Path, readable=False)

#: What --metrics is told where a takeover would go on with the old hanger's.
_OFF: Final = "off"

# The variable of an option --some-name is PGKEEPER_SOME_NAME, not PGKEEPER_RUN_...
_option = functools.partial(click.option, show_envvar=True)


class _BinaryError(PgkeeperError):
    """There is no pgbouncer to start; `path` is what was named, if anything was."""

    def __init__(self, message: str, path: Path | None = None) -> None:
        self.path = path
        super().__init__(message)


def _seconds(ctx: click.Context, param: click.Parameter, value: float) -> float:
    if not math.isfinite(value) or value < 0:
        raise click.BadParameter("must be a number of seconds, 0 or more")
    return value


def _hang_seconds(ctx: click.Context, param: click.Parameter, value: float) -> float:
    if _seconds(ctx, param, value) and value < LEAST_HANG_TIMEOUT:
        raise click.BadParameter(f"must be 0, or at least {LEAST_HANG_TIMEOUT:g}")
    return value


def _users(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    for name in value:
        try:
            uid_of(name)
        except UnknownUserError as error:
            raise click.BadParameter(error.message) from None
    return value


def _metrics(ctx: click.Context, param: click.Parameter, value: str | None) -> Endpoint | None:
    if value in (None, "", _OFF):
        return None
    try:
        return Endpoint.parse(str(value))
    except BadEndpointError as error:
        raise click.BadParameter(f"{error.message}, nor {_OFF!r}") from None


@click.command("run", context_settings={"auto_envvar_prefix": "PGKEEPER"})
@_option("--ini", type=_PATH, help="pgbouncer.ini: addresses, user, keeper_socket.")
@_option("--pgbouncer", type=_PATH, help="The binary.  Default: what `pgkeeper build` made.")
@_option(
    "--socket", type=_PATH, help="Where pgbouncer finds us.  Default: the ini's keeper_socket."
)
@_option(
    "--standby/--no-standby",
    default=True,
    show_default=True,
    help="Keep a second pgbouncer started and waiting, where we start any.",
)
@_option(
    "--supervise/--no-supervise",
    default=True,
    show_default=True,
    help="Start pgbouncer, and again when it dies; or leave both to something else.",
)
@_option(
    "--allow-user",
    "allow_user",
    multiple=True,
    callback=_users,
    help="A user or uid, besides root, ours and pgbouncer's, that may connect. Repeatable.",
)
@_option(
    "--hold-timeout",
    type=float,
    default=DEFAULT_HOLD_TIMEOUT,
    show_default=True,
    callback=_seconds,
    help="Seconds to hold sessions while no pgbouncer serves them; 0: for ever.",
)
@_option(
    "--hang-timeout",
    type=float,
    default=DEFAULT_HANG_TIMEOUT,
    show_default=True,
    callback=_hang_seconds,
    help="Seconds without a heartbeat after which pgbouncer is replaced; 0: never.",
)
@_option(
    "--metrics",
    metavar="[ADDRESS:]PORT",
    callback=_metrics,
    help="Serve /metrics and /healthz over HTTP there.  Default: off; no address: 127.0.0.1.",
)
@click.option(
    "--takeover",
    is_flag=True,
    allow_from_autoenv=False,  # one start is meant, not all that come
    help="Replace the hanger that runs: take everything from it, and its settings.",
)
@_option("--log-json", is_flag=True, help="Logs as JSON, one object a line.")
@_option(
    "--log-level",
    type=click.Choice(list(log.LEVELS)),
    default="info",
    show_default=True,
    help="The least that is logged.",
)
@click.pass_context
def command(
    ctx: click.Context,
    ini: Path | None,
    pgbouncer: Path | None,
    socket: Path | None,
    standby: bool,
    supervise: bool,
    allow_user: tuple[str, ...],
    hold_timeout: float,
    hang_timeout: float,
    metrics: Endpoint | None,
    takeover: bool,
    log_json: bool,
    log_level: str,
) -> None:
    """Hold sessions: listen in pgbouncer's place, start it, and start it again.

    Runs in the foreground and logs to stderr. Ctrl-C or SIGTERM ends it together
    with the pgbouncer it supervises; SIGHUP reloads pgbouncer's configuration.
    Tells systemd when it is ready (Type=notify).

    With --takeover it replaces the hanger that listens on --socket, or on the
    ini's keeper_socket: listeners, sessions, ledger and pgbouncer come over, then
    the old hanger ends, and no client notices. What is not said here is as the
    old one has it. If anything fails, the old one goes on.

    \b
    Exit status:
      0  ended as asked: signal, `pgkeeper release`, the console's SHUTDOWN, or
         replaced by another hanger
      1  could not start, take over or go on; one line on stderr says why
      2  --takeover, and there is no hanger

    \b
    Examples:
      pgkeeper run --ini /etc/pgbouncer/pgbouncer.ini
      PGKEEPER_INI=pgbouncer.ini PGKEEPER_ALLOW_USER="alice 70" pgkeeper run
      pgkeeper run --takeover --socket /run/pgkeeper/keeper.sock
      pgkeeper run --takeover --ini /etc/pgbouncer/pgbouncer.ini --standby
    """
    heir = None
    if takeover:
        heir, socket = _ask(socket, ini)
        old = heir.offer

        def said(name: str) -> bool:
            return ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT

        ini = ini or Path(old.ini)
        pgbouncer = pgbouncer or Path(old.binary)
        standby = standby if said("standby") else old.standby
        supervise = supervise if said("supervise") else old.supervise
        hold_timeout = hold_timeout if said("hold_timeout") else old.hold_timeout
        hang_timeout = hang_timeout if said("hang_timeout") else old.hang_timeout
        if not said("metrics") and old.metrics is not None:
            metrics = Endpoint.parse(old.metrics)
        allow_user = allow_user or tuple(map(str, old.allow_uids))
    if ini is None:
        raise click.MissingParameter(ctx=ctx, param_type="option", param_hint="'--ini'")
    BouncerIni.load(ini)  # a mistake in it is worth telling before anything else
    if supervise:
        pgbouncer = _binary(pgbouncer)
    # Only `run` needs the daemon: the other commands start faster without it.
    from pgkeeper.daemon import run_daemon

    ctx.exit(
        run_daemon(
            RunOptions(
                ini=ini.absolute(),
                pgbouncer=pgbouncer.absolute() if pgbouncer else None,
                socket=socket.absolute() if socket else None,
                standby=standby,
                supervise=supervise,
                allow_users=allow_user,
                hold_timeout=hold_timeout,
                hang_timeout=hang_timeout,
                metrics=metrics,
                log_json=log_json,
                log_level=log_level,
            ),
            heir,
        )
    )


def _ask(socket: Path | None, ini: Path | None) -> tuple[Heir, Path]:
    """The conversation with the hanger to be replaced, and the keeper socket that it has."""
    from pgkeeper.takeover.heir import Heir

    if socket is None and ini is not None:
        socket = BouncerIni.load(ini).keeper_socket
    if socket is None:
        raise click.UsageError("--takeover needs --socket, or an --ini with keeper_socket")
    return Heir.ask(socket), socket


def _binary(named: Path | None) -> Path:
    if named is None:
        from pgkeeper.bouncer.build import cached_binary

        built = cached_binary()
        if built is None:
            raise _BinaryError(
                "there is no pgbouncer yet: run `pgkeeper build`, or name one with --pgbouncer"
            )
        return built
    if not named.is_file():
        raise _BinaryError(f"{named}: no such pgbouncer", named)
    if not os.access(named, os.X_OK):
        raise _BinaryError(f"{named} is not executable", named)
    return named
