"""Connection strings of both kinds, and that none of their values is repeated in an error."""

from __future__ import annotations

import pytest

from pgkeeper.trial.dsn import Address, BadDsnError, parse_dsn


@pytest.fixture(autouse=True)
def _no_libpq(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGUSER", "PGPASSWORD"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("", Address("127.0.0.1", 5432, "postgres", "postgres")),
        ("host=db port=6432 user=app", Address("db", 6432, "app", "app")),
        (
            r"host = /run/pg  password='it\'s a \\' dbname=''",
            Address("/run/pg", 5432, "postgres", "postgres", "it's a \\"),
        ),
        ("postgresql://app:s%40e@db:6432/shop", Address("db", 6432, "app", "shop", "s@e")),
        ("postgres:///shop?host=/tmp&port=7", Address("/tmp", 7, "postgres", "shop")),
        ("postgresql://[::1]/?sslmode=disable", Address("::1", 5432, "postgres", "postgres")),
    ],
)
def test_both_kinds(text: str, address: Address) -> None:
    assert parse_dsn(text) == address


def test_the_environment_fills_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGUSER", "app")
    monkeypatch.setenv("PGPASSWORD", "fromenv")
    assert parse_dsn("host=db") == Address("db", 5432, "app", "app", "fromenv")


@pytest.mark.parametrize(
    "text",
    [
        "host=db password=hunter2 port=x",
        "host=db password=hunter2 sslmode=require",
        "host=db password=hunter2 servicefile=/etc/x",
        "host=db password='hunter2",
        "hunter2",
        "postgresql://u:hunter2@db:port/",
        "postgresql://u:hunter2@[db/",
    ],
)
def test_what_cannot_be_used_is_refused_without_its_secret(text: str) -> None:
    with pytest.raises(BadDsnError) as caught:
        parse_dsn(text)
    assert "hunter2" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_password_is_not_shown() -> None:
    assert "hunter2" not in repr(parse_dsn("password=hunter2"))
