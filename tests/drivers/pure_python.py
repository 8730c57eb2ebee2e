"""The work of test_drivers.py with pg8000, which speaks the protocol in Python."""

from __future__ import annotations

import io
import os
import random
import sys
import threading
from typing import Any

import pg8000.exceptions  # type: ignore[import-untyped, unused-ignore]
import pg8000.native  # type: ignore[import-untyped, unused-ignore]

_CLIENTS = 6


def _connect() -> pg8000.native.Connection:
    # It uses the unnamed statement across its Syncs, which only a server of one's own bears.
    return pg8000.native.Connection(
        "postgres",
        host=os.environ["PGHOST"],
        port=int(os.environ["PGPORT"]),
        database="session",
    )


def _text(connection: pg8000.native.Connection, chance: random.Random, number: int) -> int:
    text = "".join(chr(chance.randrange(32, 3000)) for _ in range(chance.randrange(1, 20_000)))
    _check(connection.run("select :text", text=text), [[text]])
    return 0


def _prepared(connection: pg8000.native.Connection, chance: random.Random, number: int) -> int:
    statement = connection.prepare("select :n::int + 1")
    for n in range(3):
        _check(statement.run(n=n), [[n + 1]])
    statement.close()
    return 0


def _transaction(connection: pg8000.native.Connection, chance: random.Random, number: int) -> int:
    commits = chance.random() < 0.5
    connection.run("start transaction")
    connection.run("insert into books values (:number)", number=number)
    connection.run("commit" if commits else "rollback")
    return int(commits)


def _error(connection: pg8000.native.Connection, chance: random.Random, number: int) -> int:
    try:
        connection.run("select nothing_of_that_name")
    except pg8000.exceptions.DatabaseError as error:
        _check(error.args[0]["C"], "42703")
    else:
        raise AssertionError("no error")
    return 0


def _copy_out(connection: pg8000.native.Connection, chance: random.Random, number: int) -> int:
    stream = io.BytesIO()
    connection.run("copy (select generate_series(1, 5000)) to stdout", stream=stream)
    _check(stream.getvalue(), b"".join(b"%d\n" % n for n in range(1, 5001)))
    return 0


def _copy_in(connection: pg8000.native.Connection, chance: random.Random, number: int) -> int:
    rows = chance.randrange(1000)
    connection.run("copy books from stdin", stream=io.BytesIO(b"%d\n" % number * rows))
    return rows


_KINDS = (_text, _prepared, _transaction, _error, _copy_out, _copy_in)


def _check(actual: object, expected: object) -> None:
    if actual != expected:
        raise AssertionError(f"not as it should be: {str(actual)[:200]}")


def _work(number: int, turns: int, errors: list[Any]) -> None:
    try:
        chance = random.Random(number)
        connection = _connect()
        written = 0
        for turn in range(turns):
            written += chance.choice(_KINDS)(connection, chance, number)
            print("a turn", flush=True)
            if turn % 40 == 39:
                connection.close()
                connection = _connect()
        rows = connection.run("select count(*) from books where client = :number", number=number)
        _check(rows, [[written]])
        connection.close()
    except Exception as error:  # whatever it is, the test must hear of it
        errors.append(error)
        print(f"client {number}: {error!r}", file=sys.stderr)


def main() -> int:
    """So many turns of each client, `TURNS`."""
    errors: list[Any] = []
    threads = [
        threading.Thread(target=_work, args=(number, int(os.environ["TURNS"]), errors))
        for number in range(_CLIENTS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return int(bool(errors))


if __name__ == "__main__":
    sys.exit(main())
