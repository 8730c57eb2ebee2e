"""Makes hangers: the suite wants hundreds, and loading Python and pgkeeper takes longest.

`nursery.py SOCKET`, with pgkeeper to be found: whoever connects and sends a directory, the path
of a log and the words of a command line, joined by zeros, is answered with the pid of a fork that
does in the directory as `pgkeeper` with these words, with its output appended to the log.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import NoReturn

import pgkeeper.cli.run
import pgkeeper.daemon  # noqa: F401 - what `run` would load
from pgkeeper.cli import main


def _become(directory: str, log: str, words: list[str]) -> NoReturn:
    """Never to return into the code that forked."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.chdir(directory)
        output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        main(words)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else status
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def serve(path: str) -> NoReturn:
    """See the module; until a signal ends it."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(64)
    while True:
        connection, _ = listener.accept()
        directory, log, *words = os.fsdecode(connection.recv(1 << 16)).split("\0")
        pid = os.fork()
        if pid == 0:
            listener.close()
            connection.close()
            _become(directory, log, words)
        connection.send(str(pid).encode())
        connection.close()


if __name__ == "__main__":
    serve(sys.argv[1])
