"""What the commands that ask a hanger have in common."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pgkeeper.config import BouncerIni, ConfigError
from pgkeeper.control.client import ControlClient, NoHangerError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["client_for", "ini_option", "json_option", "socket_option"]

_F = TypeVar("_F", bound="Callable[..., Any]")

_INI_VARIABLE = "PGKEEPER_INI"


def socket_option(function: _F) -> _F:
    """`--socket`: which hanger to ask."""
    return click.option(
        "--socket",
        type=click.Path(path_type=Path, readable=False),
        envvar="PGKEEPER_SOCKET",
        show_envvar=True,
        help="The hanger's keeper_socket.",
    )(function)


def ini_option(function: _F) -> _F:
    """`--ini`: where to read `keeper_socket` when there is no `--socket`."""
    return click.option(
        "--ini",
        type=click.Path(path_type=Path, readable=False),
        envvar=_INI_VARIABLE,
        show_envvar=True,
        help="pgbouncer.ini, to find keeper_socket if --socket is not given.",
    )(function)


def json_option(function: _F) -> _F:
    """`--json`: for scripts."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON value on stdout.")(
        function
    )


def client_for(socket: Path | None, ini: Path | None) -> ControlClient:
    """A client of the hanger at `socket`, or at the `keeper_socket` of `ini` or $PGKEEPER_INI.

    Raises `NoHangerError` if neither says where that is: to a script the same as no answer.
    """
    if socket is None:
        if ini is None and os.environ.get(_INI_VARIABLE):
            ini = Path(os.environ[_INI_VARIABLE])
        if ini is None:
            raise NoHangerError("give --socket (or PGKEEPER_SOCKET), or --ini to read it from")
        try:
            socket = BouncerIni.load(ini).keeper_socket
        except ConfigError as error:
            raise NoHangerError(error.message) from None
        if socket is None:
            raise NoHangerError(f"{ini} sets no keeper_socket; give --socket")
    return ControlClient(socket)
