"""A pgbouncer of a few lines: speaks the control protocol as the patched one, and echoes lines.

Its ini's directory may hold `fake.json` with what it is to do wrong; a client's line may be a
command (see `_COMMANDS`).  Everything else comes back with "echo ".
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import selectors
import signal
import socket
import sys
import time
from pathlib import Path

from pgkeeper.hanger import datagram
from protocol.control import (
    BATCH,
    Adopt,
    Client,
    Draining,
    Farewell,
    Freeze,
    Frozen,
    HeldSocket,
    Hello,
    Listeners,
    ListenersBack,
    Ready,
    Refuse,
    Register,
    Release,
    ReleaseAll,
    Role,
    Sockets,
    Thaw,
    Unheld,
    UnheldReason,
    Welcome,
    decode,
    encode,
)
from protocol.ledger import FORMAT_VERSION, SIGNATURE, LedgerView

SERVER_BIT = 1 << 63


class Session:
    """A client, known by its token; keeps a line that has not ended."""

    def __init__(self, token: int, fd: int, unix: bool) -> None:
        self.token = token
        self.unix = unix
        self.connection = socket.socket(fileno=fd)
        self.buffer = b""


class FakeBouncer:
    def __init__(self, ini: Path) -> None:
        script = ini.parent / "fake.json"
        self.script = json.loads(script.read_text()) if script.exists() else {}
        self.path = os.environ["PGBOUNCER_KEEPER_SOCKET"]
        self.selector = selectors.DefaultSelector()
        self.sessions: dict[int, Session] = {}
        self.servers: dict[int, tuple[socket.socket, socket.socket]] = {}
        self.held: list[tuple[int, int, bool]] = []
        self.listeners: list[socket.socket] = []
        self.link: socket.socket | None = None
        self.ledger_fd = -1
        self.incarnation = 0
        self.last_token = 0
        self.adopted = False
        self.frozen = False

    def run(self) -> None:
        if self.script.get("exit"):
            sys.exit(self.script["exit"])
        if self.script.get("silent"):
            while True:
                signal.pause()
        self.connect(Role.SUCCESSOR)
        while True:
            if self.link is None:
                self.find_hanger()
            for key, _ in self.selector.select(0.05 if self.link is None else None):
                key.data()

    # the hanger

    def connect(self, role: Role) -> None:
        self.link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.link.connect(self.path)
        self.selector.register(self.link, selectors.EVENT_READ, self.hear)
        serving = role is Role.SERVING
        hello = Hello(
            format_version=FORMAT_VERSION + self.script.get("format", 0),
            format_oldest=FORMAT_VERSION + self.script.get("format", 0),
            format=FORMAT_VERSION,
            signature=SIGNATURE,
            slots=512,
            iobufs=16,
            units=256,
            pkt_buf=4096,
            max_client_conn=100,
            role=role,
            pid=1,
            incarnation=self.incarnation,
            last_token=self.last_token,
            sockets=len(self.sessions) + len(self.servers),
            pgbouncer_version="fake",
        )
        self.say(hello, (self.ledger_fd,) if serving else ())
        if "says_hello" in self.script:
            Path(self.script["says_hello"]).touch()

    def find_hanger(self) -> None:
        try:
            self.connect(Role.SERVING)
        except OSError:
            self.drop_link()

    def drop_link(self) -> None:
        if self.link is not None:
            with contextlib.suppress(KeyError):
                self.selector.unregister(self.link)
            self.link.close()
            self.link = None

    def say(self, message: object, fds: tuple[int, ...] = ()) -> None:
        assert self.link is not None
        while True:
            try:
                datagram.send(self.link, encode(message), fds)
            except BlockingIOError:
                time.sleep(0.001)
            else:
                return

    def hear(self) -> None:
        assert self.link is not None
        try:
            packet = datagram.receive(self.link)
        except BlockingIOError:
            return
        except OSError:
            packet = datagram.Datagram(b"", (), False, False)
        if packet.ended:
            self.hanger_lost()
            return
        assert not packet.fds_cut
        message, fds = decode(packet.data), packet.fds
        match message:
            case Refuse():
                sys.exit(f"refused: {message.text}")
            case Welcome() if self.adopted:
                self.register_everything()
            case Welcome():
                self.ledger_fd = fds[0]
                LedgerView(mmap.mmap(self.ledger_fd, 0, prot=mmap.PROT_READ))
            case Listeners():
                self.listeners += [socket.socket(fileno=fd) for fd in fds]
            case Sockets():
                pairs = zip(message.sockets, fds, strict=True)
                self.held += [(held.token, fd, held.unix) for held, fd in pairs]
            case Adopt():
                self.adopt(message)
            case Client():
                self.take(message.socket.token, fds[0], message.socket.unix)
            case Freeze():
                if not self.script.get("never_freezes"):
                    self.frozen = True
                    self.say(Frozen(message.format))
            case Thaw():
                self.frozen = False
            case ReleaseAll():
                self.goodbye()
            case _:
                sys.exit(f"unexpected: {message}")

    def hanger_lost(self) -> None:
        self.drop_link()
        if not self.adopted:
            sys.exit("no hanger")
        for listener in self.listeners:
            if listener in self.selector.get_map():
                continue
            listener.setblocking(False)
            self.selector.register(
                listener, selectors.EVENT_READ, lambda it=listener: self.accept(it)
            )

    def register_everything(self) -> None:
        for listener in self.listeners:
            with contextlib.suppress(KeyError):
                self.selector.unregister(listener)
        if self.script.get("dies_returning"):
            os.kill(os.getpid(), signal.SIGKILL)
        unix = tuple(listener.family == socket.AF_UNIX for listener in self.listeners)
        self.say(ListenersBack(unix), tuple(it.fileno() for it in self.listeners))
        every = [(it.token, it.connection.fileno(), it.unix) for it in self.sessions.values()]
        every += [(token, pair[0].fileno(), True) for token, pair in self.servers.items()]
        self.register(every)
        self.say(Ready(self.incarnation, len(self.sessions), len(self.servers)))

    def register(self, every: list[tuple[int, int, bool]]) -> None:
        for at in range(0, len(every), BATCH):
            batch = every[at : at + BATCH]
            entries = tuple(HeldSocket(token, unix) for token, _, unix in batch)
            self.say(Register(entries), tuple(fd for _, fd, _ in batch))

    def adopt(self, message: Adopt) -> None:
        if self.script.get("hangs"):
            while True:
                signal.pause()
        if self.script.get("dies_adopting"):
            os.kill(os.getpid(), signal.SIGSEGV)
        header = LedgerView(mmap.mmap(self.ledger_fd, 0, prot=mmap.PROT_READ)).header
        assert header.incarnation == message.incarnation
        self.incarnation = message.incarnation
        self.adopted = True
        servers = 0
        for token, fd, unix in self.held:
            if token & SERVER_BIT:
                servers += 1
                self.servers[token] = (socket.socket(fileno=fd), socket.socket())
            else:
                self.take(token, fd, unix)
        lost = (self.script.get("lost", 0), 0, 0, 0, 0)
        self.say(Ready(self.incarnation, len(self.held) - servers, servers, lost, 1000))
        self.held = []

    def goodbye(self) -> None:
        if self.script.get("never_leaves"):
            return
        for session in self.sessions.values():
            with contextlib.suppress(OSError):
                session.connection.sendall(b"goodbye\n")
                session.connection.shutdown(socket.SHUT_WR)
        self.say(Farewell())
        sys.exit(0)

    # clients

    def accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            client, _ = listener.accept()
            token = self.last_token + 1
            self.take(token, client.detach(), listener.family == socket.AF_UNIX)
            if self.link is not None:
                self.register([(token, self.sessions[token].connection.fileno(), False)])

    def take(self, token: int, fd: int, unix: bool) -> None:
        session = Session(token, fd, unix)
        session.connection.setblocking(False)
        self.sessions[token] = session
        self.last_token = max(self.last_token, token)
        self.selector.register(session.connection, selectors.EVENT_READ, lambda: self.read(session))

    def read(self, session: Session) -> None:
        try:
            chunk = session.connection.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self.end(session)
            return
        session.buffer += chunk
        while b"\n" in session.buffer:
            line, _, session.buffer = session.buffer.partition(b"\n")
            self.obey(session, line.decode().split())

    def end(self, session: Session) -> None:
        self.selector.unregister(session.connection)
        with contextlib.suppress(OSError):
            session.connection.shutdown(socket.SHUT_RDWR)
        session.connection.close()
        del self.sessions[session.token]
        if self.link is not None:
            self.say(Release((session.token,)))

    def obey(self, session: Session, words: list[str]) -> None:
        command = _COMMANDS.get(words[0]) if words else None
        if command is None:
            self.answer(session, "echo " + " ".join(words))
        else:
            self.answer(session, str(command(self, session, *words[1:])))

    def answer(self, session: Session, text: str) -> None:
        session.connection.sendall(text.encode() + b"\n")

    def command_who(self, session: Session) -> str:
        return f"{os.getpid()} {self.incarnation} {session.token}"

    def command_servers(self, session: Session, count: str) -> str:
        """Make server connections and have them held."""
        first = len(self.servers) + 1
        made = [
            (SERVER_BIT | number, socket.socketpair())
            for number in range(first, first + int(count))
        ]
        self.servers.update(made)
        self.register([(token, pair[0].fileno(), True) for token, pair in made])
        return str(len(self.servers))

    def command_last(self, session: Session, count: str) -> str:
        """Have servers held, a message for each, and die before anybody has heard of them."""
        for _ in range(int(count)):
            self.command_servers(session, "1")
        os.kill(os.getpid(), signal.SIGKILL)
        return ""

    def command_release(self, session: Session) -> str:
        """Close all servers."""
        tokens = list(self.servers)
        for pair in self.servers.values():
            pair[0].close()
            pair[1].close()
        self.servers.clear()
        for at in range(0, len(tokens), BATCH):
            self.say(Release(tuple(tokens[at : at + BATCH])))
        return "released"

    def command_unheld(self, session: Session) -> str:
        self.say(Unheld(session.token, UnheldReason.TLS))
        return "unheld"

    def command_drain(self, session: Session) -> str:
        self.say(Draining())
        return "draining"

    def command_farewell(self, session: Session) -> str:
        self.goodbye()
        return ""

    def command_crash(self, session: Session) -> str:
        os.kill(os.getpid(), signal.SIGSEGV)
        return ""

    def command_again(self, session: Session) -> str:
        """Register a token twice, which breaks the protocol."""
        self.register([(session.token, session.connection.fileno(), session.unix)])
        return "again"

    def command_garbage(self, session: Session) -> str:
        assert self.link is not None
        self.link.send(b"garbage that is no message")
        return "garbage"

    def command_crowd(self, session: Session) -> str:
        """A message with more descriptors than any may have."""
        assert self.link is not None
        datagram.send(self.link, encode(Frozen(FORMAT_VERSION)), (0,) * 100)
        return "crowd"

    def command_descriptors(self, session: Session) -> str:
        return str(len(list(Path("/proc/self/fd").iterdir())))


_COMMANDS = {
    name.removeprefix("command_"): function
    for name, function in vars(FakeBouncer).items()
    if name.startswith("command_")
}


def main() -> None:
    if sys.argv[1:] == ["--version"]:
        print("PgBouncer 0\nkeeper: format 1, control 1")
        return
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    FakeBouncer(Path(sys.argv[1])).run()


if __name__ == "__main__":
    main()
