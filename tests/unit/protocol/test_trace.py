"""Trace lines: goldens in each mode, and what no mode shows."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

import protocol as p
from protocol.trace import _SHOWN

F, B = p.Direction.FRONTEND, p.Direction.BACKEND
T = p.FormatCode.TEXT
PLAIN = p.TraceOptions()
REGRESS = p.TraceOptions(regress=True)
CONTENT = p.TraceOptions(show_content=True)
BOTH = p.TraceOptions(regress=True, show_content=True)

ERROR = p.ErrorResponse(
    (
        ("S", "ERROR"),
        ("C", "22012"),
        ("M", "division by zero"),
        ("F", "int.c"),
        ("L", "841"),
        ("R", "int4div"),
        ("~", "new"),
    )
)
ROW = p.RowDescription((p.FieldDescription("?column?", 16384, 1, 23, 4, -1, T),))
BIND = p.Bind("po", "", (T,), (b"4\n2", None), (p.FormatCode.BINARY,))
STARTUP = p.StartupMessage(p.PROTOCOL_3_2, (("user", "joe"), ("options", "-c a=b")))


@pytest.mark.parametrize(
    ("direction", "message", "options", "line"),
    [
        (F, p.Query("select 1"), PLAIN, 'F\t13\tQuery\t "SSSS"'),
        (F, p.Query("select 1"), REGRESS, 'F\t13\tQuery\t "SSSS"'),
        (F, p.Query("select 1"), CONTENT, 'F\t13\tQuery\t "select 1"'),
        (F, p.Query('é"\n'), CONTENT, 'F\t9\tQuery\t "\\xc3\\xa9"\\x0a"'),
        (F, p.Parse("s", "q", (23,)), PLAIN, 'F\t14\tParse\t "s" "SSSS" 1 23'),
        (F, p.Parse("s", "q", (23,)), BOTH, 'F\t14\tParse\t "s" "q" 1 NNNN'),
        (F, BIND, PLAIN, 'F\t29\tBind\t "po" "" 1 0 2 3 \'BBBB\' -1 1 1'),
        (F, BIND, CONTENT, 'F\t29\tBind\t "po" "" 1 0 2 3 \'4\\x0a2\' -1 1 1'),
        (F, p.Describe(p.Target.PORTAL, ""), PLAIN, 'F\t6\tDescribe\t P ""'),
        (F, p.Close(p.Target.STATEMENT, "s"), PLAIN, 'F\t7\tClose\t S "s"'),
        (F, p.Execute("", 0), PLAIN, 'F\t9\tExecute\t "" 0'),
        (F, p.Sync(), PLAIN, "F\t4\tSync"),
        (F, p.CopyData(b"x"), PLAIN, "F\t5\tCopyData\t 'BBBB'"),
        (B, p.CopyData(b"x"), CONTENT, "B\t5\tCopyData\t 'x'"),
        (F, p.CopyFail("no"), PLAIN, 'F\t7\tCopyFail\t "SSSS"'),
        (
            F,
            p.FunctionCall(99, (), (b"1",), T),
            REGRESS,
            "F\t19\tFunctionCall\t NNNN 0 1 1 'BBBB' 0",
        ),
        (B, p.FunctionCallResponse(None), PLAIN, "B\t8\tFunctionCallResponse\t -1"),
        (F, p.PasswordMessage("hunter2"), CONTENT, 'F\tNN\tPasswordMessage\t "SSSS"'),
        (
            F,
            p.SASLInitialResponse("SCRAM-SHA-256", b"xyz"),
            CONTENT,
            "F\t25\tSASLInitialResponse\t \"SCRAM-SHA-256\" 3 'BBBB'",
        ),
        (B, p.AuthenticationOk(), PLAIN, "B\t8\tAuthenticationOk"),
        (
            B,
            p.AuthenticationSASL(("SCRAM-SHA-256",)),
            PLAIN,
            'B\t23\tAuthenticationSASL\t "SCRAM-SHA-256" ""',
        ),
        (
            B,
            p.AuthenticationMD5Password(b"salt"),
            CONTENT,
            "B\t12\tAuthenticationMD5Password\t 'BBBB'",
        ),
        (B, p.BackendKeyData(42, b"abcd"), PLAIN, "B\t12\tBackendKeyData\t 42 'BBBB'"),
        (B, p.BackendKeyData(42, b"abcd"), REGRESS, "B\t12\tBackendKeyData\t NNNN 'BBBB'"),
        (B, p.ReadyForQuery(p.TransactionStatus.IDLE), PLAIN, "B\t5\tReadyForQuery\t I"),
        (B, p.CommandComplete("SELECT 1"), PLAIN, 'B\t13\tCommandComplete\t "SELECT 1"'),
        (B, p.ParameterStatus("a", "b"), PLAIN, 'B\t8\tParameterStatus\t "a" "b"'),
        (B, p.DataRow((b"1", None)), PLAIN, "B\t15\tDataRow\t 2 1 'BBBB' -1"),
        (B, p.DataRow((b"1", None)), CONTENT, "B\t15\tDataRow\t 2 1 '1' -1"),
        (B, ROW, PLAIN, 'B\t33\tRowDescription\t 1 "?column?" 16384 1 23 4 -1 0'),
        (B, ROW, REGRESS, 'B\t33\tRowDescription\t 1 "?column?" NNNN 1 NNNN 4 -1 0'),
        (B, p.ParameterDescription((23,)), REGRESS, "B\t10\tParameterDescription\t 1 NNNN"),
        (B, p.CopyInResponse(T, (T, T)), PLAIN, "B\t11\tCopyInResponse\t 0 2 0 0"),
        (
            B,
            p.NotificationResponse(7, "ch", "hi"),
            BOTH,
            'B\t14\tNotificationResponse\t NNNN "ch" "hi"',
        ),
        (
            B,
            p.NegotiateProtocolVersion(p.PROTOCOL_3_0, ("_pq_.x",)),
            PLAIN,
            'B\t19\tNegotiateProtocolVersion\t 196608 1 "_pq_.x"',
        ),
        (
            B,
            ERROR,
            PLAIN,
            'B\t63\tErrorResponse\t S "ERROR" C "22012" M "SSSS"'
            ' F "int.c" L "841" R "int4div" ~ "SSSS" \\x00',
        ),
        (
            B,
            ERROR,
            BOTH,
            'B\tNN\tErrorResponse\t S "ERROR" C "22012" M "division by zero"'
            ' F "SSSS" L "SSSS" R "SSSS" ~ "new" \\x00',
        ),
        (
            F,
            STARTUP,
            PLAIN,
            'F\t33\tStartupMessage\t 3 2 "user" "joe" "options" "SSSS"',
        ),
        (F, p.SSLRequest(), PLAIN, "F\t8\tSSLRequest\t 1234 5679"),
        (F, p.GSSENCRequest(), PLAIN, "F\t8\tGSSENCRequest\t 1234 5680"),
        (F, p.CancelRequest(42, b"abcd"), PLAIN, "F\t16\tCancelRequest\t 1234 5678 42 'BBBB'"),
        (F, p.CancelRequest(42, b"abcd"), REGRESS, "F\t16\tCancelRequest\t 1234 5678 NNNN 'BBBB'"),
    ],
)
def test_lines(direction: p.Direction, message: Any, options: p.TraceOptions, line: str) -> None:
    assert p.trace_message(direction, message, options) == line


def test_content_is_hidden_unless_asked() -> None:
    assert p.TraceOptions() == p.TraceOptions(regress=False, show_content=False)
    assert "select" not in p.trace_message(F, p.Query("select 1"))


def test_every_golden_is_one_printable_line(golden: Any) -> None:
    for options in (PLAIN, REGRESS, CONTENT, BOTH):
        line = p.trace_message(golden.direction, golden.message, options)
        assert line.replace("\t", " ").isprintable()
        assert line.isascii()
        assert line.split("\t")[2] == type(golden.message).__name__


def test_every_field_is_considered(goldens: Any, startup_goldens: Any) -> None:
    messages = [golden.message for golden in goldens] + [packet for packet, _ in startup_goldens]
    for message in messages:
        shown = [name for name, _ in _SHOWN[type(message)] if name != "CODE"]
        assert shown == [field.name for field in fields(message)]


SECRET = b"hunter2x"


@pytest.mark.parametrize("options", [PLAIN, REGRESS, CONTENT, BOTH], ids=repr)
@pytest.mark.parametrize(
    ("direction", "message"),
    [
        (F, p.PasswordMessage(SECRET.decode())),
        (F, p.SASLInitialResponse("SCRAM-SHA-256", SECRET)),
        (F, p.SASLResponse(SECRET)),
        (F, p.GSSResponse(SECRET)),
        (F, p.CancelRequest(1, SECRET)),
        (B, p.BackendKeyData(1, SECRET)),
        (B, p.AuthenticationMD5Password(SECRET[:4])),
        (B, p.AuthenticationGSSContinue(SECRET)),
        (B, p.AuthenticationSASLContinue(SECRET)),
        (B, p.AuthenticationSASLFinal(SECRET)),
    ],
    ids=lambda item: type(item).__name__,
)
def test_secrets_are_in_no_mode(
    direction: p.Direction, message: Any, options: p.TraceOptions
) -> None:
    assert SECRET[:4].decode() not in p.trace_message(direction, message, options)


def test_passwords_of_any_length_look_alike() -> None:
    short, long = p.PasswordMessage("a"), p.PasswordMessage("a" * 99)
    assert p.trace_message(F, short) == p.trace_message(F, long)


def test_errors_that_quote_a_query_are_hidden() -> None:
    for code in "MDHWq":
        report = p.ErrorResponse(((code, "at or near 'hunter2"),))
        assert "hunter2" not in p.trace_message(B, report)
        assert "hunter2" in p.trace_message(B, report, CONTENT)


@pytest.mark.parametrize(
    ("direction", "message"),
    [(B, p.Sync()), (F, p.NoData()), (B, p.SSLRequest()), (F, p.AuthenticationOk())],
)
def test_a_side_that_does_not_send_it(direction: p.Direction, message: Any) -> None:
    with pytest.raises(p.LocalProtocolError):
        p.trace_message(direction, message)


def test_encryption_replies() -> None:
    assert p.trace_encryption_reply(p.SSLRequest(), p.EncryptionReply.REFUSED) == (
        "B\t1\tSSLResponse\t N"
    )
    assert p.trace_encryption_reply(p.GSSENCRequest(), p.EncryptionReply.GSS) == (
        "B\t1\tGSSENCResponse\t G"
    )
