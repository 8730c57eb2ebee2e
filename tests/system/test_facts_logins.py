"""Users and their passwords over kills: old sessions, new logins, and new servers for both.

A server that PgBouncer opens after the kill needs the password, or the SCRAM keys that it learnt
when the client logged in before the kill. Each case demands all three, and that wrong passwords
are still refused.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import select
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import pq

from testbed import Auth, RawClient, wait_until
from testbed.account import give
from testbed.errors import ServerError
from testbed.ledgers import stopped
from testbed.pooler import ADMIN
from testbed.process import state

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from testbed import Keeper, Postgres, RunDir
    from testbed.pooler import Pooler
    from tests.fix_keeper import MakeKeeper

SECRET = "the secret"


@dataclass(frozen=True)
class Case:
    """How a user logs in to PgBouncer, and PgBouncer to PostgreSQL as that user."""

    name: str
    auth_type: str
    server: Auth
    #: What userlist.txt says of the user, made from what PostgreSQL stores; None: auth_query.
    listed: Callable[[str], str] | None
    settings: Mapping[str, str | int | None] = field(default_factory=dict)


AUTH_QUERY: dict[str, str | int | None] = {
    "auth_user": "postgres",
    "auth_query": "SELECT rolname, rolpassword FROM pg_authid WHERE rolname = $1",
}

CASES = [
    Case("scram-plain", "scram-sha-256", Auth.SCRAM, lambda stored: SECRET),
    Case("scram-verifier", "scram-sha-256", Auth.SCRAM, lambda stored: stored),
    Case("scram-auth-query", "scram-sha-256", Auth.SCRAM, None, AUTH_QUERY),
    Case(
        "scram-auth-dbname",
        "scram-sha-256",
        Auth.SCRAM,
        None,
        {**AUTH_QUERY, "auth_dbname": "session"},
    ),
    Case("md5-plain", "md5", Auth.MD5, lambda stored: SECRET),
    Case("md5-hash", "md5", Auth.MD5, lambda stored: stored),
    Case("md5-auth-query", "md5", Auth.MD5, None, AUTH_QUERY),
    Case("md5-means-scram-too", "md5", Auth.SCRAM, lambda stored: stored),
    Case("plain", "plain", Auth.PASSWORD, lambda stored: SECRET),
    Case("plain-to-scram", "plain", Auth.SCRAM, lambda stored: SECRET),
    Case("trust", "trust", Auth.SCRAM, lambda stored: SECRET),
]


@pytest.fixture(autouse=True)
def _console_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test bed itself logs in to the console with: libpq's default."""
    monkeypatch.setenv("PGPASSWORD", SECRET)


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture
def user(case: Case, postgres: Postgres) -> str:
    """A role that must log in to PostgreSQL as the case says."""
    name = "login_" + case.name.replace("-", "_")
    if not exists(postgres, name):
        postgres.add_user(name, SECRET, case.server)
    return name


@pytest.fixture
def keeper(case: Case, user: str, postgres: Postgres, make_keeper: MakeKeeper) -> Keeper:
    users = {ADMIN: SECRET}
    if case.listed is not None:
        users[user] = case.listed(postgres.verifier(user))
    return make_keeper(settings={"auth_type": case.auth_type, **case.settings}, users=users)


def exists(postgres: Postgres, name: str) -> bool:
    return bool(postgres.sql("SELECT 1 FROM pg_roles WHERE rolname = %s", (name,)))


def test_logins_before_and_after(keeper: Keeper, case: Case, user: str) -> None:
    with contextlib.closing(keeper.connect(user=user, password=SECRET)) as before:
        assert whoami(before) == user
        keeper.kill_bouncer()
        assert whoami(before) == user
        with contextlib.closing(keeper.connect(user=user, password=SECRET)) as after:
            assert whoami(after) == user
            keeper.kill_bouncer()
            assert whoami(before) == whoami(after) == user
        assert refused(keeper, user, "wrong") is (case.auth_type != "trust")


def test_an_old_session_gets_a_new_server(keeper: Keeper, postgres: Postgres, user: str) -> None:
    """Nobody logs in between kill and new server: what the ledger has must do."""
    with contextlib.closing(keeper.connect(user=user, password=SECRET)) as session:
        first = backend(session)
        keeper.kill_bouncer()
        for _ in range(2):
            lose_servers(keeper, postgres, user)
            second = backend(session)
            assert second != first
            first = second
            keeper.kill_bouncer()
        assert whoami(session) == user


