"""What a workload is, and what its script may use while it runs."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pgkeeper.control.client import RequestFailedError
from pgkeeper.control.report import TopQuery, token_name
from testbed.pooler import ADMIN
from testbed.waiting import wait_until
from tests.sweep.syscall.console import CONSOLE, ask_console
from tests.sweep.syscall.talker import LostError, Talker, query

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from testbed.keeper import Keeper
    from testbed.postgres import Connection

USER = "sweeper"
MD5_USER = "sweeper_md5"
SCRAM_USER = "sweeper_scram"
PLAIN_USER = "sweeper_plain"
QUERY_USER = "sweeper_query"
# Known to auth_query alone, and trusted.
LATE_USER = "sweeper_late"
AUTH_USER = "sweeper_auth"
REPLICA_USER = "sweeper_replica"
SECRET = "wellknown"

PATIENCE_S = 5.0


class Stage:
    """What a script may use: clients of one pooler and one database, finished at its end.

    `watcher` is a session straight to the server; what went wrong in another thread than the
    script's is found in `failures`.
    """

    def __init__(self, keeper: Keeper, watcher: Connection, database: str) -> None:
        self.port = keeper.port
        self.database = database
        self.talkers: list[Talker] = []
        self.failures: list[str] = []
        self._keeper = keeper
        self._watcher = watcher
        self._happening: _Happening | None = None

    # clients

    def talker(
        self, name: str, *, receive_buffer: int | None = None, send_buffer: int | None = None
    ) -> Talker:
        """A connected client that has said nothing yet."""
        talker = Talker(name, self.port, receive_buffer=receive_buffer, send_buffer=send_buffer)
        self.talkers.append(talker)
        return talker

    def client(self, name: str, user: str = USER, **parameters: str) -> Talker:
        """A client that is logged in."""
        talker = self.talker(name)
        talker.log_in(user, self.database, SECRET, parameters)
        return talker

    # what happens while nobody serves

    @contextlib.contextmanager
    def while_nobody_serves(self, happens: Callable[[], None]) -> Iterator[None]:
        """Call `happens` once: after a death within the block and before anybody adopts.

        Without such a death it is called at the end of the block, as if it had happened a moment
        later. It may be called by another thread than the script's. Only workloads with
        `absences` are held back after a death.
        """
        happening = _Happening(happens)
        self._happening = happening
        yield
        self._happening = None
        happening.take_place()

    def nobody_serves(self) -> None:
        """Called after each death; what waits for it happens, and has happened on return."""
        happening = self._happening
        if happening is None:
            return
        try:
            happening.take_place()
        except (LostError, OSError) as error:
            self.failures.append(f"while nobody served: {error}")

    # beyond the pooler

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement straight on the server, as another user; its rows."""
        cursor = self._watcher.execute(statement)
        return cursor.fetchall() if cursor.description else []

    def await_sql(self, statement: str, what: str) -> None:
        """Return as soon as a query straight to the server gives true."""
        wait_until(lambda: self.sql(statement) == [(True,)], what=what, seconds=PATIENCE_S)

    def await_sleep(self, tag: str = "") -> None:
        """Return as soon as a server is in pg_sleep(), in a statement with `tag` in it."""
        sleeps = f"wait_event = 'PgSleep' AND query LIKE '%{tag}%'"
        self.await_sql(f"SELECT count(*) > 0 {_SERVERS} AND {sleeps}", "one sleeps")

    def await_lock(self) -> None:
        """Return as soon as a server waits for a lock."""
        self.await_sql(f"SELECT count(*) > 0 {_SERVERS} AND wait_event_type = 'Lock'", "one waits")

    def await_copied(self) -> None:
        """Return as soon as a server has taken rows in a COPY and waits for more."""
        self.await_sql(
            f"SELECT count(*) > 0 {_SERVERS} AND wait_event = 'ClientRead' AND pid IN"
            " (SELECT pid FROM pg_stat_progress_copy WHERE bytes_processed > 0)",
            "one copies",
        )

    def end_server(self, name: str) -> None:
        """Terminate the server whose last client had this application_name; it is gone then."""
        theirs = f"{_SERVERS} AND application_name = '{name}'"
        rows = self.sql(f"SELECT pg_terminate_backend(pid) {theirs}")
        if rows != [(True,)]:
            raise LostError(f"{len(rows)} servers of {name}")
        self.await_sql(f"SELECT count(*) = 0 {theirs}", f"the server of {name} has gone")

    def await_servers(self, count: int) -> None:
        """Return as soon as the hanger holds so many servers."""
        self._await_hanger(f"{count} servers", lambda: self._held()[1] == count)

    def await_clients(self, count: int) -> None:
        """Return as soon as the hanger holds so many clients."""
        self._await_hanger(f"{count} clients", lambda: self._held()[0] == count)

    def await_server_state(self, state: str) -> None:
        """Return as soon as there is one server, in this of PgBouncer's states."""

        def reached() -> bool:
            states = [s.state for s in self._keeper.sessions() if s.kind == "server"]
            return states == [state]

        self._await_hanger(f"one server, {state}", reached)

    def await_idle(self) -> None:
        """Return as soon as all servers are idle: no request to cancel is under way any more."""

        def reached() -> bool:
            return {s.state for s in self._keeper.sessions() if s.kind == "server"} == {"idle"}

        self._await_hanger("idle servers", reached)

    def await_released_servers(self) -> None:
        """Return as soon as each server that no client has can be given to one, or is gone."""

        def reached() -> bool:
            sessions = self._keeper.sessions()
            servers = [s for s in sessions if s.kind == "server"]
            clients = {s.token for s in sessions if s.kind == "client"}
            return all(s.linked in clients or s.state in ("idle", "used") for s in servers)

        self._await_hanger("servers that nobody has", reached)

    def console(self, command: str) -> list[tuple[str | None, ...]]:
        """Run a console command in a session of its own; its rows. Raises `LostError`."""
        return ask_console(self.port, command)

    def operator(self, name: str) -> Talker:
        """A session of the console."""
        talker = self.talker(name)
        talker.log_in(ADMIN, CONSOLE)
        return talker

    def end(self, client: Talker) -> None:
        """Have the hanger end a client, as `pgkeeper top` does; returns when it is let go of.

        Asked for again if the pgbouncer that was told has died: it may not have heard it.
        """
        tokens = self._tokens()
        here = [talker for talker in self.talkers if talker.socket.fileno() >= 0]
        if len(tokens) != len(here):
            raise LostError(f"the hanger has {len(tokens)} clients instead of {len(here)}")
        # Ascending, as they have come.
        token = tokens[here.index(client)]

        while token in self._tokens():
            told = self._keeper.wait_active().pgbouncer.incarnation
            # There is no such client any more, or nobody serves.
            with contextlib.suppress(RequestFailedError):
                self._keeper.client.kill(token_name(token))
            self._await_end(token, told)

    def _await_end(self, token: int, told: int) -> None:
        """Return as soon as that client is let go of, or the incarnation `told` has died."""
        wait_until(
            lambda: (
                token not in self._tokens() or self._keeper.status().pgbouncer.incarnation != told
            ),
            what="the hanger lets go of a client",
            seconds=PATIENCE_S,
            poll_s=0.005,
        )

    def _tokens(self) -> list[int]:
        answer = self._keeper.client.top(TopQuery(order="token"))
        return [row.session.token for row in answer.top.rows if row.session.held]

    def _held(self) -> tuple[int, int]:
        sessions = self._keeper.status().sessions
        return sessions.clients_held, sessions.servers_held

    def _await_hanger(self, what: str, condition: Callable[[], bool]) -> None:
        wait_until(condition, what=f"the hanger holds {what}", seconds=PATIENCE_S)


