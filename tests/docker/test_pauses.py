"""How long a session waits for its answer when a container goes: the table in docs/containers.md.

One session asks without a pause while the container is killed or replaced; its longest wait is the
figure. Each answer is checked, so this is a test as well.
"""

from __future__ import annotations

import statistics
import threading
import time
from typing import TYPE_CHECKING, Self

import psycopg
import pytest

from testbed.waiting import wait_until
from tests.docker.crowd import PASSWORD

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from tests.docker.images import Images
    from tests.docker.stack import Stack

ROUNDS = 10


class Pulse:
    """A session that asks again and again, and remembers its longest wait."""

    def __init__(self, port: int) -> None:
        self._connection = psycopg.connect(
            host="127.0.0.1",
            port=port,
            user="postgres",
            dbname="postgres",
            password=PASSWORD,
            sslmode="disable",
            autocommit=True,
        )
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._beat)
        self.answers = 0
        self.longest = 0.0
        self.wrong: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ending.set()
        self._thread.join()
        self._connection.close()

    def _beat(self) -> None:
        try:
            while not self._ending.is_set():
                began = time.monotonic()
                row = self._connection.execute("SELECT %s::int", (self.answers,)).fetchone()
                assert row == (self.answers,)
                self.longest = max(self.longest, time.monotonic() - began)
                self.answers += 1
        except BaseException as error:
            self.wrong = error

    def wait_during(self, act: Callable[[], None]) -> float:
        """The longest wait from the beginning of `act` to the first answers after its end."""
        self.longest = 0.0
        act()
        seen = self.answers
        wait_until(
            lambda: self.answers > seen + 1 or self.wrong is not None, what="answers", seconds=60
        )
        assert self.wrong is None
        return self.longest


def crash(stack: Stack) -> None:
    """SIGKILL to the process; Docker restarts its container."""
    pid = stack.status()["pgbouncer"]["pid"]
    stack.run_in("pgkeeper", "sh", "-c", f"kill -KILL {pid}")


@pytest.mark.slow
def test_how_long_sessions_wait(stack: Stack, images: Images) -> None:
    stack.wait_standby()
    stack.restart("pgbouncer")  # the standby serves
    serving = ["standby", "pgbouncer"]
    waits: dict[str, list[float]] = {}

    def measure(what: str, act: Callable[[], None], settled: Callable[[], None]) -> None:
        waits.setdefault(what, []).append(pulse.wait_during(act))
        settled()

    def restarted(pulse_act: Callable[[str], None]) -> None:
        """Of the one that serves."""
        before = stack.standbys()
        name = serving[0]
        pulse_act(name)
        wait_until(lambda: stack.standbys() > before, what="a standby", seconds=60)
        serving.reverse()

    def kill_and_start(name: str) -> None:
        stack.kill(name)
        stack.start(name)

    def docker_restart(name: str) -> None:
        stack.docker("restart", stack.container(name).name)

    def nothing() -> None:
        pass

    with Pulse(stack.port) as pulse:
        for number in range(ROUNDS):
            measure("no kill", lambda: time.sleep(0.5), nothing)
            measure("docker kill, standby", lambda: restarted(kill_and_start), nothing)
            measure("docker restart, standby", lambda: restarted(docker_restart), nothing)
            image = (images.again, images.pgbouncer)[number % 2]
            measure(
                "compose up with another image, standby",
                lambda image=image: stack.up(PGBOUNCER_IMAGE=image),
                stack.wait_standby,
            )
            # whoever serves now: the other one is made to
            stack.restart("pgbouncer")
            serving[:] = ["standby", "pgbouncer"]
            measure(
                "docker kill of pgkeeper", lambda: kill_and_start("pgkeeper"), stack.wait_standby
            )
        stack.docker("stop", stack.container("standby").name)

        def serves_again() -> None:
            wait_until(
                lambda: stack.status().get("pgbouncer", {}).get("state") == "active",
                what="it serves",
                seconds=60,
            )

        serves_again()
        for _ in range(ROUNDS):
            measure("docker kill and start", lambda: kill_and_start("pgbouncer"), serves_again)
            measure("docker restart", lambda: docker_restart("pgbouncer"), serves_again)
        for _ in range(ROUNDS):
            time.sleep(11)  # Docker waits longer and longer for one that lived less than 10 s
            measure("a crash", lambda: crash(stack), serves_again)
        stack.start("standby")
    print()
    for what, seconds in waits.items():
        milliseconds = sorted(round(1000 * value) for value in seconds)
        print(
            f"| {what} | {statistics.median(milliseconds):.0f}"
            f" ({milliseconds[0]}-{milliseconds[-1]}) |"
        )
