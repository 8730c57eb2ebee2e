"""A stand-in for a service manager: keeps descriptors, and starts a service with them.

It does what systemd.service(5), sd_notify(3) and sd_listen_fds(3) say of FileDescriptorStoreMax=,
FDSTORE=1, FDSTOREREMOVE=1, FDNAME= and LISTEN_FDS.
"""

from __future__ import annotations

import array
import os
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Manager"]

# Moves the descriptors to 3, 4, ... and becomes the service.
_LAUNCHER: Final = """
import fcntl, os, sys
fds = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 1000) for fd in sys.argv[1].split(",") if fd]
os.closerange(3, 1000)
for number, fd in enumerate(fds):
    os.dup2(fd, 3 + number)
    os.close(fd)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)))
os.execv(sys.argv[2], sys.argv[2:])
"""


class Manager:
    """Listens at `path` until it is closed; `limit` is its FileDescriptorStoreMax."""

    def __init__(self, path: Path, limit: int = 4096) -> None:
        self.limit = limit
        self.lines: list[str] = []
        self._path = path
        self._kept: list[tuple[str, int]] = []
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self._socket.bind(os.fspath(path))
        path.chmod(0o666)
        self._reading = threading.Event()
        self._reading.set()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def names(self) -> list[str]:
        """The names of all that it keeps, sorted."""
        with self._lock:
            return sorted(name for name, _ in self._kept)

    def forget(self, prefix: str) -> None:
        """Lose what has such a name."""
        with self._lock:
            for entry in [entry for entry in self._kept if entry[0].startswith(prefix)]:
                os.close(entry[1])
                self._kept.remove(entry)

    def hang(self) -> None:
        """Read nothing from the next message on."""
        self._reading.clear()

    def go_on(self) -> None:
        """Read again."""
        self._reading.set()

    def command(self, argv: Sequence[str | Path]) -> tuple[list[str], dict[str, str], list[int]]:
        """How to start `argv` as its service: arguments, environment, descriptors to pass."""
        with self._lock:
            kept = list(self._kept)
        fds = [fd for _, fd in kept]
        environment = {
            "NOTIFY_SOCKET": os.fspath(self._path),
            "FDSTORE": str(self.limit),
            "LISTEN_FDNAMES": ":".join(name for name, _ in kept),
        }
        launcher = [sys.executable, "-IS", "-c", _LAUNCHER, ",".join(map(str, fds))]
        return [*launcher, *(os.fspath(word) for word in argv)], environment, fds

    def close(self) -> None:
        """Let go of everything; a second time does nothing."""
        if not self._thread.is_alive():
            return
        self.go_on()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"CLOSE=1", os.fspath(self._path))
        self._thread.join(10)
        self._socket.close()
        for _, fd in self._kept:
            os.close(fd)
        self._kept.clear()

    def _run(self) -> None:
        while True:
            self._reading.wait()
            data, ancillary, _, _ = self._socket.recvmsg(
                65536, socket.CMSG_SPACE(253 * 4), socket.MSG_CMSG_CLOEXEC
            )
            fds = array.array("i")
            for _, _, content in ancillary:
                fds.frombytes(content)
            lines = data.decode().splitlines()
            if lines == ["CLOSE=1"]:
                return
            with self._lock:
                self._obey(lines, list(fds))

    def _obey(self, lines: list[str], fds: list[int]) -> None:
        name = next((line[7:] for line in lines if line.startswith("FDNAME=")), "stored")
        if "FDSTORE=1" in lines:
            assert "FDPOLL=0" in lines  # noqa: S101 (it would have to watch them else)
            for fd in fds:
                if len(self._kept) >= self.limit or self._has(fd):
                    os.close(fd)
                else:
                    self._kept.append((name, fd))
        elif "FDSTOREREMOVE=1" in lines:
            for entry in [entry for entry in self._kept if entry[0] == name]:
                os.close(entry[1])
                self._kept.remove(entry)
        else:
            self.lines += lines

    def _has(self, fd: int) -> bool:
        wanted = os.fstat(fd)
        if str(Path(f"/proc/self/fd/{fd}").readlink()).startswith("anon_inode:"):
            return False  # all share one inode, and systemd compares with kcmp(2)
        return any(os.path.samestat(os.fstat(kept), wanted) for _, kept in self._kept)
