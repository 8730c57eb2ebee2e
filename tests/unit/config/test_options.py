"""The options of `pgkeeper run` as the daemon gets them."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from pgkeeper.options import RunOptions, UnknownUserError, uid_of


def test_a_name_becomes_its_uid() -> None:
    me = pwd.getpwuid(os.getuid())
    assert uid_of(me.pw_name) == me.pw_uid


def test_a_number_need_not_be_known_here() -> None:
    assert uid_of("3999999999") == 3999999999


@pytest.mark.parametrize(
    "name", ["", "no such user", "-1", "4294967295", "9" * 5000, "\u0661", "a\0b", "\udc80", "1 "]
)
def test_unknown_users(name: str) -> None:
    with pytest.raises(UnknownUserError) as caught:
        uid_of(name)
    assert caught.value.name == name
    assert str(caught.value).isprintable()


def test_allow_uids() -> None:
    options = RunOptions(ini=Path("x"), allow_users=("70", "0", "70"))
    assert options.allow_uids == {0, 70}
