"""Scripts that need a rule which the sweep's own workloads could do without."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.sweep.syscall.stage import USER, Workload, act, one_server
from tests.sweep.syscall.talker import SYNC, bind, close_statement, execute, parse, query
from tests.sweep.syscall.workloads import WORKLOADS as SWEPT

if TYPE_CHECKING:
    from tests.sweep.syscall.stage import Stage

_INSERT = "INSERT INTO acts(tag) VALUES ($1)"
# PgBouncer's pkt_buf as it comes.
_BUFFER = 4096
# The other server of our pool, which is idle.
_OTHERS = (
    "FROM pg_stat_activity"
    " WHERE usename = current_user AND pid <> pg_backend_pid() AND state = 'idle'"
)


def _queue(stage: Stage) -> None:
    """Who waits for the server logged in last, and the latest of them asked first."""
    clients = [stage.client(name) for name in "abcd"]
    a, waiting = clients[0], clients[:0:-1]
    for turn in range(2):
        a.ask(query("BEGIN"))
        for client in waiting:
            # No server is needed for the answer to Close: when it comes, the client waits.
            client.send(close_statement("nothing"), query(act(f"{client.name}{turn}")))
            client.until(b"3")
        a.ask(query(act(f"a{turn}")))
        a.ask(query("COMMIT"))
        for client in waiting:
            client.ready()


def _turns(stage: Stage) -> None:
    """Who asked last the time before asks first, and nothing is committed until all have asked."""
    clients = [stage.client(name) for name in "abcd"]
    a, waiting = clients[0], clients[:0:-1]
    for turn in range(3):
        a.ask(query("BEGIN"))
        for client in waiting:
            client.send(query(act(f"{client.name}{turn}")))
            client.await_read()
        a.ask(query("COMMIT"))
        for client in waiting:
            client.ready()
        waiting.reverse()


def _resync(stage: Stage) -> None:
    """Buffers full of a little that can be sent and a Parse that lacks only its end."""
    a, b = stage.client("a"), stage.client("b")
    for number in range(4):
        name = f"{'long' * 10}{number}"
        statement = f"{_INSERT} RETURNING {number} /* {'.' * (_BUFFER - 150)} */"
        for client in (a, b):
            small = parse("", act(f"{client.name}{number}")) + bind("") + execute()
            client.ask(small, parse(name, statement), bind(name, "named"), execute(), SYNC)


def _halves(stage: Stage) -> None:
    """More clients than there are notes have sent a message in part, and nobody a whole one."""
    clients = [stage.client(f"c{number}") for number in range(20)]
    message = parse("half", _INSERT)
    for _ in range(3):
        for client in clients:
            client.send(message[:9])
        for client in clients:
            client.send(message[9:], bind("half", client.name), execute())
            client.ask(close_statement("half"), SYNC)


def _beside(stage: Stage) -> None:
    """Half a header lies in PgBouncer while another client works."""
    a, b = stage.client("a"), stage.client("b")
    half = query(act("b"))
    b.send(half[:3])
    for number in range(2):
        a.ask(query(act(f"a{number}")))
    b.ask(half[3:])


def _ahead(stage: Stage) -> None:
    """The beginning of a client's next message is there before the answer to the one before it."""
    a, b = stage.client("a"), stage.client("b")
    for number in range(2):
        following = query(act(f"a again {number}"))
        a.send(query(act(f"a{number}")) + following[:3])
        a.ready()
        # The only server must have been given back.
        b.ask(query(act(f"b{number}")))
        a.ask(following[3:])


def _answers(stage: Stage) -> None:
    """PgBouncer's own answers to a client that does not read them before it has asked more."""
    a = stage.talker("a", receive_buffer=4096)
    a.log_in(USER, stage.database)
    for number in range(2):
        a.send(close_statement("nothing") * 6000)
        a.ask(query(act(f"after the answers {number}")))


def _fakes(stage: Stage) -> None:
    """A client that says what the server need not hear, while another one works."""
    a, b = stage.client("a"), stage.client("b")
    text = f"{_INSERT} RETURNING tag"
    a.ask(parse("known", text), SYNC)
    a.ask(query("BEGIN"))
    for number in range(3):
        # Whatever the last act has left to be committed is committed by b.
        b.ask(query(act(f"b{number}")))
        a.send(parse(f"same{number}", text))
        b.ask(query(act(f"b{number} again")))
        a.ask(SYNC)
    a.ask(bind("same2", "a"), execute(), query("COMMIT"))


def _dying(stage: Stage) -> None:
    """A server that says why it goes while nobody uses it, and nobody will."""
    a, b = stage.client("a"), stage.client("b")
    a.ask(query("BEGIN"))
    b.ask(query(act("b")))
    a.ask(query(f"SELECT pg_terminate_backend(pid, 5000) {_OTHERS}"))
    for number in range(3):
        a.ask(query(act(f"a{number}")))
    a.ask(query("COMMIT"))


def _id_nobody_knows(stage: Stage) -> None:
    """The server keeps a statement whose text was too long for the ledger."""
    stage.client("a").ask(
        parse("small", "SELECT 1"), parse("large", f"SELECT 2 /* {'.' * 5_000_000} */"), SYNC
    )


def _new_statement(stage: Stage) -> None:
    a = stage.client("a")
    a.ask(parse("new", _INSERT), bind("new", "new"), execute(), SYNC)


WORKLOADS = (
    Workload("queue", _queue, pool="pool_size=1"),
    Workload("turns", _turns, pool="pool_size=1"),
    Workload("resync", _resync, pool="pool_size=1"),
    Workload("halves", _halves, pool="pool_size=1", warm=one_server),
    Workload("ahead", _ahead, pool="pool_size=1", warm=one_server),
    Workload("beside", _beside, pool="pool_size=1", warm=one_server),
    # The sockets are full with less.
    Workload("answers", _answers, settings={"tcp_socket_buffer": 4096}, warm=one_server),
    Workload("fakes", _fakes, pool="pool_size=2"),
    Workload("dying", _dying, pool="pool_size=2"),
    Workload(
        "new-statement",
        _new_statement,
        pool="pool_size=1",
        # The smallest ledger there is.
        settings={"max_client_conn": 5},
        warm=_id_nobody_knows,
    ),
)

_BY_NAME = {one.name: one for one in (*SWEPT, *WORKLOADS)}


def workload(name: str) -> Workload:
    """The workload of this name, ours or the sweep's. Raises KeyError."""
    return _BY_NAME[name]
