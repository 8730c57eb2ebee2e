"""Logins of every kind, right and wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.sweep.syscall.stage import (
    MD5_USER,
    PLAIN_USER,
    QUERY_USER,
    SCRAM_USER,
    SECRET,
    USER,
    Workload,
    act,
)
from tests.sweep.syscall.talker import query

if TYPE_CHECKING:
    from tests.sweep.syscall.stage import Stage


def _logins(stage: Stage) -> None:
    for user in (USER, MD5_USER, SCRAM_USER, QUERY_USER):
        talker = stage.talker(user)
        talker.ask_for_tls()
        talker.log_in(user, stage.database, SECRET, {"application_name": user})
        talker.ask(query(act(user)))
    for user in (MD5_USER, SCRAM_USER, QUERY_USER, "sweeper_nobody"):
        talker = stage.talker(f"{user} is wrong")
        talker.log_in(user, stage.database, "guessed")
        talker.finish(terminate=False)
    # Pools exist and users are known by now.
    for user in (SCRAM_USER, QUERY_USER):
        stage.client(f"{user} again", user).ask(query(act(user)))


def _plain_logins(stage: Stage) -> None:
    """Cleartext passwords, right and wrong, in pieces and not at all."""
    stage.client("a", PLAIN_USER).ask(query(act("plain")))
    wrong = stage.talker("wrong")
    wrong.log_in(PLAIN_USER, stage.database, "guessed")
    wrong.drain()
    gone = stage.talker("gone")
    gone.start_up(PLAIN_USER, stage.database)
    gone.until(b"R")
    gone.reset()
    stage.client("a again", PLAIN_USER).ask(query(act("again")))


def _eager_logins(stage: Stage) -> None:
    """The first statement comes in one piece with the last message of the login."""
    for user in (USER, PLAIN_USER, MD5_USER, SCRAM_USER, QUERY_USER, QUERY_USER, SCRAM_USER):
        talker = stage.talker(f"{user} {len(stage.talkers)}")
        first = query(f"INSERT INTO acts(tag) VALUES ('{user} ' || current_user)")
        if user == USER:
            talker.start_up(user, stage.database, then=first)
            talker.ready()
        else:
            talker.start_up(user, stage.database)
            talker.finish_login(user, SECRET, then=first)
        talker.ready()
    # Nothing of what follows a wrong password is done.
    for user in (PLAIN_USER, MD5_USER, SCRAM_USER, QUERY_USER):
        talker = stage.talker(f"{user} is wrong")
        talker.start_up(user, stage.database)
        talker.finish_login(user, "guessed", then=query(act("never")))
        talker.drain()


def _newer_logins(stage: Stage) -> None:
    """Clients of a newer protocol, and with extensions: what is not known here is negotiated."""
    for user in (USER, MD5_USER, SCRAM_USER, QUERY_USER):
        for minor, parameters in ((2, {}), (0, {"_pq_.one": "1", "_pq_.two": "2"})):
            talker = stage.talker(f"{user} of 3.{minor}")
            talker.start_up(user, stage.database, parameters, minor=minor)
            talker.finish_login(user, SECRET)
            talker.ask(query(act(f"{user} {minor}")))


_BY_RULE = {"auth_type": "hba"}

WORKLOADS = (
    Workload("logins", _logins, settings=_BY_RULE),
    Workload(
        "auth-dbname",
        _logins,
        # The database that is asked is the same in all runs: no server rests in it.
        settings={**_BY_RULE, "auth_dbname": "lookup", "server_lifetime": 0},
    ),
    Workload("plain-logins", _plain_logins, settings=_BY_RULE),
    Workload("eager-logins", _eager_logins, settings=_BY_RULE),
    Workload("newer-logins", _newer_logins, settings=_BY_RULE),
)
