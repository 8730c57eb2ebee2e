"""The rules of a pgbouncer's life under the hanger, in tables; pure, stdlib only.

Every process that the hanger knows has a `Lifecycle`.  TRANSITIONS is the whole of what may happen
to it: an event that has no entry is a fault of the peer (`Event` members in REMOTE) or of ours.
What `pgkeeper status` calls the state is derived from the processes by `service_state`, so there is
nothing that could disagree with them.
"""

from __future__ import annotations

from enum import Enum, StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "CRASH_LOOP_LIMIT",
    "OWNERS",
    "REMOTE",
    "SHORT_LIFE",
    "TRANSITIONS",
    "CrashHistory",
    "Event",
    "ImpossibleEventError",
    "Lifecycle",
    "ProcessState",
    "ServiceState",
    "service_state",
]


class ServiceState(StrEnum):
    """The state of the service as `pgkeeper status` shows it (DESIGN section 10)."""

    STARTING = "starting"
    ADOPTING = "adopting"
    ACTIVE = "active"
    DOWN = "down"
    CRASH_LOOP = "crash-loop"


class ProcessState(Enum):
    """Where one pgbouncer process stands."""

    STARTED = "started"
    """It runs; its HELLO is awaited."""
    STANDBY = "standby"
    """It has the ledger and the listeners, owns nothing, and waits for ADOPT."""
    ADOPTING = "adopting"
    """It was given the sockets and ADOPT; its READY is awaited."""
    RETURNING = "returning"
    """It served without a hanger and now registers what it has; its READY is awaited."""
    ACTIVE = "active"
    """It carries the sessions."""
    FREEZING = "freezing"
    """It was asked to stand still at a commit; FROZEN is awaited."""
    FROZEN = "frozen"
    """It stands still at a commit."""
    LEAVING = "leaving"
    """It ends the sessions on purpose; its death is awaited."""
    FENCED = "fenced"
    """It was sent SIGKILL; its death is awaited and nothing it says counts, but what it closed."""
    DEAD = "dead"
    """The kernel says that it has ended."""


class Event(Enum):
    """What can happen to a process: its messages, our acts, and its death."""

    HELLO_SUCCESSOR = "HELLO as successor"
    HELLO_SERVING = "HELLO while serving"
    LISTENERS_BACK = "LISTENERS_BACK"
    REGISTER = "REGISTER"
    RELEASE = "RELEASE"
    UNHELD = "UNHELD"
    READY = "READY"
    FROZEN = "FROZEN"
    FAREWELL = "FAREWELL"
    DRAINING = "DRAINING"

    ACTIVATE = "activate"
    FREEZE = "freeze"
    THAW = "thaw"
    RELEASE_ALL = "release all"
    FENCE = "fence"

    DIED = "died"


#: Events that are messages of the process itself.
REMOTE: Final = frozenset(
    {
        Event.HELLO_SUCCESSOR,
        Event.HELLO_SERVING,
        Event.LISTENERS_BACK,
        Event.REGISTER,
        Event.RELEASE,
        Event.UNHELD,
        Event.READY,
        Event.FROZEN,
        Event.FAREWELL,
        Event.DRAINING,
    }
)


def _stay(state: ProcessState, *events: Event) -> dict[Event, ProcessState]:
    return dict.fromkeys(events, state)


_S = ProcessState
_E = Event
_BOOKS = (_E.REGISTER, _E.RELEASE, _E.UNHELD, _E.DRAINING)
_END = {_E.FENCE: _S.FENCED, _E.DIED: _S.DEAD}

