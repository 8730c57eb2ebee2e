"""Who is taken for a new pgbouncer when he introduces himself."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from typing import TYPE_CHECKING, cast

from pgkeeper.bouncer.pidfd import Pidfd
from pgkeeper.control.access import Peer
from pgkeeper.hanger.census import Census
from pgkeeper.hanger.holdings import Holdings
from pgkeeper.hanger.process import Process
from pgkeeper.hanger.reception import Reception
from pgkeeper.states import ProcessState
from protocol.control import Hello, Role, encode
from protocol.ledger import FORMAT_OLDEST, FORMAT_VERSION, SIGNATURE
from tests.unit.hanger.until import until

if TYPE_CHECKING:
    from pgkeeper.bouncer.spawn import Child
    from pgkeeper.hanger.listeners import Listeners
    from pgkeeper.hanger.reception import Reactions

HELLO = Hello(
    format_version=FORMAT_VERSION,
    format_oldest=FORMAT_OLDEST,
    signature=SIGNATURE,
    slots=64,
    iobufs=32,
    units=256,
    pkt_buf=4096,
    max_client_conn=100,
    role=Role.SUCCESSOR,
    pid=os.getpid(),
    incarnation=0,
    last_token=0,
    sockets=0,
    pgbouncer_version="1.24.1",
)


class SlowToDie(Pidfd):
    """Of this process, which a SIGKILL does not end for as long as the test takes."""

    def signal(self, number: signal.Signals) -> bool:
        return number is signal.SIGKILL


def test_a_child_that_we_have_killed_is_no_stranger_when_its_hello_comes() -> None:
    """It is not told anything, and does not stand by in the place of one that lives."""

    async def play() -> None:
        loop = asyncio.get_running_loop()
        pidfd = SlowToDie.open(os.getpid())
        child = Process(
            loop, os.getpid(), pidfd, lambda _: None, child=cast("Child", "what started it")
        )
        child.dismiss()
        assert child.state is ProcessState.FENCED
        census = Census()
        census.add(child)
        # Neither reactions nor listeners are asked for anything: they would raise AttributeError.
        reactions, listeners = cast("Reactions", None), cast("Listeners", None)
        reception = Reception(loop, census, Holdings(), listeners, reactions)
        reception.open_doors()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        peer = Peer(os.getpid(), os.getuid(), os.getgid())
        theirs.settimeout(10.0)
        with theirs:
            reception.connected(ours, peer, Pidfd.open(os.getpid()))
            theirs.send(encode(HELLO))
            await until(lambda: not reception.strangers)
            assert list(census) == [child]
            assert theirs.recv(1) == b""
        child.forget()

    asyncio.run(play())
