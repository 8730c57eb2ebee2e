"""A Docker engine for the tests: the one that answers, or Debian's, installed and started for them.

Ours keeps its images in pgkeeper's cache, so that only the first run builds them, and leaves the
machine's network alone: no bridge of its own, no rules of iptables, ports by docker-proxy.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import docker
from pgkeeper.bouncer.build import cache_dir
from testbed.process import Process
from testbed.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from testbed.rundir import RunDir

_START_S = 90.0
_INSTALL_S = 600.0
#: How long layers are kept that no image has any more.
_KEPT_FOR = "168h"
_PACKAGES = {
    "dockerd": "docker.io",
    "docker-compose": "docker-compose",
    "debootstrap": "debootstrap",
}


class NoEngineError(Exception):
    """There is no engine and none can be had; the text is the one reason."""


@contextmanager
def engine(run_dir: RunDir) -> Iterator[docker.DockerClient]:
    """An engine that answers; `DOCKER_HOST` is its address. Raises `NoEngineError`."""
    with ExitStack() as stack:
        client = _answering()
        if client is None:
            if os.geteuid() != 0:
                raise NoEngineError("no Docker engine answers, and only root may start one")
            _install(("dockerd", "docker-compose"))
            client = _answering() or stack.enter_context(_started(run_dir))
        stack.callback(client.close)
        yield client


def need(program: str) -> None:
    """Make sure of a program, with Debian's package where we may. Raises `NoEngineError`."""
    if shutil.which(program) is None:
        if os.geteuid() != 0:
            raise NoEngineError(f"{program} is not installed, and only root may install it")
        _install((program,))


def _answering() -> docker.DockerClient | None:
    client = None
    try:
        client = docker.from_env(timeout=60)
        client.ping()
    except docker.errors.DockerException:
        if client is not None:
            client.close()
        return None
    return client


def _install(programs: Sequence[str]) -> None:
    missing = [_PACKAGES[program] for program in programs if shutil.which(program) is None]
    if not missing:
        return
    apt = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300"]
    for command in ([*apt, "update"], [*apt, "install", "-y", "--no-install-recommends", *missing]):
        try:
            subprocess.run(
                command,
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                capture_output=True,
                check=True,
                timeout=_INSTALL_S,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise NoEngineError(f"{' '.join(missing)}: cannot be installed: {error}") from error


def _clear(client: docker.DockerClient) -> None:
    """Remove what a run that was killed has left in our engine, and layers of long ago."""
    for container in client.containers.list(all=True):
        container.remove(force=True)
    client.networks.prune()
    for volume in client.volumes.list():
        volume.remove(force=True)
    client.images.prune(filters={"dangling": True, "until": _KEPT_FOR})


def _forwards_nothing() -> bool:
    """Whether containers could not reach each other without rules: an engine has been here."""
    done = subprocess.run(
        ["iptables", "-S", "FORWARD"], capture_output=True, text=True, check=False
    )
    return "-P FORWARD DROP" in done.stdout


@contextmanager
def _started(run_dir: RunDir) -> Iterator[docker.DockerClient]:
    root = cache_dir() / "docker"
    root.mkdir(parents=True, exist_ok=True)
    socket = run_dir.path / "docker.sock"
    log = run_dir.path / "dockerd.log"
    with (root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two engines cannot share their images
        process = Process(
            run_dir,
            "dockerd",
            [
                "dockerd",
                f"--data-root={root / 'data'}",
                f"--exec-root={run_dir.path / 'docker'}",
                f"--pidfile={run_dir.path / 'dockerd.pid'}",
                f"--host=unix://{socket}",
                "--bridge=none",
                f"--iptables={str(_forwards_nothing()).lower()}",
                "--ip6tables=false",
                "--ip-forward=false",
            ],
            output=log,
            privileged=True,
        )
        before = os.environ.get("DOCKER_HOST")
        os.environ["DOCKER_HOST"] = f"unix://{socket}"
        try:
            client: list[docker.DockerClient] = []

            def ready() -> bool:
                found = _answering() if process.running else None
                if found is not None:
                    client.append(found)
                return bool(client) or not process.running

            wait_until(ready, what="dockerd answers", seconds=_START_S, poll_s=0.1)
            if not client:
                lines = log.read_text().splitlines()
                raise NoEngineError(f"dockerd cannot be run here: {lines[-1] if lines else ''}")
            _clear(client[0])
            yield client[0]
        finally:
            if before is None:
                del os.environ["DOCKER_HOST"]
            else:
                os.environ["DOCKER_HOST"] = before
            if process.running:
                process.stop(signal.SIGTERM, 60.0)
            _unmount(run_dir.path / "docker")


def _unmount(folder: Path) -> None:
    """What dockerd leaves mounted: the network namespace of containers that have the host's."""
    for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
        target = Path(line.split()[1])
        if target.is_relative_to(folder):
            subprocess.run(["umount", target], check=True)