def test_a_kill_while_a_server_logs_in(keeper: Keeper, postgres: Postgres, user: str) -> None:
    """The server's login begins anew, and nobody notices.

    Neither the pool's first client, which waits to be welcomed, nor one that is in and waits with
    a query.
    """
    with ThreadPoolExecutor() as threads:
        with stopped(postgres.pid):
            first = threads.submit(keeper.connect, user=user, password=SECRET)
            wait_until(lambda: waiting(keeper) == 1, what="a login waits for a server")
            keeper.kill_bouncer()
            wait_until(lambda: waiting(keeper) == 1, what="it still waits")
            assert not first.done()
        with contextlib.closing(first.result(10)) as session:
            assert whoami(session) == user
            lose_servers(keeper, postgres, user)
            with stopped(postgres.pid):
                second = threads.submit(whoami, session)
                wait_until(lambda: waiting(keeper) == 1, what="a query waits for a server")
                keeper.kill_bouncer()
                wait_until(lambda: waiting(keeper) == 1, what="it still waits")
                assert not second.done()
            assert second.result(10) == user


def test_a_kill_at_every_step_of_a_login(keeper: Keeper, user: str) -> None:
    """libpq's own steps: between any two of them pgbouncer dies, and the login goes on."""
    steps = 0
    for killed_at in range(1, 40):
        steps = login_step_by_step(keeper, user, killed_at)
        if steps < killed_at:
            break
    else:
        pytest.fail("a login has more steps than that?")
    assert steps >= 2


def login_step_by_step(keeper: Keeper, user: str, killed_at: int, **options: str) -> int:
    """Log in, kill pgbouncer after the step of that number; how many steps there were."""
    info = keeper.conninfo(
        user=user, password=SECRET, sslmode="disable", gssencmode="disable", **options
    )
    connection = pq.PGconn.connect_start(info.encode())
    try:
        steps = 0
        status = pq.PollingStatus.WRITING
        while status not in (pq.PollingStatus.OK, pq.PollingStatus.FAILED):
            wait_ready(connection.socket, status)
            status = pq.PollingStatus(connection.connect_poll())
            steps += 1
            if steps == killed_at:
                if "host" in options:
                    await_rest(keeper)
                keeper.kill_bouncer()
        assert status == pq.PollingStatus.OK, connection.error_message
        result = connection.exec_(b"SELECT session_user")
        assert result.get_value(0, 0) == user.encode(), result.error_message
        return steps
    finally:
        connection.finish()


def await_rest(keeper: Keeper) -> None:
    """Return when pgbouncer sleeps: it is in no system call on a Unix-domain socket then."""
    pid = keeper.bouncer_pid
    wait_until(lambda: state(pid) == "S", what="pgbouncer sleeps", poll_s=0)


def wait_ready(descriptor: int, status: pq.PollingStatus) -> None:
    """Wait until libpq can go on: it says for what."""
    poll = select.poll()
    reading = status == pq.PollingStatus.READING
    poll.register(descriptor, select.POLLIN if reading else select.POLLOUT)
    assert poll.poll(10_000), "the login hangs"


def test_the_password_is_still_asked_for_in_the_middle(make_keeper: MakeKeeper) -> None:
    """Killed between question and answer, a wrong answer is as wrong as before."""
    keeper = make_keeper(settings={"auth_type": "md5"}, users={"md5_listed": SECRET, ADMIN: SECRET})
    for secret in (SECRET, "wrong"):
        with RawClient(keeper.host, keeper.port) as client:
            client.start_up(user="md5_listed", database="transaction")
            wait_until(lambda: logging_in(keeper) == 1, what="it is being asked")
            keeper.kill_bouncer()
            if secret == SECRET:
                # The role does not exist in PostgreSQL: PgBouncer was content, PostgreSQL is not.
                with pytest.raises(ServerError, match="does not exist"):
                    client.finish_login(secret)
            else:
                with pytest.raises(ServerError, match="password authentication failed"):
                    client.finish_login(secret)


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "verifier"])
def test_a_password_that_has_changed(
    make_keeper: MakeKeeper, postgres: Postgres, plain: bool
) -> None:
    """What was learnt from the old one does not stand in the way of the new one."""
    user = "changes_to_plain" if plain else "changes_to_verifier"
    if not exists(postgres, user):
        postgres.add_user(user, SECRET, Auth.SCRAM)
    keeper = make_keeper(
        settings={"auth_type": "scram-sha-256"},
        users={user: postgres.verifier(user), ADMIN: SECRET},
    )
    with contextlib.closing(keeper.connect(user=user, password=SECRET)) as session:
        assert whoami(session) == user
        postgres.sql(f"ALTER ROLE {user} PASSWORD 'another secret'")
        keeper.users[user] = "another secret" if plain else postgres.verifier(user)
        keeper.write_files()
        keeper.kill_bouncer()
        lose_servers(keeper, postgres, user)
        if not plain:
            # Nobody but a client that logs in knows what the new keys are.
            assert keeper.sql("SELECT 1", user=user, password="another secret") == [(1,)]
        assert whoami(session) == user
        assert refused(keeper, user, SECRET)


