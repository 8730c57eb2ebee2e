"""An answer knows its messages, and says where another one parts from it."""

from __future__ import annotations

import pytest

from pgkeeper.trial.answer import Answer, error_text
from protocol import CommandComplete, DataRow, ReadyForQuery, TransactionStatus, fatal_error

ROW = DataRow((b"abc",)).build()
DONE = CommandComplete("SELECT 1").build()
READY = ReadyForQuery(TransactionStatus.IDLE).build()


def test_messages_are_found() -> None:
    answer = Answer.of(ROW + DONE + READY)
    assert answer.starts == (0, len(ROW), len(ROW) + len(DONE))
    assert answer.start_of(0) == answer.start_of(len(ROW) - 1) == 0
    assert answer.start_of(len(ROW)) == len(ROW)


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_half_a_message_is_no_answer(cut: int) -> None:
    with pytest.raises(ValueError, match="last message"):
        Answer.of(ROW + READY[: len(READY) - cut])


def test_a_difference_is_placed() -> None:
    answer = Answer.of(ROW + DONE)
    assert answer.describe(5, b"\x00\x01\x00\x00\x00\x03abX") == (
        f"byte 13 of {len(ROW + DONE)}: {b'c'!r} became {b'X'!r}"
    )


def test_an_error_is_read_as_people_do() -> None:
    body = fatal_error("57P03", "gone")[5:]
    assert error_text(body) == ("FATAL", "FATAL 57P03: gone")
