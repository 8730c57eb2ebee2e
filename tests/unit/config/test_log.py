"""Logs: the two forms, the level, and what must never be in them."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest
import structlog

from pgkeeper import log

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _unconfigured() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def lines(json_form: bool, level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    log.configure(json=json_form, level=level, stream=stream)
    return stream


def test_json_is_one_object_a_line() -> None:
    stream = lines(True)
    logger = log.get_logger(incarnation=3)
    logger.warning(log.Event.LISTENING, address="127.0.0.1:6432")
    logger.info(log.Event.HANGER_STARTED, text="two\nlines")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first.pop("timestamp").endswith("Z")
    assert first == {
        "event": "listening",
        "level": "warning",
        "incarnation": 3,
        "address": "127.0.0.1:6432",
    }
    assert second["text"] == "two\nlines"


def test_readable_lines_have_time_level_event_and_facts_without_colours() -> None:
    stream = lines(False)
    log.get_logger().error(log.Event.LISTENING, port=6432)
    (line,) = stream.getvalue().splitlines()
    assert "\x1b" not in line
    for part in ("Z", "error", "listening", "port=6432"):
        assert part in line


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_level(level: str, expected: list[str]) -> None:
    stream = lines(True, level)
    logger = log.get_logger()
    for method in ("debug", "info", "warning", "error"):
        getattr(logger, method)("x")
    assert [json.loads(line)["level"] for line in stream.getvalue().splitlines()] == expected


def test_unknown_level() -> None:
    with pytest.raises(ValueError, match="level"):
        log.configure(level="loud")


@pytest.mark.parametrize("json_form", [True, False])
@pytest.mark.parametrize(
    "facts",
    [
        {"password": "hunter2"},
        {"cancel_key": b"hunter2"},
        {"cancel_key": 2002},
        {"Server-Key": "hunter2"},
        {"scram_state": {"x": "hunter2"}},
        {"query": "hunter2"},
        {"last_query_text": "hunter2"},
        {"user": {"name": "joe", "passwd": "hunter2"}},
        {"users": [{"passwd": "hunter2"}]},
        {"raw": b"hunter2"},
        {"raw": memoryview(b"hunter2")},
        {"deep": [[[[[[[[[["hunter2"]]]]]]]]]]},
    ],
)
def test_secrets_never_reach_a_log(facts: dict[str, object], json_form: bool) -> None:
    stream = lines(json_form)
    log.get_logger().info("x", **facts)
    assert "hunter2" not in stream.getvalue()
    assert "2002" not in stream.getvalue()


def test_harmless_facts_stay() -> None:
    stream = lines(True)
    facts = {
        "query_timeout": 1.5,
        "token": 7,
        "held": True,
        "statement_count": None,
        "unheld": {"tls": 2},
        "pids": [1, 2],
        "user": "joe",
    }
    log.get_logger().info("x", **facts)
    assert json.loads(stream.getvalue()).items() >= facts.items()


@pytest.mark.parametrize("json_form", [True, False])
def test_tracebacks_show_no_local_variables(json_form: bool) -> None:
    stream = lines(json_form)

    def connect(password: str) -> None:
        raise RuntimeError("no luck")

    try:
        connect("".join(("hunt", "er2")))  # not in the source, which a traceback may show
    except RuntimeError:
        log.get_logger().exception(log.Event.INTERNAL_ERROR)
    assert "no luck" in stream.getvalue()
    assert "test_log.py" in stream.getvalue()
    assert "hunter2" not in stream.getvalue()


def test_lines_of_later_are_written_at_the_end_with_the_times_at_which_they_were_logged() -> None:
    stream = lines(True)
    logger = log.get_logger()
    logger.info("before")
    with log.lines_later():
        logger.info("first", password="hunter2")
        with log.lines_later():
            logger.warning("second")
        written = stream.getvalue()
    logger.info("after")
    assert [json.loads(line)["event"] for line in written.splitlines()] == ["before"]
    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [one["event"] for one in found] == ["before", "first", "second", "after"]
    assert [one["level"] for one in found] == ["info", "info", "warning", "info"]
    assert found[1]["password"] == log.REDACTED
    times = [one["timestamp"] for one in found]
    assert times == sorted(times)


def test_lines_of_later_are_written_where_an_exception_ends_it() -> None:
    stream = lines(True)

    def fail() -> None:
        with log.lines_later():
            log.get_logger().info("first")
            raise ValueError("because")

    with pytest.raises(ValueError, match="because"):
        fail()
    log.get_logger().info("second")
    found = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert found == ["first", "second"]


def test_a_traceback_is_written_at_once_behind_what_came_before_it() -> None:
    stream = lines(True)
    with log.lines_later():
        log.get_logger().info("first")
        try:
            raise ValueError("because")
        except ValueError:
            log.get_logger().exception("failed")
        written = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [one["event"] for one in written] == ["first", "failed"]
    assert "because" in written[1]["exception"]


def test_what_the_level_hides_is_not_written_later_either() -> None:
    stream = lines(True, "warning")
    with log.lines_later():
        log.get_logger().info("first")
        log.get_logger().warning("second")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["second"]
