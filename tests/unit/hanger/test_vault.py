"""Held sockets: each descriptor is closed exactly once."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pgkeeper.hanger.login_guard import UNIX
from pgkeeper.hanger.vault import SERVER_BIT, TokenTakenError, Vault, is_server
from protocol.control import HeldSocket, UnheldReason


def new_fd() -> int:
    return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_clients_are_numbered_from_one_and_never_twice() -> None:
    vault = Vault()
    assert [vault.new_client(new_fd(), unix=False).token for _ in range(3)] == [1, 2, 3]
    vault.release(3)
    vault.close_all()
    assert vault.new_client(new_fd(), unix=False).token == 4
    vault.close_all()


def test_tokens_go_on_after_those_that_were_registered() -> None:
    vault = Vault()
    vault.add(7, new_fd(), unix=False)
    vault.add(SERVER_BIT | 99, new_fd(), unix=False)
    assert vault.new_client(new_fd(), unix=False).token == 8
    vault.mark_unheld(20, UnheldReason.TLS)
    assert vault.new_client(new_fd(), unix=False).token == 21
    vault.close_all()


def test_a_taken_token_closes_the_newcomer_only() -> None:
    vault = Vault()
    first, second = new_fd(), new_fd()
    vault.add(5, first, unix=False)
    with pytest.raises(TokenTakenError) as error:
        vault.add(5, second, unix=False)
    assert error.value.token == 5
    assert is_open(first)
    assert not is_open(second)
    vault.close_all()
    assert not is_open(first)


def test_unheld_sockets_are_closed_and_counted_until_they_end() -> None:
    vault = Vault()
    fd = new_fd()
    vault.add(1, fd, unix=False)
    vault.mark_unheld(1, UnheldReason.TLS)
    vault.mark_unheld(SERVER_BIT | 1, UnheldReason.LEDGER_FULL)
    vault.mark_unheld(2, UnheldReason.TLS)
    assert not is_open(fd)
    assert vault.unheld() == {"ledger-full": 1, "tls": 2}
    assert vault.release(1)
    assert vault.unheld() == {"ledger-full": 1, "tls": 1}
    assert not vault.release(1)
    assert vault.forget_unheld() == 2
    assert vault.unheld() == {}


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX], ids=["tcp", "unix"])
def test_of_a_registered_client_the_kernel_says_where_it_comes_from(family: int) -> None:
    where = ("127.0.0.1", 0) if family == socket.AF_INET else ""
    vault = Vault()
    with socket.socket(family) as listener, socket.socket(family) as client:
        listener.bind(where)
        listener.listen()
        client.connect(listener.getsockname())
        for token in (3, SERVER_BIT | 3):
            vault.add(token, os.dup(client.fileno()), unix=family == socket.AF_UNIX)
        vault.add(4, os.dup(client.fileno()), unix=False, peer="192.0.2.1")
        expected = "127.0.0.1" if family == socket.AF_INET else UNIX
        assert [vault.peer(token) for token in (3, SERVER_BIT | 3, 4)] == [
            expected,
            None,
            "192.0.2.1",
        ]
        assert client.gettimeout() is None
    vault.mark_unheld(3, UnheldReason.TLS)
    other = Vault()
    other.inherit_unheld(vault.unheld_tokens(), vault.unheld_peers())
    assert other.peer(3) == expected
    vault.close_all()


def test_what_was_closed_meanwhile_is_not_picked() -> None:
    vault = Vault()
    fds = [vault.new_client(new_fd(), unix=token % 2 == 0).fd for token in range(1, 131)]
    vault.release(129)
    sockets, given = vault.pick((129, 130))
    assert sockets == (HeldSocket(130, unix=True),)
    assert given == (fds[129],)
    vault.close_all()
    assert not any(is_open(fd) for fd in fds)


class VaultMachine(RuleBasedStateMachine):
    """Any order of calls: what the vault says is what is open."""

    tokens = st.integers(1, 6).map(lambda n: n | SERVER_BIT if n > 3 else n)

    def __init__(self) -> None:
        super().__init__()
        self.before = len(list(Path("/proc/self/fd").iterdir()))
        self.vault = Vault()
        self.held: set[int] = set()

    @rule(unix=st.booleans())
    def accept(self, unix: bool) -> None:
        self.held.add(self.vault.new_client(new_fd(), unix=unix).token)

    @rule(token=tokens)
    def register(self, token: int) -> None:
        if token in self.held:
            with pytest.raises(TokenTakenError):
                self.vault.add(token, new_fd(), unix=False)
        else:
            self.vault.add(token, new_fd(), unix=False)
            self.held.add(token)

    @rule(token=tokens)
    def release(self, token: int) -> None:
        unheld = token in self.vault.unheld_tokens()
        assert self.vault.release(token) == (unheld or token in self.held)
        if not unheld:
            self.held.discard(token)

    @rule(token=tokens)
    def unheld(self, token: int) -> None:
        self.vault.mark_unheld(token, UnheldReason.CONSOLE)
        self.held.discard(token)

    @rule()
    def close_all(self) -> None:
        self.vault.close_all()
        self.held.clear()

    @invariant()
    def counts_agree(self) -> None:
        servers = sum(map(is_server, self.held))
        assert {held.token for held in self.vault.held()} == self.held
        assert (self.vault.clients, self.vault.servers) == (len(self.held) - servers, servers)
        assert len(list(Path("/proc/self/fd").iterdir())) == self.before + len(self.held)

    def teardown(self) -> None:
        self.vault.close_all()


TestVaultMachine = VaultMachine.TestCase
