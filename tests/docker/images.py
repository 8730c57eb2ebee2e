"""The images: the base, from a registry or debootstrap, and what is built on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import docker
from testbed.pginstall import installation
from tests.docker.engine import NoEngineError, need

if TYPE_CHECKING:
    from docker.models.images import Image

    from testbed.rundir import RunDir

ROOT = Path(__file__).resolve().parents[2]
#: Never the name of a registry's image: what we make of Debian's packages is ours.
BASE = "pgkeeper-test-base"
_SUITE = "trixie"
_DEBOOTSTRAP_S = 600.0


@dataclass(frozen=True, slots=True)
class Images:
    """Names of images. `again` is `pgbouncer` once more, as another release would be."""

    base: str
    postgres: str
    pgkeeper: str
    pgbouncer: str
    again: str
    vanilla: str


def build_all(client: docker.DockerClient, run_dir: RunDir) -> Images:
    """Everything that the tests run; quick if nothing has changed. Raises `NoEngineError`."""
    _have_base(client, run_dir)
    return Images(
        BASE,
        _build_postgres(client, run_dir),
        _build(client, "pgkeeper-test", "pgkeeper"),
        _build(client, "pgkeeper-test-pgbouncer", "pgbouncer"),
        _build(client, "pgkeeper-test-again", "pgbouncer", VERSION="again"),
        _build(client, "pgkeeper-test-vanilla", "pgbouncer", VARIANT="--vanilla"),
    )


def compose_plugin(client: docker.DockerClient, folder: Path) -> None:
    """Put Debian's `docker compose` into `folder`, for a docker that comes without."""
    image = _build_from(
        client,
        "pgkeeper-test-compose",
        ROOT / "tests" / "docker",
        "compose-plugin.Dockerfile",
        {"DEBIAN": BASE},
    )
    container = client.containers.create(image)
    try:
        chunks, _ = container.get_archive("/docker-compose")
        archive = folder / "plugin.tar"
        with archive.open("wb") as file:
            file.writelines(chunks)
    finally:
        container.remove()
    with tarfile.open(archive) as tar:
        tar.extract("docker-compose", folder, filter="data")
    archive.unlink()
    (folder / "docker-compose").chmod(0o755)


def _have_base(client: docker.DockerClient, run_dir: RunDir) -> None:
    try:
        client.images.get(BASE)
    except docker.errors.ImageNotFound:
        pass
    else:
        return
    try:
        image: Image = client.images.pull("debian", f"{_SUITE}-slim")
    except docker.errors.DockerException:
        _debootstrap(client, run_dir)
    else:
        image.tag(BASE)


def _debootstrap(client: docker.DockerClient, run_dir: RunDir) -> None:
    if os.geteuid() != 0:
        raise NoEngineError("no registry can be reached, and only root may run debootstrap")
    need("debootstrap")
    root, archive = run_dir.path / "base", run_dir.path / "base.tar"
    try:
        for command in (
            ["debootstrap", "--variant=minbase", _SUITE, root],
            ["chroot", root, "apt-get", "clean"],
            ["tar", "--create", "--file", archive, "--directory", root, "."],
        ):
            subprocess.run(
                command, capture_output=True, text=True, check=True, timeout=_DEBOOTSTRAP_S
            )
    except (OSError, subprocess.SubprocessError) as error:
        raise NoEngineError(f"no registry can be reached, nor debootstrap run: {error}") from error
    client.api.import_image_from_file(str(archive), repository=BASE)
    shutil.rmtree(root)
    archive.unlink()


def _build(client: docker.DockerClient, tag: str, dockerfile: str, **arguments: str) -> str:
    return _build_from(
        client, tag, ROOT, f"docker/{dockerfile}.Dockerfile", {"DEBIAN": BASE, **arguments}
    )


def _build_postgres(client: docker.DockerClient, run_dir: RunDir) -> str:
    """From the wheel's PostgreSQL, which needs no network."""
    context = run_dir.path / "postgres-image"
    context.mkdir()
    wheel = installation().bin_dir.parents[1]
    for folder in (wheel, wheel.with_name(f"{wheel.name}.libs")):
        shutil.copytree(
            folder, context / "site" / folder.name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("postgres.Dockerfile", "postgres-entrypoint.sh"):
        shutil.copy2(ROOT / "tests" / "docker" / name, context)
    return _build_from(
        client, "pgkeeper-test-postgres", context, "postgres.Dockerfile", {"DEBIAN": BASE}
    )


def _build_from(
    client: docker.DockerClient,
    tag: str,
    context: Path,
    dockerfile: str,
    arguments: dict[str, str],
) -> str:
    try:
        client.images.build(
            path=str(context),
            dockerfile=dockerfile,
            tag=tag,
            buildargs=arguments,
            network_mode="host",
            rm=True,
            forcerm=True,
        )
    except docker.errors.BuildError as error:
        log = "".join(str(line.get("stream", "")) for line in error.build_log)
        raise AssertionError(f"{dockerfile} cannot be built:\n{log[-4000:]}") from error
    return tag
