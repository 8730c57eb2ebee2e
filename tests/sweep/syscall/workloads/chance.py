"""Sessions that dice have written: what a driver may say, in orders that nobody thought of.

The same number gives the same clients, the same bytes and the same settings, so that a run can be
compared with the one that nobody killed. Several clients have something open at a time: half a
message, half a login, a transaction, a COPY, a suspended portal, an answer that nobody reads.
Where all servers of its pool are in use a client asks and waits for its turn, else each waits for
its answer before another goes on. Some are cancelled, or lose their server, or are ended by an
operator, who also reconnects and reloads meanwhile.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from tests.sweep.syscall.outcome import CHECK_QUERY
from tests.sweep.syscall.stage import MD5_USER, QUERY_USER, SCRAM_USER, USER, Workload
from tests.sweep.syscall.talker import query
from tests.sweep.syscall.workloads.improviser import Allowed, Improviser

if TYPE_CHECKING:
    from tests.sweep.syscall.stage import Stage

_USERS = (USER, USER, MD5_USER, SCRAM_USER, QUERY_USER)


def by_chance(number: int) -> Workload:
    """The workload of this number."""
    dice = random.Random(number)
    mode = dice.choice([*4 * ["transaction"], *2 * ["session"], "statement"])
    clients = dice.randint(1, 4)
    servers = 4 if mode == "session" else dice.randint(1, 3)
    users = sorted({dice.choice(_USERS) for _ in range(clients)})
    settings: dict[str, str | int] = {
        "auth_type": "hba",
        "pool_mode": mode,
        "pkt_buf": dice.choice([512, 1024, 4096, 4096]),
        "sbuf_loopcnt": dice.choice([1, 2, 5, 5]),
        "max_prepared_statements": dice.choice([0, 3, 200]),
        "server_round_robin": dice.randint(0, 1),
        # RECONNECT ends servers in their login, which counts as a failure.
        "server_login_retry": 0,
    }
    if mode == "transaction" and dice.random() < 0.3:
        settings["server_reset_query_always"] = 1
    if dice.random() < 0.3:
        settings["track_extra_parameters"] = "IntervalStyle, DateStyle"
    if dice.random() < 0.2:
        settings["server_check_delay"] = 0
        settings["server_check_query"] = CHECK_QUERY
    if dice.random() < 0.2:
        settings["application_name_add_host"] = 1
    if dice.random() < 0.1:
        settings["server_lifetime"] = 0
    if dice.random() < 0.2:
        settings["server_fast_close"] = 1
    # auth_query needs a server of the database, which may be in use for long.
    if dice.random() < 0.2 and QUERY_USER not in users:
        settings["max_db_connections"] = servers
    named = mode == "session" or settings["max_prepared_statements"] != 0
    # Upstream takes statements of a pipeline with errors for known to a server that does not know
    # them, or has evicted them; which one that is then depends on the moment.
    deep = not named or (servers == 1 and settings["max_prepared_statements"] != 3)
    allowed = Allowed(named, deep, transactions=mode != "statement")
    shared = "max_db_connections" in settings

    def script(stage: Stage) -> None:
        _Play(stage, random.Random(number), users, servers, clients, allowed, shared=shared).run()

    def warm(stage: Stage) -> None:
        for user in users:
            full = [stage.client(f"{user} {server}", user) for server in range(servers)]
            for one in full:
                one.ask(query("BEGIN") if allowed.transactions else query("SELECT 'warm'"))
            for one in full:
                one.ask(query("COMMIT") if allowed.transactions else query("SELECT 'warm'"))
                # One by one, so that the servers are idle in the same order each time.
                one.finish()
                stage.await_released_servers()

    return Workload(
        f"chance-{number}",
        script,
        pool=f"pool_size={servers}",
        settings=settings,
        warm=warm,
        ordered=False,
    )


class _Play:
    """All clients of a run, and who does something next."""

    def __init__(
        self,
        stage: Stage,
        dice: random.Random,
        users: list[str],
        servers: int,
        clients: int,
        allowed: Allowed,
        *,
        shared: bool,
    ) -> None:
        self._stage = stage
        self._dice = dice
        self._users = users
        self._servers = servers
        self._clients = clients
        self._allowed = allowed
        self._shared = shared
        self._cast: list[Improviser] = []
        self._came = 0

    def run(self) -> None:
        """Some thirty turns, and then everything that is open comes to its end."""
        for _ in range(self._dice.randint(20, 40)):
            self._turn()
        for one in sorted(self._cast, key=lambda one: one.waits):
            one.go_on(to_the_end=True)

    def _turn(self) -> None:
        if len(self._cast) < self._clients:
            self._cast.append(self._newcomer())
            return
        if self._dice.random() < 0.03:
            self._stage.console(self._dice.choice(["RECONNECT", "RELOAD", "SHOW POOLS"]))
        one = self._dice.choice(self._cast)
        if one.may_leave and self._dice.random() < 0.08:
            self._see_off(one)
        elif one.waits and not self._is_server_free(one):
            return
        elif one.is_busy:
            one.go_on()
        elif self._is_server_free(one):
            one.begin()
        else:
            one.begin_to_wait()

    def _is_server_free(self, one: Improviser) -> bool:
        """Or will be as soon as those who wait have had their turns."""
        rivals = [
            other
            for other in self._cast
            if (self._shared or other.user == one.user) and not other.waits
        ]
        return sum(other.is_busy for other in rivals) < self._servers

    def _newcomer(self) -> Improviser:
        self._came += 1
        user = self._dice.choice(self._users)
        name = f"c{self._came}"
        one = Improviser(self._stage, name, user, self._dice, self._allowed)
        one.begin_to_log_in()
        return one

    def _see_off(self, one: Improviser) -> None:
        # Whom an operator ends is found by his place among all.
        self._stage.await_clients(len(self._cast))
        self._cast.remove(one)
        one.leave(may_ask=self._is_server_free(one))
        self._stage.await_clients(len(self._cast))
        self._stage.await_released_servers()