_SERVERS = "FROM pg_stat_activity WHERE usename LIKE 'sweeper%'"


class _Happening:
    """Something that takes place once, whoever of two threads comes first."""

    def __init__(self, what: Callable[[], None]) -> None:
        self._what = what
        self._lock = threading.Lock()
        self._past = False

    def take_place(self) -> None:
        """Returns when it has taken place."""
        with self._lock:
            if not self._past:
                self._past = True
                self._what()


@dataclass(frozen=True, slots=True)
class Workload:
    """A script, and what it needs.

    `pool` are options of the ini's database, `settings` of [pgbouncer], `peers` is [peers].
    Before the kills begin `warm` runs and ends, for a pool with servers (it is new otherwise);
    then `opening`, whose clients are those of the script. With `absences` a death is
    followed by a time in which something may happen. Where it is not `ordered` several clients
    are at work at once: what each has done counts, but not by whom a server was used before.
    """

    name: str
    script: Callable[[Stage], None]
    pool: str = ""
    settings: Mapping[str, str | int] = field(default_factory=dict)
    peers: Mapping[str, str] = field(default_factory=dict)
    warm: Callable[[Stage], None] | None = None
    opening: Callable[[Stage], None] | None = None
    absences: bool = False
    ordered: bool = True


def act(tag: str) -> str:
    """A statement that leaves a row behind."""
    return f"INSERT INTO acts(tag) VALUES ('{tag}')"


def one_server(stage: Stage) -> None:
    """For `warm`: a server stands ready."""
    stage.client("warm").ask(query("SELECT 1"))


def cast(*names: str, named: bool = False) -> Callable[[Stage], None]:
    """For `opening`: clients of these names log in; `named` tells the server their names too."""

    def opening(stage: Stage) -> None:
        for name in names:
            stage.client(name, **({"application_name": name} if named else {}))

    return opening
