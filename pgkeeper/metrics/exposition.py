"""The figures of a scrape as Prometheus reads them.

Names and labels are part of the outside contract, docs/monitoring.md lists them.  The number of
series is bounded whatever clients do: causes and reasons are fixed, and of databases and users
only the `PAIRS` pairs with the most connections stand for themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from pgkeeper.hanger.history import PAUSES, Cause
from pgkeeper.hanger.vault import reason_name
from pgkeeper.states import ServiceState
from protocol.control import Lost, UnheldReason

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable, Iterator, Mapping

    from prometheus_client.metrics_core import Metric

    from pgkeeper.ledger.tally import Pool
    from pgkeeper.metrics.figures import Figures, Fill

__all__ = ["OTHER", "PAIRS", "expose", "families"]

PAIRS: Final = 500
#: Database and user of all further ones.
OTHER: Final = "_other"

_ENDS: Final = tuple(cause for cause in Cause if cause not in (Cause.STANDBY, Cause.START))
_TAKEOVERS: Final = tuple(cause for cause in _ENDS if cause is not Cause.FAREWELL)
_UNHELD: Final = (*(reason_name(reason) for reason in UnheldReason), "in-flight", "not-registered")
_LOST: Final = (*(reason.name.lower().replace("_", "-") for reason in Lost), "unheld")
_ENDED: Final = ("crash", "loop", "login")


def expose(figures: Figures, accept: str) -> tuple[bytes, str]:
    """The text for a scraper that accepts `accept` (an HTTP header), and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(figures))
    encoder, content_type = choose_encoder(accept)
    return encoder(registry), content_type


class _Once(Collector):
    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        return families(self._figures)


def families(figures: Figures) -> Iterator[Metric]:
    """All families of metrics, those about the service first."""
    yield from _service(figures)
    yield from _events(figures)
    yield from _sessions(figures)
    if figures.fill is not None:
        yield from _ledger(figures.fill)
    own = figures.own
    yield _gauge("process_start_time_seconds", "When the hanger started.", own.started)
    yield CounterMetricFamily("process_cpu_seconds", "CPU time of the hanger.", value=own.cpu)
    yield _gauge("process_resident_memory_bytes", "Memory of the hanger.", own.resident)


def _service(figures: Figures) -> Iterator[Metric]:
    bouncer = figures.status.pgbouncer
    up = bouncer.state is ServiceState.ACTIVE
    yield _gauge("pgkeeper_up", "Whether a pgbouncer serves the sessions.", up)
    state = GaugeMetricFamily("pgkeeper_state", "1 for the present state.", labels=["state"])
    for one in ServiceState:
        state.add_metric([one.value], bouncer.state is one)
    yield state
    build = GaugeMetricFamily("pgkeeper_build_info", "Of the hanger.", labels=["version"])
    build.add_metric([figures.status.hanger.version], 1)
    yield build
    yield _gauge(
        "pgkeeper_incarnation", "How many pgbouncers have been activated.", bouncer.incarnation
    )
    yield _gauge(
        "pgkeeper_standby_ready",
        "Whether a second pgbouncer waits.",
        bouncer.standby_pid is not None,
    )
    yield _gauge("pgkeeper_standby_wanted", "Whether one ought to.", figures.standby_wanted)
    yield _gauge(
        "pgkeeper_vacancy_seconds", "For how long nobody has served by now.", figures.vacancy
    )
    yield _gauge(
        "pgkeeper_hold_timeout_seconds",
        "After how long sessions are ended then, 0 for never.",
        figures.hold_timeout,
    )


