"""Logins that PAM decides: a check under way is made again after a kill, and the client sees none.

PgBouncer's PAM service is one of the machine's; these tests put one of their own over it, in a
mount namespace that only their pgbouncer is in. It asks a program that can be made to wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from testbed import RawClient, wait_until
from testbed.account import give
from testbed.errors import ServerError
from testbed.pooler import ADMIN
from tests.system.wrapping import kept

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed import Keeper, Postgres, RunDir

SECRET = "known to PAM"
_MODULES = ("/lib", "/usr/lib")
_numbers = itertools.count(1)
_MODULE = "*/security/pam_exec.so"


def pam_exec() -> Path | None:
    """PAM's module that asks a program, where distributions put it."""
    return next((path for root in _MODULES for path in Path(root).glob(_MODULE)), None)


pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None or pam_exec() is None,
    reason="needs root, unshare and pam_exec",
)


class Judge:
    """The program that PAM asks: notes each question, and answers when it may.

    It knows the console's user, and one password for all others.
    """

    def __init__(self, run_dir: RunDir, name: str) -> None:
        self.folder = folder = run_dir.folder(f"pam-{name}")
        self._asked = folder / "asked"
        self._gate = (folder / "gate").open("w")
        self._asked.touch()
        give(self._asked, run_dir.account)
        (folder / "gate").chmod(0o666)
        program = folder / "judge"
        program.write_text(
            f"#!/bin/sh\nword=$(tr -d '\\0')\n[ $PAM_USER = {ADMIN} ] && exit 0\n"
            f"echo asked >>{self._asked}\n"
            f'flock --shared {self._gate.name} true\n[ "$word" = "{SECRET}" ]\n'
        )
        program.chmod(0o755)
        services = run_dir.folder(f"pam-services-{name}")
        (services / "pgbouncer").write_text(
            f"auth required pam_exec.so quiet expose_authtok {program}\n"
            "account required pam_permit.so\n"
        )
        self._services = services

    def wrapped(self, run_dir: RunDir, binary: Path) -> Path:
        """A pgbouncer to which our services are the machine's."""
        script = self.folder / "pgbouncer"
        script.write_text(
            "#!/bin/sh\nexec unshare --mount sh -c"
            f" 'mount --bind {self._services} /etc/pam.d && exec {run_dir.usable(binary)} \"$@\"'"
            ' sh "$@"\n'
        )
        script.chmod(0o755)
        return script

    @property
    def questions(self) -> int:
        """How often it has been asked."""
        return len(self._asked.read_text().split())

    def wait(self) -> None:
        """Let it wait."""
        fcntl.flock(self._gate, fcntl.LOCK_EX)

    def speak(self) -> None:
        """Let it answer, also what it was asked earlier."""
        fcntl.flock(self._gate, fcntl.LOCK_UN)

    def close(self) -> None:
        """Answer all."""
        self._gate.close()


@pytest.fixture
def judge(run_dir: RunDir) -> Iterator[Judge]:
    """What PAM asks."""
    with contextlib.closing(Judge(run_dir, str(next(_numbers)))) as judge:
        yield judge


@pytest.fixture
def keeper(
    judge: Judge,
    run_dir: RunDir,
    postgres: Postgres,
    patched_binary: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Keeper]:
    """A pgbouncer that asks PAM, also about the console's user."""
    monkeypatch.setenv("PGPASSWORD", "the console's")
    settings = {"auth_type": "pam"}
    program = judge.wrapped(run_dir, patched_binary)
    name = f"keeper-{judge.folder.name}"
    with kept(run_dir, postgres, program, name, settings=settings) as keeper:
        yield keeper


def test_a_check_under_way_is_made_again(judge: Judge, keeper: Keeper) -> None:
    """For the right password and the wrong one, at the same time, and through two kills."""
    with (
        RawClient(keeper.host, keeper.port) as right,
        RawClient(keeper.host, keeper.port) as wrong,
    ):
        judge.wait()
        for client, secret in ((right, SECRET), (wrong, "guessed")):
            client.start_up(user="postgres", database="transaction")
            client.answer(secret)
        asked = 0
        for _ in range(3):
            # PgBouncer asks PAM one question at a time.
            wait_until(lambda: judge.questions > asked, what="PAM is asked")  # noqa: B023
            asked = judge.questions
            keeper.kill_bouncer()
        judge.speak()
        right.finish_login()
        assert right.query("SELECT 'in'") == [("in",)]
        with pytest.raises(ServerError, match="PAM authentication failed"):
            wrong.finish_login()


def test_who_was_let_in_stays_in(judge: Judge, keeper: Keeper) -> None:
    """PAM is not asked again for a session, only for the next login."""
    with RawClient(keeper.host, keeper.port) as client:
        client.login(secret=SECRET)
        client.query("BEGIN")
        keeper.kill_bouncer()
        assert client.query("SELECT 'still in'") == [("still in",)]
        client.query("COMMIT")
        assert judge.questions == 1
    with RawClient(keeper.host, keeper.port) as again:
        again.login(secret=SECRET)
        assert again.query("SELECT 'again'") == [("again",)]
    assert judge.questions == 2
