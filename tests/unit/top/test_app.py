"""`pgkeeper top` under Textual's pilot, 80 columns and 24 lines as over ssh."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from textual.widgets import Static

from pgkeeper.control.client import NoHangerError
from pgkeeper.control.protocol import TopReply
from pgkeeper.control.report import Session, Top, TopQuery, TopRow, token_name
from pgkeeper.errors import PgkeeperError
from pgkeeper.top.app import TopApp
from pgkeeper.top.text import cells
from testbed.waiting import wait_until_async
from tests.fix_admin import STATUS

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

SERVER = 1 << 63
SIZE = (80, 24)


def client(token: int, user: str | None = "joe", **fields: Any) -> TopRow:
    session = Session(token, "client", user, "shop", "active", True, None, "idle", None)
    more = {name: fields.pop(name) for name in tuple(fields) if name in TopRow.__slots__}
    row = TopRow(replace(session, **fields), "192.0.2.7", 2, 0.25)
    return replace(row, **more)


class FakeHanger:
    """Answers from a list, page by page, and remembers what it was asked."""

    def __init__(self, *rows: TopRow) -> None:
        self.rows = list(rows)
        self.queries: list[TopQuery] = []
        self.killed: list[str] = []
        self.error: PgkeeperError | None = None
        self.warnings: list[str] = []

    def top(self, query: TopQuery) -> TopReply:
        self.queries.append(query)
        if self.error is not None:
            raise self.error
        found = [row for row in self.rows if query.match in (row.session.user or "")]
        shown = found[query.offset : query.offset + query.limit]
        return TopReply(STATUS, Top(len(self.rows), len(found), shown), self.warnings)

    def kill(self, name: str) -> None:
        if self.error is not None:
            raise self.error
        self.killed.append(name)
        self.rows = [row for row in self.rows if token_name(row.session.token) != name]


class Screen:
    """What stands on it, and the keys."""

    def __init__(self, app: TopApp, pilot: Any) -> None:
        self.app = app
        self.pilot = pilot

    def lines(self) -> list[str]:
        width, height = SIZE
        strips = self.app.screen._compositor.render_strips()
        return ["".join(segment.text for segment in strip)[:width] for strip in strips[:height]]

    def text(self) -> str:
        return "\n".join(self.lines())

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)

    async def shows(self, *words: str) -> None:
        async def there() -> bool:
            await self.pilot.pause()
            return all(word in self.text() for word in words)

        try:
            await wait_until_async(there, what=f"{words} on the screen", seconds=15, poll_s=0.02)
        except BaseException:
            print(self.text())
            raise

    async def lacks(self, word: str) -> None:
        async def gone() -> bool:
            await self.pilot.pause()
            return word not in self.text()

        await wait_until_async(gone, what=f"no {word!r} on the screen", seconds=15, poll_s=0.02)

    @property
    def tokens(self) -> list[str | None]:
        return [key.value for key in self.app._table.rows]


def watch(
    hanger: FakeHanger,
    act: Callable[[Screen], Coroutine[object, object, None]],
    *,
    allow_kill: bool = False,
    interval: float = 0.05,
) -> None:
    async def run() -> None:
        query = TopQuery()
        app = TopApp(hanger, query, hanger.top(query), interval=interval, allow_kill=allow_kill)
        async with app.run_test(size=SIZE, notifications=True) as pilot:
            await act(Screen(app, pilot))

    asyncio.run(run())


def test_what_is_to_be_seen_fits_into_80_columns() -> None:
    waiting = client(12345, doing="waiting for a server", state="waiting")
    unheld = client(8, held=False, reason="tls", user=None, age=None, address=None)

    async def act(screen: Screen) -> None:
        await screen.shows("active 4712", "standby 4720", "held: 12 clients, 1 servers")
        await screen.shows("2 tls", "adoptions: 2, last 3.4 ms", "1-2 of 2 clients")
        lines = screen.lines()
        assert len(lines) == 24
        row = next(line for line in lines if "c12345" in line)
        words = ["c12345", "joe", "shop", "192.0.2.7", "waiting", "yes", "2", "0.2s", "waiting"]
        assert [word for word in words if word not in row] == []
        assert "(tls) idle" in next(line for line in lines if "c8 " in line)
        assert "Quit" in lines[-1]
        assert "Kill" not in lines[-1]

    watch(FakeHanger(waiting, unheld), act)


def test_it_goes_on_looking() -> None:
    hanger = FakeHanger(client(7))

    async def act(screen: Screen) -> None:
        await screen.shows("c7")
        hanger.rows = [client(9, "ann"), client(7)]
        await screen.shows("c9", "ann")
        # The cursor stays with its session, not with its line.
        assert screen.app._selected() == "c7"
        await screen.press("space")
        hanger.rows = [client(11)]
        await screen.shows("frozen")
        asked = len(hanger.queries)
        await asyncio.sleep(0.2)
        assert len(hanger.queries) == asked
        await screen.press("space")
        await screen.shows("c11")

    watch(hanger, act)


def test_a_hanger_that_goes_away_and_comes_back() -> None:
    hanger = FakeHanger(client(7))

    async def act(screen: Screen) -> None:
        hanger.error = NoHangerError("nobody listens on /x")
        await screen.shows("no hanger answers: nobody listens on /x", "c7")
        hanger.error = None
        await screen.lacks("nobody listens")

    watch(hanger, act)


def test_order_side_and_reverse_are_asked_of_the_hanger() -> None:
    hanger = FakeHanger(client(7))

    async def act(screen: Screen) -> None:
        await screen.press("o")
        await screen.shows("by user")
        await screen.press("r")
        await screen.shows("by user backwards")
        await screen.press("v")
        await screen.shows("1-1 of 1 servers")
        last = hanger.queries[-1]
        assert (last.order, last.reverse, last.side) == ("user", True, "server")

    watch(hanger, act, interval=60.0)


def test_filter() -> None:
    hanger = FakeHanger(client(7, "joe"), client(8, "ann"))

    async def act(screen: Screen) -> None:
        await screen.press("slash", *"ann/")
        await screen.shows("0-0 of 0 clients that match 'ann/' (of 2)")
        await screen.press("backspace")
        await screen.shows("1-1 of 1 clients that match 'ann' (of 2)")
        assert screen.tokens == ["c8"]
        await screen.press("enter", "o")  # the list has the keys again
        await screen.shows("by user")
        await screen.press("escape")
        await screen.shows("1-2 of 2 clients")

    watch(hanger, act, interval=60.0)


def test_thousands_come_by_the_hundred() -> None:
    hanger = FakeHanger(*(client(n) for n in range(1, 9001)))

    async def act(screen: Screen) -> None:
        await screen.shows("1-100 of 9000 clients")
        await screen.press("p")
        await screen.press("n")
        await screen.shows("101-200 of 9000 clients", "c101")
        hanger.rows = hanger.rows[:50]
        await screen.shows("1-50 of 50 clients")
        assert {query.limit for query in hanger.queries[1:]} == {100}

    watch(hanger, act)


def test_enter_shows_all_of_it() -> None:
    async def act(screen: Screen) -> None:
        await screen.shows("c7")
        await screen.press("enter")
        await screen.shows("survived  2 adoptions", "linked to s2", "c7 (client)")
        await screen.press("escape")
        await screen.lacks("linked to")

    watch(FakeHanger(client(7, linked=SERVER | 2)), act)


def test_nothing_is_ended_unless_it_was_allowed() -> None:
    hanger = FakeHanger(client(7))

    async def act(screen: Screen) -> None:
        await screen.shows("c7")
        await screen.press("k", "y")
        await screen.shows("c7")

    watch(hanger, act)
    assert hanger.killed == []


def test_nor_unless_it_was_confirmed() -> None:
    hanger = FakeHanger(client(7), client(8))

    async def act(screen: Screen) -> None:
        await screen.shows("c7", "Kill")
        await screen.press("down", "k")
        await screen.shows("End this session?", "c8 (client)")
        await screen.press("n")
        await screen.lacks("End this session?")
        assert hanger.killed == []
        await screen.press("k", "escape")
        await screen.lacks("End this session?")
        assert hanger.killed == []
        await screen.press("k", "y")
        await screen.shows("was told to end c8")
        assert hanger.killed == ["c8"]
        await screen.shows("1-1 of 1 clients")

    watch(hanger, act, allow_kill=True)


def test_the_one_that_was_confirmed_is_ended_though_the_list_has_moved() -> None:
    hanger = FakeHanger(client(7), client(8))

    async def act(screen: Screen) -> None:
        await screen.shows("c7")
        await screen.press("k")
        await screen.shows("c7 (client)")
        hanger.rows = [client(9), client(8)]
        asked = len(hanger.queries)
        await wait_until_async(
            _later(lambda: len(hanger.queries) > asked + 1), what="a look", seconds=15
        )
        await screen.press("y")
        await screen.shows("was told to end c7")

    watch(hanger, act, allow_kill=True)
    assert hanger.killed == ["c7"]


def _later(condition: Callable[[], bool]) -> Callable[[], Coroutine[object, object, bool]]:
    async def holds() -> bool:
        return condition()

    return holds


def test_a_refusal_is_shown() -> None:
    hanger = FakeHanger(client(7))

    async def act(screen: Screen) -> None:
        await screen.shows("c7")
        hanger.error = PgkeeperError("cannot end c7: it is not held")
        await screen.press("k", "y")
        await screen.shows("cannot end c7:")

    watch(hanger, act, allow_kill=True, interval=60.0)


@pytest.mark.parametrize("name", ["\x1b[2J\x1b]0;x\x07", "[bold red]joe[/]", "a\nb\tc", "\udcff"])
def test_names_of_clients_are_only_text(name: str) -> None:
    async def act(screen: Screen) -> None:
        await screen.shows("c7")
        assert not set("\x1b\x07\udcff") & set(screen.text())
        await screen.press("enter")
        await screen.shows("(client)")
        assert not set("\x1b\x07\udcff") & set(screen.text())

    hostile = client(7, name, database=name, address=name, doing=name)
    hanger = FakeHanger(hostile)
    hanger.warnings = [name]
    watch(hanger, act)


@pytest.mark.parametrize(
    ("doing", "short"),
    [
        ("in query (1 request outstanding)", "query"),
        ("in query (3 requests outstanding), message in flight (type D)", "query x3, D in flight"),
        ("in COPY, message in flight (70 bytes to come)", "COPY, 70 B to come"),
        ("waiting for a server", "waiting for a server"),
    ],
)
def test_what_it_does_is_said_in_few_words(doing: str, short: str) -> None:
    assert str(cells(client(7, doing=doing))[-1]) == short


def test_long_names_do_not_run_into_each_other() -> None:
    row = cells(client(7, "a" * 60, database="b" * 60))
    assert [len(cell) for cell in row[1:3]] == [9, 9]
    assert str(row[1]).endswith("…")


def test_warnings_stand_above() -> None:
    hanger = FakeHanger(client(7))
    hanger.warnings = ["no standby: it ended"]

    async def act(screen: Screen) -> None:
        await screen.shows("no standby: it ended", "c7")
        assert isinstance(screen.app.query_one("#summary"), Static)

    watch(hanger, act)
