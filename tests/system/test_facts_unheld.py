"""Sessions that cannot be held: served, named in status, ended in order, nobody else's matter."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from typing import TYPE_CHECKING

import psycopg
import pytest

from testbed import RawClient
from testbed.account import give
from testbed.bystander import Bystander
from testbed.errors import ConnectionLostError, ServerError
from testbed.ledgers import check_ledger
from testbed.pooler import ADMIN

if TYPE_CHECKING:
    from pathlib import Path

    from testbed import Keeper, RunDir
    from tests.fix_keeper import MakeKeeper


@pytest.fixture(scope="session")
def certificate(run_dir: RunDir) -> tuple[Path, Path]:
    """A self-signed certificate and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    folder = run_dir.folder("certificate")
    certificate, key = folder / "server.crt", folder / "server.key"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"),
            *("-days", "2", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    for path in (certificate, key):
        path.chmod(0o600)
        give(path, run_dir.account)
    return certificate, key


def test_tls(make_keeper: MakeKeeper, certificate: tuple[Path, Path]) -> None:
    keeper = make_keeper(
        settings={
            "client_tls_sslmode": "allow",
            "client_tls_cert_file": str(certificate[0]),
            "client_tls_key_file": str(certificate[1]),
        }
    )
    with Bystander(keeper):
        for _ in range(2):
            with contextlib.closing(keeper.connect(sslmode="require")) as encrypted:
                assert encrypted.pgconn.ssl_in_use
                assert encrypted.execute("SELECT 1").fetchall() == [(1,)]
                assert keeper.status().sessions.unheld == {"tls": 1}
                rows = [row for row in keeper.sessions() if row.kind == "client" and not row.held]
                assert [row.reason for row in rows] == ["tls"]
                keeper.kill_bouncer()
                assert keeper.status().sessions.unheld == {}
                with pytest.raises(psycopg.OperationalError):
                    encrypted.execute("SELECT 1")
            check_ledger(keeper)


def test_tls_that_was_set_at_the_console(
    make_keeper: MakeKeeper, certificate: tuple[Path, Path]
) -> None:
    """A successor offers it, too."""
    keeper = make_keeper(
        settings={
            "client_tls_sslmode": "disable",
            "client_tls_cert_file": str(certificate[0]),
            "client_tls_key_file": str(certificate[1]),
        }
    )
    keeper.admin("SET client_tls_sslmode = allow")
    keeper.kill_bouncer()
    with contextlib.closing(keeper.connect(sslmode="require")) as encrypted:
        assert encrypted.pgconn.ssl_in_use


def test_a_console_that_suspended(keeper: Keeper) -> None:
    """What it asked for ends with the process, so it is not held as if nothing had been."""
    with (
        Bystander(keeper),
        RawClient(keeper.host, keeper.port).login(user=ADMIN, database="pgbouncer") as console,
    ):
        console.query("SUSPEND")
        (row,) = [row for row in keeper.sessions() if not row.held]
        assert (row.kind, row.reason) == ("client", "console")
        keeper.kill_bouncer()
        # It stood between two messages, so it is told.
        with pytest.raises(ServerError, match="pgbouncer was restarted") as told:
            console.read()
        assert (told.value.fields["S"], told.value.sqlstate) == ("FATAL", "57P01")
        with pytest.raises(ConnectionLostError):
            console.read()
        check_ledger(keeper)