def _events(figures: Figures) -> Iterator[Metric]:
    record, crashes = figures.record, figures.status.crashes
    quarantine = crashes.quarantine
    yield _counter(
        "pgkeeper_takeovers",
        "Adoptions of all sessions, by what the pgbouncer before ended of.",
        "cause",
        _TAKEOVERS,
        record.takeovers,
    )
    yield _counter(
        "pgkeeper_pgbouncer_deaths",
        "Ends of pgbouncers, those included that never served.",
        "cause",
        tuple(Cause),
        record.deaths,
    )
    yield _pauses(record.pauses, record.pause_sum)
    yield _counter(
        "pgkeeper_lost_connections",
        "Client connections that ended with a pgbouncer, and both kinds of those not held.",
        "reason",
        _LOST,
        record.lost,
    )
    yield CounterMetricFamily(
        "pgkeeper_watchdog_kills",
        "Pgbouncers killed because their heartbeat stood still.",
        value=crashes.hangs,
    )
    yield _counter(
        "pgkeeper_quarantined_sessions",
        "Sessions ended because pgbouncer died of them again.",
        "reason",
        _ENDED,
        quarantine.ended,
    )
    yield CounterMetricFamily(
        "pgkeeper_refused_logins",
        "New connections refused: logins from their address crash pgbouncer.",
        value=quarantine.logins_refused,
    )
    yield _gauge(
        "pgkeeper_refused_addresses",
        "Addresses that may not log in at the moment.",
        quarantine.addresses,
    )


def _pauses(counts: list[int], total: float) -> Metric:
    family = HistogramMetricFamily(
        "pgkeeper_pause_seconds", "From a pgbouncer's death until the next one serves."
    )
    cumulative, buckets = 0, []
    bounds = (*map(str, PAUSES), "+Inf")
    for bound, number in zip(bounds, counts or [0] * len(bounds), strict=True):
        cumulative += number
        buckets.append((bound, float(cumulative)))
    family.add_metric([], buckets, total)
    return family


def _sessions(figures: Figures) -> Iterator[Metric]:
    yield _by_pool(
        "pgkeeper_held_client_connections",
        "Client connections that would survive now.",
        figures.sessions.clients,
    )
    yield _by_pool(
        "pgkeeper_held_server_connections",
        "Connections to PostgreSQL that would survive now.",
        figures.sessions.servers,
    )
    unheld = GaugeMetricFamily(
        "pgkeeper_unheld_connections",
        "Connections, of both kinds, that would not survive now.",
        labels=["reason"],
    )
    for reason in _labels(_UNHELD, figures.unheld):
        unheld.add_metric([reason], figures.unheld.get(reason, 0))
    yield unheld


def _by_pool(name: str, text: str, counts: Counter[Pool]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=["database", "user"])
    ranked = counts.most_common()
    for pool, number in sorted(ranked[:PAIRS], key=lambda item: (item[0].database, item[0].user)):
        family.add_metric([pool.database, pool.user], number)
    if rest := sum(number for _, number in ranked[PAIRS:]):
        family.add_metric([OTHER, OTHER], rest)
    return family


def _ledger(fill: Fill) -> Iterator[Metric]:
    for name, text, value in (
        ("format", "Version of the format in which it is written.", fill.format),
        ("size_bytes", "Memory of the whole ledger.", fill.bytes),
        ("slots", "Places for sockets, pools and users.", fill.slots),
        ("slots_used", "How many of them are used.", fill.slots_used),
        ("iobufs", "Places for what has been read and not been passed on.", fill.iobufs),
        ("iobufs_used", "How many of them are used.", fill.iobufs_used),
        ("heap_bytes", "Room for prepared statements and all else that varies.", fill.heap),
        ("heap_used_bytes", "How much of it is used.", fill.heap_used),
    ):
        yield _gauge(f"pgkeeper_ledger_{name}", text, value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=float(value))


def _counter(
    name: str, text: str, label: str, known: Iterable[str], counts: Mapping[str, int]
) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for value in _labels(known, counts):
        family.add_metric([value], counts.get(value, 0))
    return family


def _labels(known: Iterable[str], counts: Mapping[str, int]) -> list[str]:
    """Those that are known, so that a first event is seen as an increase, and then others."""
    first = list(known)
    return first + sorted(set(counts) - set(first))
