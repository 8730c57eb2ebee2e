"""The image of pgbouncer in the place of others: configured by variables, and by mounted files."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import psycopg
import pytest
from testcontainers.core.container import DockerContainer

from testbed.waiting import free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from docker.models.networks import Network

    import docker
    from testbed.rundir import RunDir
    from tests.docker.images import Images

PASSWORD = "s3cr'e t"


@pytest.fixture(autouse=True)
def _without_reaper(client: docker.DockerClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its image is in a registry; what is started here is stopped here."""
    monkeypatch.setattr("testcontainers.core.config.testcontainers_config.ryuk_disabled", True)


@pytest.fixture
def network(client: docker.DockerClient) -> Iterator[Network]:
    network = client.networks.create(f"pgkeeper-test-{free_port()}")
    yield network
    network.remove()


@pytest.fixture
def database(network: Network, images: Images) -> Iterator[str]:
    """A PostgreSQL whose host name it is."""
    container = DockerContainer(images.postgres).with_env("POSTGRES_PASSWORD", PASSWORD)
    with container.with_kwargs(network=network.name, hostname="database"):
        wrapped = container.get_wrapped_container()
        command = ["pg_isready", "-h", "127.0.0.1"]
        wait_until(lambda: wrapped.exec_run(command).exit_code == 0, what="PostgreSQL", seconds=60)
        yield "database"


def answers(images: Images, network: Network, pgbouncer: DockerContainer, port: int) -> None:
    """Start it, ask through it, look at its health and at its end."""
    outside = free_port()
    pgbouncer.with_kwargs(
        network=network.name,
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges:true"],
    )
    pgbouncer.ports[f"{port}/tcp"] = ("127.0.0.1", outside)
    pgbouncer.tmpfs["/tmp"] = ""
    pgbouncer.tmpfs["/run/pgbouncer"] = "mode=0700,uid=6432,gid=6432"
    with pgbouncer:
        container = pgbouncer.get_wrapped_container()
        try:
            wait_until(
                lambda: container.exec_run("healthcheck.sh").exit_code == 0,
                what="pgbouncer",
                seconds=60,
            )
            with psycopg.connect(
                host="127.0.0.1",
                port=outside,
                user="postgres",
                dbname="postgres",
                password=PASSWORD,
                sslmode="disable",
            ) as connection:
                assert connection.execute("SELECT 1").fetchone() == (1,)
            assert PASSWORD not in container.logs().decode()
            assert container.exec_run("id -u").output == b"6432\n"
            container.kill(signal.SIGINT)  # SIGTERM waits for all clients, where there is no keeper
            assert container.wait(timeout=30)["StatusCode"] == 0
        finally:
            print(container.logs().decode())


def test_a_database_url(images: Images, network: Network, database: str) -> None:
    quoted = PASSWORD.replace(" ", "%20")
    pgbouncer = DockerContainer(images.pgbouncer)
    pgbouncer.with_env("DATABASE_URL", f"postgres://postgres:{quoted}@{database}/postgres")
    pgbouncer.with_env("POOL_MODE", "transaction")
    pgbouncer.with_env("AUTH_TYPE", "scram-sha-256")
    answers(images, network, pgbouncer, 5432)


def test_postgresql_variables_with_a_secret_file(
    images: Images, network: Network, database: str, run_dir: RunDir
) -> None:
    secret = run_dir.folder(f"secret-{free_port()}") / "password"
    secret.write_text(f"{PASSWORD}\n")
    pgbouncer = DockerContainer(images.pgbouncer)
    pgbouncer.with_env("POSTGRESQL_HOST", database)
    pgbouncer.with_env("POSTGRESQL_PASSWORD_FILE", "/secret")
    pgbouncer.with_env("PGBOUNCER_POOL_MODE", "transaction")
    pgbouncer.with_volume_mapping(str(secret), "/secret", "ro")
    answers(images, network, pgbouncer, 6432)


def test_mounted_files(images: Images, network: Network, database: str, run_dir: RunDir) -> None:
    files = run_dir.folder(f"mounted-{free_port()}")
    lines = (
        "[databases]",
        f"* = host={database}",
        "[pgbouncer]",
        "listen_addr = *",
        "listen_port = 7432",
        "auth_type = scram-sha-256",
        "auth_file = /etc/pgbouncer/userlist.txt",
    )
    (files / "pgbouncer.ini").write_text("\n".join(lines))
    (files / "userlist.txt").write_text(f'"postgres" "{PASSWORD}"\n')
    pgbouncer = DockerContainer(images.pgbouncer)
    for path in sorted(files.iterdir()):
        pgbouncer.with_volume_mapping(str(path), f"/etc/pgbouncer/{path.name}", "ro")
    answers(images, network, pgbouncer, 7432)


def test_nonsense_ends_the_container_with_one_line(
    client: docker.DockerClient, images: Images
) -> None:
    container = client.containers.create(
        images.pgbouncer, environment={"DB_HOST": "database", "POOL_MODE": "both"}
    )
    try:
        container.start()
        assert container.wait(timeout=60)["StatusCode"] == 64
        assert container.logs().decode() == (
            "entrypoint: POOL_MODE must be session, transaction or statement\n"
        )
    finally:
        container.remove(force=True)


def test_the_images_say_what_they_are_and_run_as_nobody_special(
    client: docker.DockerClient, images: Images
) -> None:
    for name in (images.pgbouncer, images.pgkeeper):
        config = client.images.get(name).attrs["Config"]
        assert config["User"] == "6432:6432"
        assert config["Entrypoint"] == ["entrypoint.sh"]
        assert config["StopSignal"] == "SIGTERM"
        assert config["Healthcheck"]["Test"]
        labels = config["Labels"]
        for label in ("title", "description", "licenses", "version", "revision"):
            assert labels[f"org.opencontainers.image.{label}"]
