"""Descriptors: raised as far as possible, and said clearly when that is not far."""

from __future__ import annotations

import os
import resource

import pytest

from pgkeeper.hanger.limits import RESERVE, Room, TooFewDescriptorsError, raise_descriptor_limit
from pgkeeper.hanger.vault import Vault


class Kernel:
    """getrlimit and setrlimit of a process that is not root."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, soft: int, hard: int) -> None:
        self.limits = (soft, hard)
        monkeypatch.setattr(resource, "getrlimit", lambda _: self.limits)
        monkeypatch.setattr(resource, "setrlimit", self.set)

    def set(self, _: int, limits: tuple[int, int]) -> None:
        if limits[1] > self.limits[1] != resource.RLIM_INFINITY:
            raise ValueError("not allowed to raise maximum limit")
        self.limits = limits


def test_the_hard_limit_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, 1024, 9000)
    assert raise_descriptor_limit(100) == 9000
    assert kernel.limits == (9000, 9000)


def test_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, 1024, resource.RLIM_INFINITY)
    assert raise_descriptor_limit(100) == 1 << 20
    assert kernel.limits == (1 << 20, resource.RLIM_INFINITY)


def test_less_than_twice_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Kernel(monkeypatch, 1024, 1100)
    assert raise_descriptor_limit(1000) == 1100
    out, err = capsys.readouterr()
    assert "descriptor-limit" in out + err
    assert "1100" in out + err
    assert "max_client_conn" in out + err


def test_too_few_is_an_error_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    Kernel(monkeypatch, 900, 900)
    with pytest.raises(TooFewDescriptorsError) as error:
        raise_descriptor_limit(1000)
    assert (error.value.hard, error.value.max_client_conn) == (900, 1000)
    assert error.value.message == (
        "at most 900 descriptors (RLIMIT_NOFILE) are too few for max_client_conn = 1000:"
        " raise the limit to 2192"
    )


def test_room(monkeypatch: pytest.MonkeyPatch) -> None:
    Kernel(monkeypatch, RESERVE * 4 + 4, RESERVE * 4 + 4)
    vault = Vault()
    room = Room(max_client_conn=3)
    for left in (3, 2, 1):
        assert room.for_clients(vault, down=True) == left
        vault.new_client(os.open("/dev/null", os.O_RDONLY), unix=False)
    # pgbouncer itself refuses clients beyond max_client_conn, with a message
    assert room.for_clients(vault, down=True) == 0
    assert room.for_clients(vault, down=False) == RESERVE * 3 + 4 - 3
    room.max_client_conn = 2  # a reload: more are held than may be
    assert room.for_clients(vault, down=True) < 0
    vault.close_all()


def test_descriptors_for_servers_are_kept_free(monkeypatch: pytest.MonkeyPatch) -> None:
    Kernel(monkeypatch, 40, 40)
    vault = Vault()
    room = Room(max_client_conn=100)
    while room.for_clients(vault, down=False) > 0:
        vault.new_client(os.open("/dev/null", os.O_RDONLY), unix=False)
    assert len(vault) == 30
    vault.close_all()
