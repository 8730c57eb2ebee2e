"""Statements of every kind, mostly of one client alone."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from tests.sweep.syscall.stage import Workload, act, cast, one_server
from tests.sweep.syscall.talker import (
    FLUSH,
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


def _simple(stage: Stage) -> None:
    a = stage.client("a")
    a.ask(query(act("one")))
    a.ask(query("SELECT n, repeat('x', n) FROM generate_series(1, 50) n"))
    a.ask(query("SELECT 1/0"))
    a.ask(query(act("two") + "; " + act("three")))
    a.ask(query(""))
    a.ask(query("SELECT nothing FROM nowhere"))
    a.ask(query("SET application_name = 'changed'"))
    a.ask(query(act("four") + " RETURNING tag"))


def _extended(stage: Stage) -> None:
    """More named statements than max_prepared_statements: some are evicted and come back."""
    a, b = stage.client("a"), stage.client("b")
    insert = "INSERT INTO acts(tag) VALUES ($1)"
    a.ask(parse("", insert), bind("", "unnamed"), execute(), SYNC)
    for number in range(5):
        statement = f"{insert} RETURNING tag || ' {number}'"
        a.ask(parse(f"s{number}", statement), describe(f"s{number}"), SYNC)
        a.ask(bind(f"s{number}", f"a{number}"), execute(), SYNC)
    # The same text under another name, and by another client: one statement on the server.
    b.ask(parse("other", f"{insert} RETURNING tag || ' 0'"), bind("other", "b"), execute(), SYNC)
    for number in (0, 3, 1, 4, 0):
        a.ask(bind(f"s{number}", f"again{number}"), execute(), SYNC)
    a.ask(close_statement("s0"), SYNC)
    a.ask(parse("bad", "SELECT nothing FROM nowhere"), SYNC)
    a.ask(
        bind("s1", "in one go"), execute(), close_statement("s1"), bind("s2", "go"), execute(), SYNC
    )
    b.ask(bind("other", "b again"), execute(), SYNC)
    a.send(parse("s1", insert), describe("s1"), FLUSH)
    a.until(b"n")
    a.ask(bind("s1", "after a flush"), execute(), SYNC)
    # PgBouncer knows no such statement, and ends the session.
    a.send(bind("s0", "closed"), execute(), SYNC)
    a.until(b"E")


def _transaction(stage: Stage) -> None:
    a = stage.client("a")
    a.ask(query("BEGIN"))
    a.ask(query("CREATE TEMP TABLE mine(n int) ON COMMIT DROP"))
    a.ask(query("INSERT INTO mine VALUES (1), (2)"))
    a.ask(query(act("rolled back")))
    a.ask(query("SELECT n + 0 FROM mine"))
    a.ask(query("SELECT 1/0"))
    a.ask(query("SELECT 'ignored'"))
    a.ask(query("ROLLBACK"))
    a.ask(query("BEGIN"), query(act("committed")), query("COMMIT"), times=3)
    a.ask(query("BEGIN; SELECT count(*) FROM acts"))
    a.ask(query("SAVEPOINT s"))
    a.ask(query("SELECT nothing"))
    a.ask(query("ROLLBACK TO s"))
    a.ask(query(act("after the savepoint")))
    a.ask(query("COMMIT"))


def _pipeline(stage: Stage) -> None:
    a = stage.client("a")
    insert = "INSERT INTO acts(tag) VALUES ($1)"
    messages = []
    for number in range(30):
        statement = "SELECT 1/0" if number == 17 else insert
        values = () if number == 17 else (f"p{number}",)
        messages += [parse("", statement), bind("", *values), execute()]
        if number % 5 == 4:
            messages.append(SYNC)
    a.ask(*messages, times=6)
    # Once more in pieces that end within a header and within a body.
    data = b"".join(messages)
    cuts = [0, 3, 57, 400, 1001, 1002, len(data)]
    for start, end in itertools.pairwise(cuts):
        a.send(data[start:end])
    a.ready(6)


def _hundred(stage: Stage) -> None:
    """Pipelines of a hundred statements with an error in them, written in one piece."""
    (a,) = stage.talkers
    insert = "INSERT INTO acts(tag) VALUES ($1)"
    wrong = parse("", "SELECT 1/0") + bind("") + execute()

    def hundred(tag: str) -> list[bytes]:
        return [
            wrong if number == 57 else parse("", insert) + bind("", f"{tag}{number}") + execute()
            for number in range(100)
        ]

    a.ask(*hundred("undone"), SYNC)
    a.ask(*(one + SYNC for one in hundred("each")), times=100)
    a.ask(query("BEGIN"), *hundred("failed"), SYNC, query("COMMIT"), times=3)
    statements = [act(f"simple{number}") for number in range(100)]
    statements[57] = "SELECT 1/0"
    a.ask(*map(query, statements), times=100)
    a.ask(query("SELECT count(*) FROM acts"))


WORKLOADS = (
    Workload("simple", _simple),
    Workload("extended", _extended, settings={"max_prepared_statements": 3}, pool="pool_size=1"),
    Workload("transaction", _transaction, warm=one_server),
    Workload("pipeline", _pipeline, warm=one_server),
    Workload("hundred", _hundred, warm=one_server, opening=cast("a")),
)
