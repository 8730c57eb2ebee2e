"""The terminal application: asks again and again, shows, and ends a session where it may."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Final, Protocol, get_args, get_type_hints

from rich.text import Text
from textual.app import App
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Input, Static

from pgkeeper.control.report import TopQuery, token_name
from pgkeeper.errors import PgkeeperError
from pgkeeper.inifile import printable
from pgkeeper.top import text

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from pgkeeper.control.protocol import TopReply
    from pgkeeper.control.report import TopRow

__all__ = ["ORDERS", "Source", "TopApp"]

ORDERS: Final[tuple[str, ...]] = get_args(get_type_hints(TopQuery)["order"])
_SIDES: Final[tuple[str, ...]] = get_args(get_type_hints(TopQuery)["side"])
_PAGE: Final = 100


class Source(Protocol):
    """The hanger.  Blocks; errors leave as `PgkeeperError`."""

    def top(self, query: TopQuery) -> TopReply:
        """How things are, and the sessions that `query` asks for."""
        ...

    def kill(self, name: str) -> None:
        """End the client of that token's name."""
        ...


class _Details(ModalScreen[None]):
    """All about one session."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,enter,q", "dismiss", "Back")]
    DEFAULT_CSS = """
    _Details { align: center middle; }
    _Details Vertical { width: 74; height: auto; border: round $primary; background: $surface; }
    """

    def __init__(self, row: TopRow) -> None:
        super().__init__()
        self._row = row

    def compose(self) -> ComposeResult:
        yield Vertical(Static(text.details(self._row)))
        yield Footer(show_command_palette=False)


class _Confirm(ModalScreen[bool]):
    """Asks before a session is ended."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "End it"),
        Binding("n,escape", "answer(False)", "Leave it"),
    ]
    DEFAULT_CSS = """
    _Confirm { align: center middle; }
    _Confirm Vertical { width: 74; height: auto; border: heavy $error; background: $surface; }
    """

    def __init__(self, row: TopRow) -> None:
        super().__init__()
        self._row = row

    def compose(self) -> ComposeResult:
        question = text.details(self._row).append("\n\nEnd this session? (y/n)", style="bold red")
        yield Vertical(Static(question))
        yield Footer(show_command_palette=False)

    def action_answer(self, yes: bool) -> None:
        """The key that was pressed."""
        self.dismiss(yes)


