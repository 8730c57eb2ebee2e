"""Clients that come and go while kills happen: none may be refused or reset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from testbed.load import AsyncpgWorker, PsycopgWorker, check
from testbed.sessions import AsyncpgSession, PsycopgSession

if TYPE_CHECKING:
    from testbed.postgres import Postgres

LOGIN_USER = "login_storm"
LOGIN_SECRET = "wellknown"  # noqa: S105 (of a server that lives for one test)


class PsycopgLogins(PsycopgWorker):
    """A login with SCRAM, a query and a farewell each turn, beside an idle session."""

    kind = "psycopg logins"

    async def turn(self, connection: Any, turn: int) -> None:
        """See the class."""
        session = await PsycopgSession.open(
            self.pooler, "transaction", user=LOGIN_USER, password=LOGIN_SECRET
        )
        try:
            rows = await session.fetch(f"SELECT current_user::text, {turn}")
        finally:
            await session.close()
        check(rows == [(LOGIN_USER, turn)], f"{rows}")


class AsyncpgLogins(AsyncpgWorker):
    """Like `PsycopgLogins`, without a password."""

    kind = "asyncpg logins"

    async def turn(self, connection: Any, turn: int) -> None:
        """See the class."""
        session = await AsyncpgSession.open(self.pooler, "transaction")
        try:
            rows = await session.fetch(f"SELECT {turn}")
        finally:
            await session.close()
        check([tuple(row) for row in rows] == [(turn,)], f"{rows}")


LOGINS = (PsycopgLogins, AsyncpgLogins)


def prepare_logins(postgres: Postgres) -> str:
    """Make the user, if it is not there; the line for userlist.txt's password."""
    if not postgres.sql("SELECT 1 FROM pg_roles WHERE rolname = %s", (LOGIN_USER,)):
        postgres.sql(f"CREATE ROLE {LOGIN_USER} LOGIN PASSWORD '{LOGIN_SECRET}'")
    return postgres.verifier(LOGIN_USER)
