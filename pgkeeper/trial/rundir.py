"""One run's directory, its account, and the guard that clears up behind it."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pgkeeper.trial import guard
from pgkeeper.trial.account import Account, give, reachable, unprivileged
from pgkeeper.trial.errors import LeftBehindError, NotFoundError

if TYPE_CHECKING:
    from types import TracebackType


class RunDir:
    """A directory that the servers' account can reach; use it as a context manager.

    Leaving it (or dying in it, even by SIGKILL: see `guard`) ends every process started for this
    run and removes the directory. pytest's `tmp_path` will not do: root's lies under a folder that
    only root may enter.
    """

    def __init__(self) -> None:
        self.account: Account | None = unprivileged()
        self.run_id = secrets.token_hex(8)
        self.path = _make_directory(self.account)
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, self.run_id, str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            text=True,
            # Where we are part of another run its guard ends us, and ours must outlive that.
            env={name: value for name, value in os.environ.items() if name != guard.MARK},
        )

    def __enter__(self) -> RunDir:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        left = self.close()
        # What an error interrupted could not be stopped in order; the error is the news then.
        if left and kind is None:
            raise LeftBehindError("the run", left)

    def close(self) -> list[str]:
        """Let the guard clear up; returns a line for each process that it had to end."""
        output, _ = self._guard.communicate()
        return output.splitlines()

    def folder(self, name: str) -> Path:
        """A new folder of this name, owned by the servers' account, readable by all.

        Raises FileExistsError if the run has it already.
        """
        folder = self.path / name
        folder.mkdir(mode=0o755)
        give(folder, self.account)
        return folder

    def usable(self, program: Path) -> Path:
        """`program` itself if the servers' account can run it where it lies, else a copy."""
        if reachable(program, self.account):
            return program
        copy = self.path / "bin" / program.name
        if not copy.exists():
            copy.parent.mkdir(mode=0o755, exist_ok=True)
            shutil.copyfile(program, copy)
            copy.chmod(0o755)
        return copy

    def processes(self, name: str = "") -> list[str]:
        """A line for each living process started in this run under `name` (any, if empty)."""
        return [guard.describe(pid) for pid in guard.marked(self.run_id, name)]


def _make_directory(account: Account | None) -> Path:
    for parent in (Path(tempfile.gettempdir()), Path("/var/tmp"), Path("/tmp")):  # noqa: S108
        if parent.is_dir() and reachable(parent, account):
            path = Path(tempfile.mkdtemp(prefix="pgkeeper-run-", dir=parent))
            path.chmod(0o755)
            return path
    raise NotFoundError("a temporary folder", "none can be entered by an unprivileged user")
