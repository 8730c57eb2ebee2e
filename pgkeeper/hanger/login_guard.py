"""How long an address may not log in, from whose logins pgbouncer has died; pure."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["LONGEST", "LONGEST_LOCAL", "QUIET", "UNIX", "LoginGuard", "neighbourhood"]

#: Crashes from one address that are let pass: a client's own two, of which one may be chance.
_FREE: Final = 2
#: Seconds of the first refusal; each further crash doubles them,
_FIRST: Final = 2.0
#: up to this,
LONGEST: Final = 600.0
#: or this where the address is this machine's: everyone behind a proxy or a tunnel has it.
LONGEST_LOCAL: Final = 15.0
#: Seconds after the last crash from an address until nothing is known against it any more.
QUIET: Final = 1800.0
#: Addresses that are remembered; beyond them the one that has been quiet for longest is forgotten.
_REMEMBERED: Final = 10_000
#: Bits of an IPv6 address that one customer of a network has, as a rule.
_CUSTOMER: Final = 64

#: Stands for all clients of Unix-domain sockets.
UNIX: Final = "unix"


def neighbourhood(peer: str) -> str:
    """Those who are taken for one: an IPv4 address, an IPv6 network, everyone on Unix sockets."""
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return peer
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    if address.is_loopback:
        return str(address)
    return str(ipaddress.ip_network((address, _CUSTOMER), strict=False))


@dataclass(slots=True)
class _Record:
    crashes: int
    last: float
    until: float


class LoginGuard:
    """What is known against addresses; all times in seconds of one clock."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}

    def records(self) -> dict[str, list[float]]:
        """By address: crashes, time of the last one, until when; for a guard of the same clock."""
        return {
            key: [float(record.crashes), record.last, record.until]
            for key, record in self._records.items()
        }

    def inherit(self, records: Mapping[str, Sequence[float]]) -> None:
        """Go on with what `records` of another guard gave."""
        for key, (crashes, last, until) in records.items():
            self._records[key] = _Record(int(crashes), last, until)

    def crashed(self, peer: str, now: float) -> float:
        """Count a crash of a login from `peer`; seconds for which it may not log in now, or 0."""
        key = neighbourhood(peer)
        record = self._records.pop(key, None)
        if record is None or now - record.last >= QUIET:
            record = _Record(0, now, now)
        record.crashes += 1
        record.last = now
        self._records[key] = record
        if len(self._records) > _REMEMBERED:
            del self._records[next(iter(self._records))]
        if record.crashes < _FREE:
            return 0.0
        longest = LONGEST_LOCAL if _local(key) else LONGEST
        seconds = min(_FIRST * 2.0 ** min(record.crashes - _FREE, 16), longest)
        record.until = now + seconds
        return seconds

    def refused(self, peer: str, now: float) -> float:
        """For how many seconds more `peer` may not log in; 0: it may."""
        if not self._records:
            return 0.0  # as good as always, and each new client asks
        record = self._records.get(neighbourhood(peer))
        return 0.0 if record is None else max(record.until - now, 0.0)

    def slowed(self, now: float) -> int:
        """How many addresses may not log in now."""
        return sum(record.until > now for record in self._records.values())


def _local(key: str) -> bool:
    if key == UNIX:
        return True
    try:
        return ipaddress.ip_address(key).is_loopback
    except ValueError:
        return False
