"""All pgbouncer processes that the hanger knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgkeeper.states import ProcessState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgkeeper.hanger.bouncer_link import BouncerLink
    from pgkeeper.hanger.process import Process

__all__ = ["Census"]


class Census:
    """The living processes, in the order in which they came."""

    def __init__(self) -> None:
        self._processes: list[Process] = []

    def __iter__(self) -> Iterator[Process]:
        return iter(tuple(self._processes))

    def add(self, process: Process) -> None:
        """A process has started, or introduced itself."""
        self._processes.append(process)

    def discard(self, process: Process) -> None:
        """It is dead, or none of our business any more."""
        if process in self._processes:
            self._processes.remove(process)

    @property
    def owner(self) -> Process | None:
        """The one that may touch ledger and sockets, alive or not yet known to be dead."""
        for process in self._processes:  # each new client asks: no generator
            if process.owner:
                return process
        return None

    @property
    def successor(self) -> Process | None:
        """The one to be activated next, if it can read the ledger."""
        return next(self._standing_by(), None)

    def successor_for(self, number: int) -> Process | None:
        """The one to be activated next where the ledger is written in that format."""
        return next(
            (
                one
                for one in self._standing_by()
                if one.formats is not None and number in one.formats
            ),
            None,
        )

    def _standing_by(self) -> Iterator[Process]:
        return (
            process
            for process in self._processes
            if process.state is ProcessState.STANDBY and not process.reserved
        )

    @property
    def starting(self) -> Process | None:
        """A child of ours from which no HELLO has come yet."""
        return next(
            (
                process
                for process in self._processes
                if process.state is ProcessState.STARTED and not process.reserved
            ),
            None,
        )

    def by_link(self, link: BouncerLink) -> Process | None:
        """Whose connection this is."""
        for process in self._processes:
            if process.link is link:
                return process
        return None

    def is_fenced(self, pid: int) -> bool:
        """Whether we have killed our child of that pid, and do not know yet that it is dead."""
        # Of others the pid may be unknown (0), and so tell nobody apart.
        return any(
            process.pid == pid
            and process.child is not None
            and process.state is ProcessState.FENCED
            for process in self._processes
        )

    def child_waiting_for(self, pid: int) -> Process | None:
        """The child of that pid, if it has not introduced itself yet."""
        return next(
            (
                process
                for process in self._processes
                if process.pid == pid
                and process.link is None
                and process.state is ProcessState.STARTED
            ),
            None,
        )