class TopApp(App[None]):
    """Shows what `source` says every `interval` seconds; ends sessions only with `allow_kill`."""

    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        # Priority: keys that come with it are then the filter's, not the list's.
        Binding("slash", "filter", "Filter", key_display="/", priority=True),
        Binding("o", "order", "Order"),
        Binding("r", "reverse", "Reverse"),
        Binding("v", "side", "Side"),
        Binding("n", "page(1)", "Next"),
        Binding("p", "page(-1)", "Prev"),
        Binding("space", "freeze", "Freeze", key_display="␣"),
        Binding("k", "kill", "Kill"),
        Binding("escape", "unfilter", "All", show=False),
    ]
    CSS = """
    #summary { height: auto; max-height: 6; text-wrap: nowrap; text-overflow: ellipsis; }
    #position { height: 1; }
    #trouble { height: auto; color: $error; text-style: bold; display: none; }
    #filter { height: 1; border: none; padding: 0; display: none; }
    DataTable { height: 1fr; }
    """

    def __init__(
        self,
        source: Source,
        query: TopQuery,
        first: TopReply,
        *,
        interval: float = 1.0,
        allow_kill: bool = False,
    ) -> None:
        super().__init__()
        self._source = source
        self._query = replace(query, limit=_PAGE)
        self._reply = first
        self._interval = interval
        self._allow_kill = allow_kill
        self._frozen = False
        self._wake = asyncio.Event()
        # By name, not by query: that would look at the question above the list.
        self._summary = Static(id="summary")
        self._trouble = Static(id="trouble")
        self._position = Static(id="position")
        self._table: DataTable[Text] = DataTable(
            cursor_type="row", cell_padding=0, zebra_stripes=True
        )
        self._filter = Input(
            placeholder="part of user, database, address, state or token", id="filter"
        )

    def compose(self) -> ComposeResult:
        """From top to bottom."""
        yield self._summary
        yield self._trouble
        yield self._position
        yield self._table
        yield self._filter
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Begin to ask."""
        for heading, width in text.COLUMNS:
            self._table.add_column(heading, width=None if width is None else width + 1)
        self._show(self._reply)
        self._table.focus()
        self.run_worker(self._watch(), exit_on_error=True)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Read-only: there is no Kill.  A slash within the filter is a letter."""
        if action == "kill":
            return self._allow_kill
        return action != "filter" or self.focused is self._table

    async def _watch(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._interval):
                    await self._wake.wait()
            except TimeoutError:
                if self._frozen:
                    continue
            self._wake.clear()
            await self._ask()

    async def _ask(self) -> None:
        query = self._query
        try:
            reply = await asyncio.to_thread(self._source.top, query)
        except PgkeeperError as error:
            self._tell(error.message)
            return
        if query is not self._query:
            self._wake.set()  # it has changed meanwhile
            return
        self._tell(None)
        if not reply.top.rows and query.offset:
            self._look(offset=max(query.offset - _PAGE, 0))
            return
        self._show(reply)

    def _show(self, reply: TopReply) -> None:
        self._reply = reply
        self._summary.update(text.summary(reply))
        where = text.position(reply, self._query)
        if self._frozen:
            where.append(" frozen: space goes on ", style="bold")
        self._position.update(where)
        table, selected, row = self._table, self._selected(), self._table.cursor_row
        offset = table.scroll_offset
        table.clear()
        for one in reply.top.rows:
            table.add_row(*text.cells(one), key=token_name(one.session.token))
        if selected is not None and selected in table.rows:
            row = table.get_row_index(selected)
        table.move_cursor(row=min(row, max(table.row_count - 1, 0)), scroll=False)
        table.scroll_to(*offset, animate=False)

    def _selected(self) -> str | None:
        table = self._table
        if not table.row_count:
            return None
        return table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value

    def _selected_row(self) -> TopRow | None:
        name = self._selected()
        rows = self._reply.top.rows
        return next((row for row in rows if token_name(row.session.token) == name), None)

    def _tell(self, trouble: str | None) -> None:
        self._trouble.display = trouble is not None
        self._trouble.update(Text(printable(trouble or "")))

    def _look(self, **changes: object) -> None:
        """Ask for something else, at once."""
        self._query = replace(self._query, **changes)  # type: ignore[arg-type]
        self._wake.set()

    def action_order(self) -> None:
        """The next order."""
        following = ORDERS[(ORDERS.index(self._query.order) + 1) % len(ORDERS)]
        self._look(order=following, reverse=False, offset=0)

    def action_reverse(self) -> None:
        """The other way round."""
        self._look(reverse=not self._query.reverse, offset=0)

    def action_side(self) -> None:
        """Clients, servers, all."""
        following = _SIDES[(_SIDES.index(self._query.side) + 1) % len(_SIDES)]
        self._look(side=following, offset=0)

    def action_page(self, step: int) -> None:
        """The next hundred, or those before."""
        offset = self._query.offset + step * _PAGE
        if 0 <= offset < max(self._reply.top.matching, 1):
            self._look(offset=offset)

    def action_freeze(self) -> None:
        """Stand still, or go on."""
        self._frozen = not self._frozen
        self._show(self._reply)
        if not self._frozen:
            self._wake.set()

    def action_filter(self) -> None:
        """Ask for a part of names."""
        self._filter.display = True
        self._filter.value = self._query.match
        # At once: the next keys may have come with this one.
        self.screen.set_focus(self._filter)

    def action_unfilter(self) -> None:
        """All sessions again."""
        self.screen.set_focus(self._table)
        self._filter.display = False
        if self._query.match:
            self._look(match="", offset=0)

    def on_input_changed(self, event: Input.Changed) -> None:
        """What matches is shown while it is typed."""
        if event.value != self._query.match:
            self._look(match=event.value, offset=0)

    def on_input_submitted(self) -> None:
        """Back to the list."""
        self.screen.set_focus(self._table)
        self._filter.display = False

    def on_data_table_row_selected(self) -> None:
        """Enter: all about the session."""
        row = self._selected_row()
        if row is not None:
            self.push_screen(_Details(row))

    def action_kill(self) -> None:
        """Ask whether the selected session is to be ended."""
        row = self._selected_row()
        if row is None:
            return
        name = token_name(row.session.token)

        def answered(yes: bool | None) -> None:
            if yes:
                self.run_worker(self._kill(name), exit_on_error=True)

        self.push_screen(_Confirm(row), answered)

    async def _kill(self, name: str) -> None:
        try:
            await asyncio.to_thread(self._source.kill, name)
        except PgkeeperError as error:
            self.notify(printable(error.message), severity="error", markup=False)
            return
        self.notify(f"pgbouncer was told to end {name}", markup=False)
        self._wake.set()
