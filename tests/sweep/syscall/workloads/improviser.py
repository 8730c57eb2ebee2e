"""A client that says what dice decide."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.rawclient import frontend, text
from tests.sweep.syscall.stage import SECRET, act
from tests.sweep.syscall.talker import (
    COPY_DONE,
    FLUSH,
    SYNC,
    bind,
    close_statement,
    copy_data,
    describe,
    execute,
    parse,
    query,
    startup,
)

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

    from tests.sweep.syscall.stage import Stage
    from tests.sweep.syscall.talker import Talker

    #: Something a client does. It yields whenever others may act, and holds its server meanwhile:
    #: whether all that it said is answered or waits for no answer, so that it may leave.
    Deed = Iterator[bool]

_INSERT = "INSERT INTO acts(tag) VALUES ($1)"
_DESCRIBE_PORTAL = frontend("D", b"P", text(""))
_INT4PL = 177
_SETTINGS = (
    "application_name = 'dice {}'",
    "TimeZone = 'Etc/GMT-{}'",
    "DateStyle = 'SQL, {}'",
    "standard_conforming_strings = {}",
    "IntervalStyle = 'sql_standard' -- {}",
)
# In lower case, to be told from what PgBouncer says between its clients.
_FORGETTING = ("deallocate all", "discard all")
_PREPARED = (_INSERT, f"{_INSERT} RETURNING tag", "SELECT length($1), repeat('y', 300)")


@dataclass(frozen=True, slots=True)
class Allowed:
    """What the settings of a run allow its clients.

    `named`: prepared statements may have names. `deep`: several may be in one pipeline.
    `transactions`: there may be some of more than one message.
    """

    named: bool
    deep: bool
    transactions: bool


class Improviser:
    """One client, with what it knows of its session."""

    def __init__(
        self, stage: Stage, name: str, user: str, dice: random.Random, allowed: Allowed
    ) -> None:
        self.user = user
        self._name = name
        self._stage = stage
        self._dice = dice
        self._may = allowed
        # Small ones fill up, so that pgbouncer has to wait for us.
        small = 4096 if dice.random() < 0.3 else None
        self._talker: Talker = stage.talker(name, receive_buffer=small)
        self._open: Deed | None = None
        self._may_leave = True
        #: Whether it has asked while all servers were in use.
        self.waits = False
        self._statements: dict[str, str] = {}
        self._counted = 0

    @property
    def is_busy(self) -> bool:
        """Whether it may hold a server."""
        return self._open is not None

    @property
    def may_leave(self) -> bool:
        """Whether nothing is under way that an end would overtake."""
        return self._may_leave

    def begin_to_log_in(self) -> None:
        """Up to where others may act."""
        self._open = self._log_in()
        self.go_on()

    def _log_in(self) -> Deed:
        parameters = {}
        if self._dice.random() < 0.5:
            parameters["application_name"] = self._name
        if self._dice.random() < 0.3:
            parameters["TimeZone"] = f"Etc/GMT+{self._dice.randint(1, 9)}"
        data = startup(self.user, self._stage.database, parameters)
        yield from self._send(data)
        self._talker.finish_login(self.user, SECRET)

    def leave(self, *, may_ask: bool) -> None:
        """In one of the ways in which clients end. `may_ask`: there is a server for it."""
        match self._dice.randint(0, 5):
            case 0:
                self._talker.abandon()
            case 1:
                self._talker.reset()
            case 2 if may_ask and not self.is_busy:
                self._talker.send(query("SELECT pg_terminate_backend(pg_backend_pid())"))
                self._talker.drain()
            case 3:
                self._stage.end(self._talker)
                self._talker.drain()
            case ending:
                self._talker.finish(terminate=ending % 2 == 0)

    def begin(self) -> None:
        """Something new, up to where others may act."""
        deeds: list[Callable[[], Deed]] = [
            self._query,
            self._query,
            self._extended,
            self._extended,
            self._copy_in,
            self._copy_out,
            self._function_call,
            self._unread_answer,
            self._cancelled,
        ]
        if self._may.transactions:
            deeds += [self._transaction, self._transaction]
        if self._may.deep:
            deeds.append(self._pipeline)
        self._open = self._dice.choice(deeds)()
        self.go_on()

    def begin_to_wait(self) -> None:
        """Something that is answered by itself as soon as there is a server."""
        self.waits = True
        self._open = self._dice.choice([self._late_query, self._late_statement])()
        self.go_on()

    def go_on(self, *, to_the_end: bool = False) -> None:
        """Up to where others may act again."""
        for may_leave in self._open or ():
            self._may_leave = may_leave
            if not to_the_end:
                return
        self._open, self._may_leave, self.waits = None, True, False

    # deeds

    def _query(self) -> Deed:
        yield from self._send(query(self._statement()))
        self._talker.ready()

    def _late_query(self) -> Deed:
        self._talker.send(query(self._short_statement()))
        self._talker.await_read()
        yield False
        self._talker.ready()

    def _late_statement(self) -> Deed:
        self._talker.send(*self._step(), SYNC)
        # Of a larger one the end stays in the kernel while it waits.
        yield False
        self._talker.ready()

    def _transaction(self) -> Deed:
        self._talker.ask(query("BEGIN"))
        deeds = [
            self._query,
            self._extended,
            self._suspended,
            self._copy_in,
            self._copy_out,
            self._unread_answer,
            self._cancelled,
            self._cursor,
        ]
        for _ in range(self._dice.randint(1, 4)):
            yield True
            yield from self._dice.choice(deeds)()
        yield True
        self._talker.ask(query(self._dice.choice(["COMMIT", "COMMIT", "ROLLBACK"])))

    def _extended(self) -> Deed:
        steps = self._dice.randint(1, 4) if self._may.deep else 1
        messages = [m for _ in range(steps) for m in self._step()]
        yield from self._send(b"".join(messages) + SYNC)
        self._talker.ready()

    def _pipeline(self) -> Deed:
        data, syncs = b"", 0
        for _ in range(self._dice.randint(5, 40)):
            if self._dice.random() < 0.2:
                # After an error a Query is passed over like the rest, up to the Sync.
                data, syncs = data + SYNC + query(self._short_statement()), syncs + 2
            else:
                data += b"".join(self._step())
                if self._dice.random() < 0.4:
                    data, syncs = data + SYNC, syncs + 1
        yield from self._send(data + SYNC)
        self._talker.ready(syncs + 1)

    def _suspended(self) -> Deed:
        rows = "SELECT n, repeat('z', n) FROM generate_series(1, 20) n"
        self._talker.send(parse("", rows), bind(""), _DESCRIBE_PORTAL, execute(3), FLUSH)
        while self._next_of(b"s", b"C", b"E") == b"s":
            yield True
            if self._dice.random() < 0.2:
                break
            self._talker.send(execute(self._dice.randint(1, 9)), FLUSH)
        self._talker.ask(SYNC)

    def _copy_in(self) -> Deed:
        yield from self._send(query("COPY acts(tag) FROM STDIN"))
        if self._next_of(b"G", b"Z") == b"Z":
            return
        for _ in range(self._dice.randint(0, 5)):
            lines = "".join(f"{self._tag()}{'.' * self._size(3000)}\n" for _ in range(3)).encode()
            yield from self._send(copy_data(lines))
            yield False
        if self._dice.random() < 0.3:
            yield from self._send(frontend("f", b"thrown away\0"))
        else:
            yield from self._send(COPY_DONE)
        self._talker.ready()

    def _copy_out(self) -> Deed:
        rows = self._dice.choice([0, 10, 300, 2000])
        self._talker.send(
            query(f"COPY (SELECT n, md5(n::text) FROM generate_series(1, {rows}) n) TO STDOUT")
        )
        yield from self._read_late()

    def _unread_answer(self) -> Deed:
        rows = self._dice.choice([40, 400])
        self._talker.send(query(f"SELECT n, repeat('u', 700) FROM generate_series(1, {rows}) n"))
        yield from self._read_late()

    def _function_call(self) -> Deed:
        numbers = struct.pack("!iiii", 4, self._dice.randint(0, 99), 4, 1)
        body = struct.pack("!ihhh", _INT4PL, 1, 1, 2) + numbers + struct.pack("!h", 1)
        yield from self._send(frontend("F", body))
        self._talker.ready()

    def _cancelled(self) -> Deed:
        if self._talker.transcript.endswith(b"E"):
            return  # in a transaction that has failed it would not begin
        tag = self._tag()
        self._talker.send(query(f"SELECT pg_sleep(60) /* {tag} */"))
        self._stage.await_sleep(tag)
        yield False
        self._talker.cancel()
        self._talker.ready()

    def _cursor(self) -> Deed:
        name = f"cursor_{self._counted}"
        self._counted += 1
        rows = "SELECT n, repeat('c', 10 * n) FROM generate_series(1, 50) n"
        self._talker.ask(query(f"DECLARE {name} CURSOR FOR {rows}"))
        for _ in range(self._dice.randint(0, 3)):
            yield True
            self._talker.ask(query(f"FETCH {self._dice.randint(1, 20)} FROM {name}"))

    # what they consist of

    def _statement(self) -> str:
        number = self._dice.randint(0, 9)
        several = [
            f"{self._short_statement()}; {act(self._tag())}",
            f"{act(self._tag())}; SELECT 1/0",
            f"SET {self._dice.choice(_SETTINGS).format(self._value())}",
            "SHOW application_name; SHOW TimeZone",
            "DO $$ BEGIN RAISE NOTICE 'a notice'; RAISE WARNING 'one more'; END $$",
            f"{act(self._tag())} /* {'.' * self._size(9000)} */",
            f"SELECT n, repeat('r', {self._size(5000)}) FROM generate_series(1, {number}) n",
            f"SET LOCAL {self._dice.choice(_SETTINGS).format(self._value())}",
            "RESET ALL",
            *_FORGETTING,
        ]
        statement = self._dice.choice([*several, self._short_statement()])
        if statement in _FORGETTING:
            self._statements.clear()
        return statement

    def _short_statement(self) -> str:
        return self._dice.choice(
            [act(self._tag()), act(self._tag()), "SELECT 1/0", "", "SELECT nothing", "SELECT 'one'"]
        )

    def _value(self) -> str:
        return self._dice.choice(["1", "on", "DMY", "'"])

    def _step(self) -> list[bytes]:
        """Messages of the extended protocol that stand on their own, but for a Sync."""
        value = f"{self._tag()}{'v' * self._size(6000)}"
        known = sorted(self._statements)
        choice = self._dice.randint(0, 7)
        if choice == 0:
            return [parse("", "SELECT 1/0"), bind(""), execute()]
        if choice == 1:
            return [parse("", "SELECT nothing")]
        if not self._may.named or choice <= 3:
            return [parse("", _INSERT), bind("", value), _DESCRIBE_PORTAL, execute()]
        if choice == 4 and known:
            name = self._dice.choice(known)
            del self._statements[name]
            return [close_statement(name)]
        if choice == 5 or not known:
            name = f"s{self._counted}"
            self._counted += 1
            self._statements[name] = self._dice.choice(_PREPARED)
            return [parse(name, self._statements[name]), describe(name)]
        return [bind(self._dice.choice(known), value), execute()]

    def _tag(self) -> str:
        self._counted += 1
        return f"{self._name}-{self._counted}"

    def _size(self, most: int) -> int:
        """Mostly small, sometimes up to `most`."""
        return self._dice.choice([0, 0, 1, self._dice.randint(0, 100), self._dice.randint(0, most)])

    # how they are sent and read

    def _send(self, data: bytes) -> Deed:
        """In one piece, or in some, between which others may act."""
        if self._dice.random() < 0.6:
            self._talker.send(data)
            return
        start = 0
        for cut in self._cuts(data):
            self._talker.send(data[start:cut])
            self._talker.await_read()
            start = cut
            yield False
        self._talker.send(data[start:])

    def _cuts(self, data: bytes) -> list[int]:
        # The length of a run's database name may make no difference: not even to how many they are.
        places = [self._dice.random() for _ in range(self._dice.randint(0, 3))]
        return sorted(1 + int(place * (len(data) - 1)) for place in places)

    def _read_late(self) -> Deed:
        self._talker.await_answer()
        if self._dice.random() < 0.5:
            yield False
        self._talker.ready()

    def _next_of(self, *kinds: bytes) -> bytes:
        while (kind := self._talker.next_message()[0]) not in kinds:
            pass
        return kind
