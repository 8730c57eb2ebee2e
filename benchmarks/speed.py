"""How fast: transactions, streams and logins, through each program in turn and without one."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.figures import Bar, Figure, paired
from benchmarks.instructions import PROTOCOLS
from benchmarks.load import pgbench_speed
from benchmarks.pair import SCRAM_SECRET, SCRAM_USER, Pair, pair
from testbed.rawclient import RawClient, frontend, text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.scale import Scale

_ROW = 8000
_CHUNK = 1 << 18


def transactions(scale: Scale) -> Iterator[Figure]:
    """Transactions a second and their latency, by protocol and clients."""
    with pair(None, clients=max(scale.clients)) as both:
        for protocol in PROTOCOLS:
            for clients in scale.clients:
                yield from _transactions(both, scale, protocol, clients)


def _transactions(both: Pair, scale: Scale, protocol: str, clients: int) -> Iterator[Figure]:
    latencies: list[dict[str, float]] = []
    speeds: list[dict[str, float]] = []
    # One client alone waits for each answer: fewer transactions take as long.
    count = max(clients, scale.transactions // (4 if clients == 1 else 1))

    def turn(_name: str, conninfo: str, _pid: int) -> float:
        speed = pgbench_speed(both.run_dir, conninfo, protocol, clients, count)
        latencies[-1][_name] = speed.latency_ms
        return speed.tps

    for number in range(scale.rounds):
        latencies.append({})
        speeds.append(_round(both, number, turn))
    what = f"{protocol}, {clients} client{'s' if clients > 1 else ''}"
    yield paired("transactions a second", what, "1/s", speeds, Bar(0.99, at_least=True))
    yield paired("latency", what, "ms", latencies)


def bulk(scale: Scale) -> Iterator[Figure]:
    """Megabytes a second of COPY in both directions, and pgbouncer's CPU seconds of a gigabyte."""
    size = scale.bulk_bytes
    with pair(None) as both:
        for what, copy in (("COPY to the client", _copy_out), ("COPY from the client", _copy_in)):
            speeds: list[dict[str, float]] = []
            costs: list[dict[str, float]] = []

            def turn(name: str, conninfo: str, pid: int, copy=copy, costs=costs) -> float:  # type: ignore[no-untyped-def]
                before = _cpu_seconds(pid) if pid else 0.0
                began = time.perf_counter()
                copy(conninfo, size)
                seconds = time.perf_counter() - began
                if pid:
                    costs[-1][name] = (_cpu_seconds(pid) - before) * 1e9 / size
                return size / 1e6 / seconds

            for number in range(scale.rounds):
                costs.append({})
                speeds.append(_round(both, number, turn))
            yield paired("bulk", what, "MB/s", speeds, Bar(0.99, at_least=True))
            yield paired("bulk", f"{what}, CPU of pgbouncer", "s/GB", costs, Bar(1.01))


def connects(scale: Scale) -> Iterator[Figure]:
    """Logins a second, each with a query of its own and a farewell, by eight clients.

    And what one costs in CPU time: of the kept program that is pgbouncer's and the hanger's.
    """
    with pair(None) as both:
        hanger = both.kept.hanger.pid
        for what, user, secret, limit in (
            ("trust", "postgres", "", 0.9),
            ("SCRAM", SCRAM_USER, SCRAM_SECRET, 0.95),
        ):
            login = f" user={user}" + (f" password={secret}" if secret else "")
            costs: list[dict[str, float]] = []

            def turn(
                name: str,
                conninfo: str,
                pid: int,
                login: str = login,
                costs: list[dict[str, float]] = costs,
            ) -> float:
                pids = [one for one in (pid, hanger if name == "keeper" else 0) if one]
                before = sum(map(_cpu_seconds, pids))
                speed = pgbench_speed(
                    both.run_dir, conninfo + login, "simple", 8, scale.connects, connect=True
                )
                if pids:
                    used = sum(map(_cpu_seconds, pids)) - before
                    costs[-1][name] = used * 1e6 / scale.connects
                return speed.tps

            rounds = []
            for number in range(scale.rounds):
                costs.append({})
                rounds.append(_round(both, number, turn))
            group = "connects a second"
            yield paired(group, what, "1/s", rounds, Bar(limit, at_least=True))
            yield paired(group, f"{what}, CPU of one", "us", costs)


def _round(both: Pair, number: int, turn: Callable[[str, str, int], float]) -> dict[str, float]:
    """One turn of each, who comes first changing, so that a drift favours nobody."""
    places = [
        ("unpatched", both.unpatched.conninfo(connect_timeout=60), both.unpatched.pid),
        ("keeper", both.kept.conninfo(connect_timeout=60), both.kept.bouncer_pid),
        ("direct", both.postgres.conninfo(connect_timeout=60), 0),
    ]
    at = number % len(places)
    return {name: turn(name, conninfo, pid) for name, conninfo, pid in places[at:] + places[:at]}


def _copy_out(conninfo: str, size: int) -> None:
    """Read so many bytes of rows; they are not looked at, which is the trial's business."""
    with _session(conninfo) as client:
        source = f"generate_series(1, {size // _ROW})"
        rows = f"SELECT repeat('x', {_ROW}) FROM {source}"  # noqa: S608 (numbers)
        statement = f"COPY ({rows}) TO STDOUT"
        client.send(frontend("Q", text(statement)))
        buffer = bytearray(_CHUNK)
        end = b"Z\0\0\0\5I"
        tail = b""
        while not tail.endswith(end):
            count = client.socket.recv_into(buffer)
            if not count:
                raise ConnectionError("the pooler has closed the connection")
            tail = (tail + bytes(buffer[max(0, count - len(end)) : count]))[-len(end) :]


def _copy_in(conninfo: str, size: int) -> None:
    with _session(conninfo) as client:
        client.query("BEGIN")
        client.query("CREATE TEMP TABLE sink (value text) ON COMMIT DROP")
        client.send(frontend("Q", text("COPY sink FROM STDIN")))
        while client.read().kind != "G":
            pass
        piece = frontend("d", (b"x" * _ROW + b"\n") * 8)
        for _ in range(size // (8 * _ROW)):
            client.send(piece)
        client.send(frontend("c"))
        for message in client.until_ready():
            if message.kind == "E":
                raise ConnectionError(str(message.error_fields()))
        client.query("ROLLBACK")


def _session(conninfo: str) -> RawClient:
    words = dict(word.split("=", 1) for word in conninfo.split())
    client = RawClient(words["host"], int(words["port"]), timeout=120)
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    return client.login(user=words["user"], database=words["dbname"])


def _cpu_seconds(pid: int) -> float:
    """Time on a CPU, user and system (proc(5), /proc/PID/schedstat)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
