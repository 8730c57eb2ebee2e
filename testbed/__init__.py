"""The machinery of system tests and of the demo: PostgreSQL, PgBouncer and the hanger as processes.

Everything here starts real programs on 127.0.0.1 and takes them away again, whatever ends the
Python process that started them. Nothing in `pgkeeper` or `protocol` imports it.
"""

from testbed.bouncer import Bouncer
from testbed.errors import BedError
from testbed.keeper import Keeper
from testbed.pooler import Pooler
from testbed.postgres import Auth, Postgres
from testbed.rawclient import RawClient
from testbed.rundir import RunDir
from testbed.sessions import AsyncpgSession, PsycopgSession, Session, Snapshot, snapshot
from testbed.waiting import free_port, wait_until, wait_until_async

__all__ = [
    "AsyncpgSession",
    "Auth",
    "BedError",
    "Bouncer",
    "Keeper",
    "Pooler",
    "Postgres",
    "PsycopgSession",
    "RawClient",
    "RunDir",
    "Session",
    "Snapshot",
    "free_port",
    "snapshot",
    "wait_until",
    "wait_until_async",
]