#: state -> event -> next state.  What is not here cannot happen.
TRANSITIONS: Final[Mapping[ProcessState, Mapping[Event, ProcessState]]] = MappingProxyType(
    {
        _S.STARTED: {_E.HELLO_SUCCESSOR: _S.STANDBY, _E.HELLO_SERVING: _S.RETURNING, **_END},
        _S.STANDBY: {_E.ACTIVATE: _S.ADOPTING, **_END},
        _S.ADOPTING: {_E.READY: _S.ACTIVE, **_stay(_S.ADOPTING, *_BOOKS), **_END},
        _S.RETURNING: {
            _E.READY: _S.ACTIVE,
            **_stay(_S.RETURNING, _E.LISTENERS_BACK, *_BOOKS),
            **_END,
        },
        _S.ACTIVE: {
            _E.FREEZE: _S.FREEZING,
            _E.RELEASE_ALL: _S.LEAVING,
            _E.FAREWELL: _S.LEAVING,
            # FROZEN: the THAW that it has not read yet follows the FREEZE that took it too long
            **_stay(_S.ACTIVE, *_BOOKS, _E.FROZEN),
            **_END,
        },
        _S.FREEZING: {
            _E.FROZEN: _S.FROZEN,
            _E.THAW: _S.ACTIVE,
            _E.FAREWELL: _S.LEAVING,
            **_stay(_S.FREEZING, *_BOOKS),
            **_END,
        },
        _S.FROZEN: {_E.THAW: _S.ACTIVE, **_END},
        _S.LEAVING: {**_stay(_S.LEAVING, _E.FAREWELL, *_BOOKS), **_END},
        # What was under way when SIGKILL struck still arrives; sockets in it are still facts.
        _S.FENCED: {
            **_stay(_S.FENCED, *(REMOTE - {_E.HELLO_SERVING, _E.HELLO_SUCCESSOR}), _E.FENCE),
            _E.DIED: _S.DEAD,
        },
        _S.DEAD: {},
    }
)

#: States in which a process may write to the ledger and to the sessions' sockets.
OWNERS: Final = frozenset(
    {_S.ADOPTING, _S.RETURNING, _S.ACTIVE, _S.FREEZING, _S.FROZEN, _S.LEAVING}
)


class ImpossibleEventError(Exception):
    """`event` has no entry in TRANSITIONS for `state`.

    For an event in REMOTE the peer broke the protocol; any other is our own mistake.
    """

    def __init__(self, state: ProcessState, event: Event) -> None:
        self.state = state
        self.event = event
        super().__init__(f"{event.value} while {state.value}")


class Lifecycle:
    """One process's state, moved only by events; starts as STARTED.

    `owner` says whether the process may (still) write to ledger and sockets: from its activation
    to its death, through FENCED.  At most one living process may be an owner.
    """

    __slots__ = ("owner", "state")

    def __init__(self) -> None:
        self.state = ProcessState.STARTED
        self.owner = False

    def feed(self, event: Event) -> ProcessState:
        """Move on `event` and return the new state, or raise `ImpossibleEventError` and stay."""
        try:
            state = TRANSITIONS[self.state][event]
        except KeyError:
            raise ImpossibleEventError(self.state, event) from None
        self.state = state
        self.owner = state in OWNERS or (self.owner and state is not ProcessState.DEAD)
        return state

    def allows(self, event: Event) -> bool:
        """Whether `event` can happen now."""
        return event in TRANSITIONS[self.state]


def service_state(processes: Iterable[ProcessState], *, crash_looping: bool) -> ServiceState:
    """The service's state, given those of all living processes.

    `crash_looping` hides "starting" and "adopting": what starts now has died five times already.
    """
    states = set(processes)
    if states & {_S.ACTIVE, _S.FREEZING, _S.FROZEN}:
        return ServiceState.ACTIVE
    if crash_looping:
        return ServiceState.CRASH_LOOP
    if states & {_S.ADOPTING, _S.RETURNING}:
        return ServiceState.ADOPTING
    if states & {_S.STARTED, _S.STANDBY}:
        return ServiceState.STARTING
    return ServiceState.DOWN


#: A crash this soon after its start, in seconds, counts towards a crash loop.
SHORT_LIFE: Final = 5.0
#: So many of them in a row are a crash loop.
CRASH_LOOP_LIMIT: Final = 5

_FIRST_DELAY = 0.1
_LONGEST_DELAY = 5.0


class CrashHistory:
    """Decides how long to wait before the next start; pure, all times are given in seconds."""

    __slots__ = ("short_lives",)

    def __init__(self) -> None:
        self.short_lives = 0

    @property
    def looping(self) -> bool:
        """Whether the last deaths make a crash loop."""
        return self.short_lives >= CRASH_LOOP_LIMIT

    def died(self, lifetime: float, *, crashed: bool) -> float:
        """Count a death; returns the seconds to wait before the next start.

        `crashed` is false for a process that served and then was killed from outside or ended as
        asked: that says nothing about its next life, so the next one starts at once.  So does the
        one after a first crash; a second one in a row is what may become a loop.
        """
        if lifetime >= SHORT_LIFE or not crashed:
            self.short_lives = 0
            return 0.0
        self.short_lives += 1
        if self.short_lives == 1:
            return 0.0
        return float(min(_FIRST_DELAY * 2.0 ** (self.short_lives - 2), _LONGEST_DELAY))