@pytest.mark.parametrize("mapped", [False, True], ids=["by name", "by ident map"])
def test_peer_logins(
    make_keeper: MakeKeeper, postgres: Postgres, run_dir: RunDir, mapped: bool
) -> None:
    """The kernel says who it is, to the hanger's successors as well: killed at every step."""
    myself = pwd.getpwuid(os.geteuid()).pw_name
    user = "peer_mapped" if mapped else myself
    for name in (user, "peer_other"):
        if not exists(postgres, name):
            postgres.add_user(name)
    folder = run_dir.folder(f"peer-{mapped}")
    give(folder, run_dir.account)
    files = {
        "auth_hba_file": f"local all {ADMIN} trust\nhost all {ADMIN} 127.0.0.1/32 trust\n"
        f"local all all peer{' map=known' if mapped else ''}\n",
        "auth_ident_file": f"known {myself} {user}\n",
    }
    settings: dict[str, str | int | None] = {"auth_type": "hba", "unix_socket_dir": str(folder)}
    for setting, text in files.items():
        path = folder / setting
        path.write_text(text)
        give(path, run_dir.account)
        settings[setting] = str(path)
    keeper = make_keeper(settings=settings, users={user: "", "peer_other": ""})

    assert any(
        login_step_by_step(keeper, user, killed_at, host=str(folder)) < killed_at
        for killed_at in range(1, 40)
    )
    with contextlib.closing(keeper.connect(user=user, host=str(folder))) as session:
        for _ in range(3):
            await_rest(keeper)
            keeper.kill_bouncer()
            assert whoami(session) == user
            with pytest.raises(psycopg.OperationalError, match="unix socket login rejected"):
                keeper.connect(user="peer_other", host=str(folder))


def test_a_forced_user_keeps_its_servers(make_keeper: MakeKeeper, postgres: Postgres) -> None:
    """user= and password= of a database: a pool that no client's name belongs to."""
    if not exists(postgres, "forced"):
        postgres.add_user("forced", SECRET, Auth.SCRAM)
    target = f"host={postgres.host} port={postgres.port} dbname=postgres"
    keeper = make_keeper(
        databases={
            "transaction": f"{target} pool_mode=transaction user=forced password='{SECRET}'"
        },
        settings={"auth_type": "any"},
    )
    with contextlib.closing(keeper.connect(user="whoever")) as session:
        first = backend(session)
        keeper.kill_bouncer()
        assert (whoami(session), backend(session)) == ("forced", first)
        lose_servers(keeper, postgres, "forced")
        assert whoami(session) == "forced"


def whoami(connection: psycopg.Connection[tuple[object, ...]]) -> str:
    """The server's idea of who is logged in."""
    ((name,),) = connection.execute("SELECT session_user::text").fetchall()
    return str(name)


def backend(connection: psycopg.Connection[tuple[object, ...]]) -> object:
    """The server process that answers now."""
    return connection.execute("SELECT pg_backend_pid()").fetchall()[0][0]


def refused(pooler: Pooler, user: str, secret: str) -> bool:
    """Whether a login fails for its password."""
    try:
        pooler.sql("SELECT 1", user=user, password=secret)
    except psycopg.OperationalError as error:
        return "password authentication failed" in str(error) or "SASL" in str(error)
    return False


def lose_servers(keeper: Keeper, postgres: Postgres, user: str) -> None:
    """End the user's server connections and wait until PgBouncer has noticed."""
    postgres.sql(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = %s", (user,)
    )
    wait_until(
        lambda: not any(row["user"] == user for row in keeper.admin("SHOW SERVERS")),
        what="pgbouncer has no server of that user",
    )


def waiting(keeper: Keeper) -> int:
    """How many clients wait for a server."""
    return sum(int(row["cl_waiting"]) for row in keeper.admin("SHOW POOLS"))


def logging_in(keeper: Keeper) -> int:
    """How many clients are in the middle of their login."""
    return sum(held.kind == "client" and held.state == "login" for held in keeper.sessions())
