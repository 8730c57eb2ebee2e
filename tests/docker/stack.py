"""A running Compose file, with `docker compose` or the older docker-compose."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any, Self

from testbed.waiting import free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from docker.models.containers import Container

    import docker
    from tests.docker.images import Images

_UP_S = 180.0
_SETTLE_S = 60.0


class Stack:
    """One project of a Compose file; use it as a context manager, which starts and removes it.

    `compose` is the command, `services` the ones to start (all, if empty), `variables` those of
    the file.
    """

    def __init__(
        self,
        client: docker.DockerClient,
        images: Images,
        compose: Sequence[str],
        file: Path,
        *,
        services: Sequence[str] = (),
        **variables: str,
    ) -> None:
        self.port = free_port()
        self._client = client
        self._project = f"pgkeeper-test-{self.port}"
        self._command = [*compose, "-f", str(file), "-p", self._project]
        self._services = services
        self._variables = {
            "POSTGRES_IMAGE": images.postgres,
            "PGKEEPER_IMAGE": images.pgkeeper,
            "PGBOUNCER_IMAGE": images.pgbouncer,
            "ANCHOR_IMAGE": images.base,
            "PORT": str(self.port),
            **variables,
        }

    def __enter__(self) -> Self:
        try:
            self.up()
            self.wait_serving()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        print(self.compose("logs", "--no-color", "--tail=60"))
        self.compose("down", "--volumes", "--remove-orphans", "--timeout=2")

    def up(self, **variables: str) -> None:
        """Make it so, with other variables than before where they are given."""
        self._variables.update(variables)
        self.compose("up", "--detach", "--no-build", *self._services)

    def compose(self, *words: str) -> str:
        """Run a command of Compose; what it printed."""
        done = subprocess.run(
            [*self._command, *words],
            env={**os.environ, **self._variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_UP_S,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stdout}"
        return done.stdout

    def container(self, service: str) -> Container:
        """The container of a service, as it is now."""
        (found,) = self._client.containers.list(
            all=True,
            filters={
                "label": [
                    f"com.docker.compose.project={self._project}",
                    f"com.docker.compose.service={service}",
                ]
            },
        )
        return found

    def docker(self, *words: str) -> None:
        """Run the docker command."""
        subprocess.run([_docker(), *words], check=True, capture_output=True, timeout=_UP_S)

    def kill(self, service: str) -> None:
        """`docker kill --signal=SIGKILL`."""
        self.docker("kill", "--signal=SIGKILL", self.container(service).name)

    def start(self, service: str) -> None:
        """`docker start`."""
        self.docker("start", self.container(service).name)

    def run_in(self, service: str, *command: str) -> tuple[int, str]:
        """Run a command in a service's container: its exit status and standard output."""
        result = self.container(service).exec_run(list(command), demux=True)
        return result.exit_code, (result.output[0] or b"").decode()

    def status(self) -> dict[str, Any]:
        """`pgkeeper status --json`; empty if nobody answers."""
        try:
            _, text = self.run_in("pgkeeper", "pgkeeper", "status", "--json")
        except Exception:  # between two containers
            return {}
        found: dict[str, Any] = json.loads(text) if text.startswith("{") else {}
        return found

    def wait_serving(self) -> None:
        """Until pgbouncer answers on the port, and a standby waits where there is to be one."""
        wait_until(self._healthy, what="the services are there", seconds=_UP_S, poll_s=0.2)

    def _healthy(self) -> bool:
        code, _ = self.run_in("postgres", "pg_isready", "-h", "127.0.0.1")
        if code:
            return False
        if not self._services:
            return self.has_standby()
        code, _ = self.run_in("pgbouncer", "healthcheck.sh")
        return code == 0

    def has_standby(self) -> bool:
        """Whether one serves and another stands by."""
        pgbouncer = self.status().get("pgbouncer", {})
        return pgbouncer.get("state") == "active" and pgbouncer.get("standby_pid") is not None

    def standbys(self) -> int:
        """How many have begun to stand by since this pgkeeper has started, as its log says."""
        return int(self.container("pgkeeper").logs().count(b"bouncer-standby"))

    def restart(self, service: str) -> None:
        """Kill the container of a pgbouncer, start it, and wait until it stands by."""
        before = self.standbys()
        self.kill(service)
        self.start(service)
        wait_until(
            lambda: self.standbys() > before,
            what=f"{service} stands by again",
            seconds=_SETTLE_S,
            poll_s=0.05,
        )

    def wait_standby(self) -> None:
        """Until one serves and another stands by."""
        wait_until(self.has_standby, what="a standby", seconds=_SETTLE_S, poll_s=0.1)


def _docker() -> str:
    found = shutil.which("docker")
    assert found is not None
    return found
