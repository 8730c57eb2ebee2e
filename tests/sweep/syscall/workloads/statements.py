"""Prepared statements, and messages larger than a buffer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.sweep.syscall.stage import Workload, act, cast, one_server
from tests.sweep.syscall.talker import (
    SYNC,
    bind,
    close_statement,
    describe,
    execute,
    parse,
    query,
)

if TYPE_CHECKING:
    from tests.sweep.syscall.stage import Stage


def _statements(stage: Stage) -> None:
    """Pipelines of named statements shared by two clients, some larger than pkt_buf."""
    a, b = stage.client("a"), stage.client("b")
    insert = "INSERT INTO acts(tag) VALUES ($1)"
    texts = [f"{insert} RETURNING length(tag) + {n}" for n in range(5)]
    texts.append(f"{insert} /* {'long' * 3000} */")
    for client in (a, b):
        client.ask(
            *(parse(f"s{n}", text) + describe(f"s{n}") for n, text in enumerate(texts)), SYNC
        )
    for turn in range(3):
        for client in (a, b):
            tag = f"{client.name}{turn}"
            batch = [
                bind(f"s{n}", f"{tag}-{n}") + execute() for n in (turn, turn + 2, 5, turn + 1, turn)
            ]
            client.send(*batch, bind(f"s{turn}", tag + "x" * 9000), execute(), SYNC)
        a.ready()
        b.ready()
    # The error leaves what follows it in its batch undone, a Parse and a Close among it.
    again = parse("t", texts[0]) + bind("t", "t") + execute()
    a.ask(close_statement("s3"), parse("s3", "SELECT 1/0"), bind("s3"), execute(), again, SYNC)
    other = parse("u", texts[0]) + bind("u", "u") + execute()
    a.ask(other, close_statement("u"), close_statement("nothing"), SYNC)
    b.ask(query("BEGIN"))
    b.ask(bind("s3", "in b"), execute(), parse("bad", "SELECT nothing"), other, SYNC)
    b.ask(bind("s4", "ignored"), execute(), SYNC)
    a.send(parse("v", texts[0] + " "), bind("v", "a waits"), execute(), SYNC)
    b.ask(query("ROLLBACK"))
    b.ask(bind("s4", "in b again"), execute(), SYNC)
    a.ready()


def _large(stage: Stage) -> None:
    """Messages larger than pkt_buf, in pieces that end within headers, names and values."""
    a, b, c, d = stage.talkers
    insert = "INSERT INTO acts(tag) VALUES ($1)"
    text = f"{insert} RETURNING length(tag) /* {'long' * 4000} */"
    batch = parse("s", text) + bind("s", "a" * 11000) + execute() + SYNC
    a.send_apart(batch, 3, 6, 4096, 9000, 16040, 16050, 20000, 27070)
    a.await_answer()  # or b's insert, in another server, could overtake it
    # In the middle of a's Bind b prepares the same text; c runs on a server that lacks it.
    half = bind("s", "b" * 9000) + execute() + SYNC
    a.send_apart(half[:5000], 1, 5)
    b.ask(parse("t", text) + bind("t", "b") + execute() + SYNC)
    c.ask(query("BEGIN"))
    a.send(half[5000:])
    a.ready(2)
    c.ask(parse("u", text), bind("u", "c"), execute(), SYNC)
    c.ask(query("COMMIT"))
    # A name that alone is larger than a buffer.
    name = "n" * 6000
    b.send_apart(parse(name, insert) + bind(name, "named") + execute() + SYNC, 4096, 6007, 6500)
    b.ready()
    b.ask(describe(name), close_statement(name), SYNC)
    # An unnamed one is never completely buffered, nor is a simple query.
    unnamed = parse("", text) + bind("", "u" * 9000) + execute() + SYNC
    c.send_apart(unnamed, 2, 5000, 16050, 16060, 20000)
    c.ready()
    b.send_apart(query(f"{act('simple')} /* {'long' * 3000} */"), 4, 5000)
    b.ready()
    # Half of a message, then nothing any more.
    c.send_apart(parse("never", text)[:9000], 4100)
    c.reset()
    d.ask(parse("v", text), SYNC)
    d.ask(query("BEGIN"), query(act("never committed")), times=2)
    d.send_apart(bind("v", "d" * 9000)[:6000], 2)
    d.abandon()
    a.ask(bind("s", "last"), execute(), SYNC)


WORKLOADS = (
    Workload(
        "statements", _statements, settings={"max_prepared_statements": 3}, pool="pool_size=1"
    ),
    Workload("large", _large, warm=one_server, opening=cast("a", "b", "c", "d")),
)
