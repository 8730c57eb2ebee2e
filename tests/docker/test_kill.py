"""docker/compose.yaml: whatever is killed, restarted or replaced, fifty of fifty sessions go on."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from testbed.waiting import wait_until
from tests.docker.crowd import SIZE, Crowd, count
from tests.docker.stack import Stack

if TYPE_CHECKING:
    from pathlib import Path

    import docker
    from tests.docker.images import Images

KILLS = 50


def held(stack: Stack) -> tuple[int, int]:
    """How many clients are held, and how many sessions were lost."""
    status = stack.status()
    return status["sessions"]["clients_held"], status["adoptions"]["sessions_lost"]


def test_fifty_kills_of_the_one_that_serves(stack: Stack, crowd: Crowd) -> None:
    """While all fifty sessions ask; the other one takes over, and the killed one stands by next."""
    stack.restart("pgbouncer")  # so that it is known who serves
    before = stack.status()["adoptions"]["count"]
    for number in range(KILLS):
        asked = crowd.ask()
        stack.restart(("standby", "pgbouncer")[number % 2])
        assert count(asked) == SIZE
    assert crowd.intact() == SIZE
    assert stack.status()["adoptions"]["count"] == before + KILLS
    assert held(stack) == (SIZE, 0)


def test_the_one_that_stands_by_is_killed(stack: Stack, crowd: Crowd) -> None:
    """Nobody takes over, and it stands by again."""
    stack.restart("pgbouncer")  # so that it is the other one that serves
    before = stack.status()
    for _ in range(5):
        asked = crowd.ask()
        stack.restart("pgbouncer")
        assert count(asked) == SIZE
    after = stack.status()
    assert after["adoptions"] == before["adoptions"]
    assert after["pgbouncer"]["incarnation"] == before["pgbouncer"]["incarnation"]
    assert held(stack) == (SIZE, 0)


def test_kills_without_a_standby(stack: Stack, crowd: Crowd) -> None:
    """The sessions wait until the container is there again."""
    stack.docker("stop", stack.container("standby").name)
    try:
        for _ in range(5):
            asked = crowd.ask()
            stack.kill("pgbouncer")
            asked += crowd.ask()
            stack.start("pgbouncer")
            assert count(asked) == 2 * SIZE
    finally:
        stack.start("standby")
    assert held(stack) == (SIZE, 0)


def test_without_the_patches_no_session_survives(
    client: docker.DockerClient, images: Images, compose: list[str], compose_file: Path
) -> None:
    """The negative control: PgBouncer as it is, in the same file, killed once."""
    services = ("postgres", "anchor", "pgbouncer")
    with (
        Stack(
            client,
            images,
            compose,
            compose_file,
            services=services,
            PGBOUNCER_IMAGE=images.vanilla,
            KEEPER_SOCKET="",
        ) as vanilla,
        Crowd(vanilla.port) as crowd,
    ):
        assert crowd.intact() == SIZE
        vanilla.kill("pgbouncer")
        vanilla.start("pgbouncer")
        assert crowd.intact() == 0


def test_docker_restart(stack: Stack, crowd: Crowd) -> None:
    for service in ("pgbouncer", "standby", "pgbouncer", "standby"):
        before = stack.standbys()
        asked = crowd.ask()
        stack.docker("restart", stack.container(service).name)
        wait_until(lambda before=before: stack.standbys() > before, what=service, seconds=60)
        assert count(asked) == SIZE
    assert held(stack) == (SIZE, 0)


def test_compose_up_with_a_new_image(stack: Stack, crowd: Crowd, images: Images) -> None:
    """Both pgbouncers are replaced by containers of another image, and back."""
    old = {stack.container(name).id for name in ("pgbouncer", "standby")}
    keeper = stack.container("pgkeeper").id
    for image in (images.again, images.pgbouncer):
        asked = crowd.ask()
        stack.up(PGBOUNCER_IMAGE=image)
        asked += crowd.ask()
        assert count(asked) == 2 * SIZE
        new = {stack.container(name).id for name in ("pgbouncer", "standby")}
        assert not old & new
        assert stack.container("pgbouncer").attrs["Config"]["Image"] == image
        old = new
    assert stack.container("pgkeeper").id == keeper
    assert held(stack) == (SIZE, 0)


def test_the_hangers_container_is_killed(stack: Stack, crowd: Crowd) -> None:
    """pgbouncer serves on, registers everything with the next one, and may then be killed."""
    for _ in range(2):
        asked = crowd.ask()
        stack.kill("pgkeeper")
        assert count(asked) == SIZE
        assert crowd.intact() == SIZE  # nobody holds them now
        stack.start("pgkeeper")
        stack.wait_standby()
        assert held(stack) == (SIZE, 0)
        for service in ("pgbouncer", "standby"):
            asked = crowd.ask()
            stack.restart(service)
            assert count(asked) == SIZE


def test_a_crash_in_the_container_is_restarted_by_docker(stack: Stack, crowd: Crowd) -> None:
    """`docker kill` is no crash to Docker, so the process is killed from the container beside."""
    for _ in range(2):
        before = stack.standbys()
        pid = stack.status()["pgbouncer"]["pid"]
        asked = crowd.ask()
        assert stack.run_in("pgkeeper", "sh", "-c", f"kill -KILL {pid}")[0] == 0
        assert count(asked) == SIZE
        wait_until(lambda before=before: stack.standbys() > before, what="a restart", seconds=60)
    assert held(stack) == (SIZE, 0)


def test_a_pgbouncer_that_hangs_is_killed_by_pgkeeper(stack: Stack, crowd: Crowd) -> None:
    """Which takes the PID namespace that they share."""
    status = stack.status()
    pid, hangs = status["pgbouncer"]["pid"], status["crashes"]["hangs"]
    assert stack.run_in("pgkeeper", "sh", "-c", f"kill -{signal.SIGSTOP.value} {pid}")[0] == 0
    assert crowd.intact() == SIZE
    assert stack.status()["crashes"]["hangs"] == hangs + 1
    assert held(stack) == (SIZE, 0)
