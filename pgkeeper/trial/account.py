"""The account that PostgreSQL and PgBouncer run as: both refuse to be root."""

from __future__ import annotations

import os
import pwd
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgkeeper.trial.errors import NotFoundError

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this machine, by the numbers the kernel wants and the name the ini wants."""

    name: str
    uid: int
    gid: int


def unprivileged() -> Account | None:
    """The account to run servers as; None when we are not root and simply stay who we are.

    Raises `NotFoundError` when we are root and there is no user `nobody`.
    """
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        raise NotFoundError("the user 'nobody'", "root cannot run PostgreSQL itself") from None
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def reachable(path: Path, account: Account | None) -> bool:
    """Whether `account` may pass every folder above `path` and read it (and run it, if we may).

    Looks at the mode bits for "others" alone: right for an account that owns nothing, such as
    `nobody`. Always true for None.
    """
    if account is None:
        return True
    real = path.resolve()
    if not all(stat.S_IMODE(folder.stat().st_mode) & stat.S_IXOTH for folder in real.parents):
        return False
    mode = stat.S_IMODE(real.stat().st_mode)
    wanted = stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0)
    return mode & wanted == wanted


def give(path: Path, account: Account | None) -> None:
    """Make `account` the owner of `path`; nothing to do for None."""
    if account is not None:
        os.chown(path, account.uid, account.gid)
