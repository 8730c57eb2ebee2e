"""Engine, images and a running Compose file, each once for all tests here, and no longer."""

from __future__ import annotations

import gc
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.docker.crowd import Crowd
from tests.docker.engine import NoEngineError, engine, need
from tests.docker.images import ROOT, Images, build_all, compose_plugin
from tests.docker.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import docker
    from testbed.rundir import RunDir

#: Seconds for the first test, which may have to install, to fetch and to build.
FIRST_S = 1800


#: docker's client leaves its connections to the garbage collector.
_LEFT_OPEN = r"ignore:Exception ignored in. <socket.socket fd=\d+, family=1,"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = str(ROOT / "tests" / "docker")
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.timeout(FIRST_S))
            item.add_marker(
                pytest.mark.filterwarnings(f"{_LEFT_OPEN}:pytest.PytestUnraisableExceptionWarning")
            )


@pytest.fixture(autouse=True)
def _collect() -> Iterator[None]:
    """What docker's client has left is not to be found in tests of something else."""
    yield
    gc.collect()


@pytest.fixture(scope="package")
def client(run_dir: RunDir) -> Iterator[docker.DockerClient]:
    """An engine. Without one all tests here are skipped, for one reason."""
    try:
        with engine(run_dir) as found:
            yield found
    except NoEngineError as error:
        pytest.skip(f"CONTAINERS ARE NOT TESTED: {error}")


@pytest.fixture(scope="package")
def images(client: docker.DockerClient, run_dir: RunDir) -> Images:
    """All images, built."""
    try:
        return build_all(client, run_dir)
    except NoEngineError as error:
        pytest.skip(f"CONTAINERS ARE NOT TESTED: {error}")


@pytest.fixture(scope="package")
def compose(client: docker.DockerClient, images: Images, run_dir: RunDir) -> list[str]:
    """`docker compose`, with Debian's plugin where there is none."""
    command = ["docker", "compose"]
    if subprocess.run([*command, "version"], capture_output=True, check=False).returncode:
        plugins = run_dir.path / "docker-config" / "cli-plugins"
        plugins.mkdir(parents=True)
        compose_plugin(client, plugins)
        return ["env", f"DOCKER_CONFIG={plugins.parent}", *command]
    return command


@pytest.fixture(scope="package")
def older_compose() -> list[str]:
    """docker-compose, the program of its own."""
    try:
        need("docker-compose")
    except NoEngineError as error:
        pytest.skip(str(error))
    return ["docker-compose"]


@pytest.fixture(scope="package")
def compose_file() -> Path:
    return ROOT / "docker" / "compose.yaml"


@pytest.fixture(scope="package")
def stack(
    client: docker.DockerClient, images: Images, compose: list[str], compose_file: Path
) -> Iterator[Stack]:
    """docker/compose.yaml, running."""
    with Stack(client, images, compose, compose_file) as running:
        yield running


@pytest.fixture
def crowd(stack: Stack) -> Iterator[Crowd]:
    """Fifty sessions; one serves and another stands by."""
    stack.wait_standby()
    with Crowd(stack.port) as sessions:
        yield sessions
