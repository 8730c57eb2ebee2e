"""What the manifests tell a kubelet to run, run: probes, the drain, peers."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from testbed import Keeper, RawClient, free_port
from testbed.account import give
from testbed.process import Process
from testbed.waiting import wait_until
from tests.unit.chores.manifests import containers, find, pods

if TYPE_CHECKING:
    from testbed import Postgres, RunDir

(POD,) = pods("pooler.yaml")
PGKEEPER = containers(POD)["pgkeeper"]


def environment(socket: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {"PATH": path, "PGKEEPER_SOCKET": str(socket)}


def probe(name: str, socket: Path) -> bool:
    command = PGKEEPER[name]["exec"]["command"]
    done = subprocess.run(command, check=False, env=environment(socket), capture_output=True)
    return done.returncode == 0


def test_probes_tell_who_is_to_blame(keeper: Keeper, run_dir: RunDir) -> None:
    nobody = run_dir.path / "nobody.sock"
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert probe(name, keeper.socket_path)
        assert not probe(name, nobody)


def test_without_a_pgbouncer_it_lives_but_is_not_ready(
    run_dir: RunDir, postgres: Postgres, patched_binary: Path
) -> None:
    keeper = Keeper(run_dir, postgres, patched_binary, name="nobody-serves")
    command = Path(sys.executable).with_name("pgkeeper")
    words = (command, "run", "--ini", keeper.ini_path, "--no-supervise")
    hanger = Process(
        run_dir, keeper.name, words, output=keeper.output.path, privileged=True
    )  # fmt: skip
    try:
        wait_until(lambda: probe("startupProbe", keeper.socket_path), what="it answers")
        assert probe("livenessProbe", keeper.socket_path)
        assert not probe("readinessProbe", keeper.socket_path)
    finally:
        assert hanger.stop(15) == 0


def test_a_deletion_waits_for_the_clients(keeper: Keeper) -> None:
    drain = containers(POD)["drain"]
    command = drain["lifecycle"]["preStop"]["exec"]["command"]
    assert command[2].startswith("sleep 5\n")
    words = [*command[:2], command[2].removeprefix("sleep 5\n")]
    with RawClient(keeper.host, keeper.port).login() as client:
        hook = subprocess.Popen(words, env=environment(keeper.socket_path))
        try:
            assert client.query("SELECT pg_sleep(2)") == [("",)]
            assert hook.poll() is None
        except BaseException:
            hook.kill()
            raise
    assert hook.wait(20) == 0


def test_the_documented_way_to_reload(keeper: Keeper) -> None:
    text = (Path(__file__).parents[2] / "docs" / "kubernetes.md").read_text()
    (command,) = re.findall(r"^kubectl exec pgbouncer-1 -c pgkeeper -- sh -c '(.*)'$", text, re.M)
    with keeper.output.contains(r"\breload\b"):
        done = subprocess.run(
            ["sh", "-c", command], check=False, env=environment(keeper.socket_path)
        )
        assert done.returncode == 0


def test_the_ini_of_three_replicas(
    run_dir: RunDir, postgres: Postgres, patched_binary: Path
) -> None:
    """Each knows which of the peers it is, and the userlist of the Secret lets its admin in."""
    keeper = Keeper(run_dir, postgres, patched_binary, name="replica")
    (config,) = find("pooler.yaml", "ConfigMap")
    (secret,) = find("pooler.yaml", "Secret")
    peer = keeper.folder / "peer.ini"
    peer.write_text("peer_id = 2\n")
    give(peer, run_dir.account)
    keeper.users_path.write_text(secret["stringData"]["userlist.txt"])
    text = config["data"]["pgbouncer.ini"]
    for old, new in {
        "/run/pgkeeper/keeper.sock": str(keeper.socket_path),
        "/etc/pgbouncer/userlist.txt": str(keeper.users_path),
        "/run/peer/peer.ini": str(peer),
        "listen_addr = *": "listen_addr = 127.0.0.1",
        "listen_port = 6432": f"listen_port = {keeper.port}",
        "[pgbouncer]\n": f"[pgbouncer]\nlogfile = {keeper.log.path}\n"
        + (f"user = {run_dir.account.name}\n" if run_dir.account else ""),
        "pgbouncer-1.pgbouncer-peers port=6432": f"127.0.0.1 port={free_port()}",
    }.items():
        assert old in text
        text = text.replace(old, new)
    keeper.ini_path.write_text(text)
    keeper.start_hanger()
    try:
        with contextlib.closing(
            psycopg.connect(
                keeper.conninfo(
                    dbname="pgbouncer", user="pgbouncer_admin", password="change me too"
                ),
                autocommit=True,
            )
        ) as console:
            rows = console.execute("SHOW PEERS").fetchall()
            assert [row[0] for row in rows] == [1, 2, 3]
            shown = {row[0]: row[1] for row in console.execute("SHOW CONFIG").fetchall()}
            assert shown["peer_id"] == "2"
    finally:
        keeper.close(check_descriptors=False)
