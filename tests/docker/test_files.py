"""The Compose files in other ways than test_kill.py runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.docker.crowd import SIZE, Crowd, count
from tests.docker.stack import Stack

if TYPE_CHECKING:
    from pathlib import Path

    import docker
    from tests.docker.images import Images


def test_the_older_docker_compose(
    client: docker.DockerClient, images: Images, older_compose: list[str], compose_file: Path
) -> None:
    with (
        Stack(client, images, older_compose, compose_file) as stack,
        Crowd(stack.port) as crowd,
    ):
        for service in ("pgbouncer", "standby", "pgbouncer"):
            asked = crowd.ask()
            stack.restart(service)
            assert count(asked) == SIZE
        stack.up(PGBOUNCER_IMAGE=images.again)
        assert crowd.intact() == SIZE
        assert stack.status()["adoptions"]["sessions_lost"] == 0


def test_without_a_shared_pid_namespace(
    client: docker.DockerClient, images: Images, compose: list[str], compose_file: Path
) -> None:
    """pgkeeper can neither see nor kill pgbouncer, but is sure of its death (SO_PEERPIDFD)."""
    apart = compose_file.with_name(f".apart-{id(client)}.yaml")
    text = compose_file.read_text()
    assert "  pid: service:anchor\n" in text
    apart.write_text(text.replace("  pid: service:anchor\n", ""))
    try:
        with Stack(client, images, compose, apart) as stack, Crowd(stack.port) as crowd:
            assert stack.status()["pgbouncer"]["pid"] == 0
            for service in ("pgbouncer", "standby", "pgbouncer", "standby"):
                asked = crowd.ask()
                stack.restart(service)
                assert count(asked) == SIZE
            assert stack.status()["adoptions"]["sessions_lost"] == 0
    finally:
        apart.unlink()


def test_the_sidecar_beside_an_existing_pgbouncer(
    client: docker.DockerClient, images: Images, compose: list[str], compose_file: Path
) -> None:
    """Its mounted pgbouncer.ini stays as it was."""
    file = compose_file.with_name("compose.sidecar.yaml")
    services = ("postgres", "anchor", "pgkeeper", "pgbouncer")
    with (
        Stack(client, images, compose, file, services=services) as stack,
        Crowd(stack.port) as crowd,
    ):
        for _ in range(3):
            asked = crowd.ask()
            stack.restart("pgbouncer")
            assert count(asked) == SIZE
        status = stack.status()
        assert status["adoptions"]["sessions_lost"] == 0
        assert status["sessions"]["clients_held"] == SIZE
