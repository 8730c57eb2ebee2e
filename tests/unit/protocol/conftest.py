"""One golden for every message: the dataclass and the bytes the documentation says it is."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

import protocol as p

T, B = p.FormatCode.TEXT, p.FormatCode.BINARY


@dataclass(frozen=True)
class Golden:
    """A typed message, its frame, and how to tell a reader what it is."""

    message: p.Message
    frame: bytes
    exchange: p.Exchange | None = None
    open_ended: bool = False

    @property
    def direction(self) -> p.Direction:
        sent_by_frontend = isinstance(self.message, p.FrontendMessage)
        return p.Direction.FRONTEND if sent_by_frontend else p.Direction.BACKEND

    def parse(self, payload: bytes) -> p.Message:
        frame = p.Frame(self.frame[:1], payload)
        if self.direction is p.Direction.FRONTEND:
            return p.parse_frontend(frame, self.exchange)
        return p.parse_backend(frame)

    def __str__(self) -> str:
        return type(self.message).__name__


GOLDENS = (
    # Authentication, backend
    Golden(p.AuthenticationOk(), b"R\0\0\0\x08\0\0\0\0"),
    Golden(p.AuthenticationKerberosV5(), b"R\0\0\0\x08\0\0\0\x02"),
    Golden(p.AuthenticationCleartextPassword(), b"R\0\0\0\x08\0\0\0\x03"),
    Golden(p.AuthenticationMD5Password(b"\x01\x02\0\xff"), b"R\0\0\0\x0c\0\0\0\x05\x01\x02\0\xff"),
    Golden(p.AuthenticationGSS(), b"R\0\0\0\x08\0\0\0\x07"),
    Golden(
        p.AuthenticationGSSContinue(b"to\0ken"),
        b"R\0\0\0\x0e\0\0\0\x08to\0ken",
        open_ended=True,
    ),
    Golden(p.AuthenticationSSPI(), b"R\0\0\0\x08\0\0\0\x09"),
    Golden(
        p.AuthenticationSASL(("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256")),
        b"R\0\0\0\x2a\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0",
    ),
    Golden(
        p.AuthenticationSASLContinue(b"r=n,s=c,i=4096"),
        b"R\0\0\0\x16\0\0\0\x0br=n,s=c,i=4096",
        open_ended=True,
    ),
    Golden(p.AuthenticationSASLFinal(b"v=cm1m"), b"R\0\0\0\x0e\0\0\0\x0cv=cm1m", open_ended=True),
    # Authentication, frontend
    Golden(p.PasswordMessage("hunter2"), b"p\0\0\0\x0chunter2\0", p.Exchange.PASSWORD),
    Golden(
        p.SASLInitialResponse("SCRAM-SHA-256", b"n,,n=,r=x"),
        b"p\0\0\0\x1fSCRAM-SHA-256\0\0\0\0\x09n,,n=,r=x",
        p.Exchange.SASL_INITIAL,
    ),
    Golden(
        p.SASLInitialResponse("EXTERNAL", None),
        b"p\0\0\0\x11EXTERNAL\0\xff\xff\xff\xff",
        p.Exchange.SASL_INITIAL,
    ),
    Golden(
        p.SASLResponse(b"c=biws,r=x,p=cA=="),
        b"p\0\0\0\x15c=biws,r=x,p=cA==",
        p.Exchange.SASL,
        open_ended=True,
    ),
    Golden(p.GSSResponse(b"`\x82token"), b"p\0\0\0\x0b`\x82token", p.Exchange.GSS, open_ended=True),
    # Both directions
    Golden(p.CopyData(b"1\tone\n"), b"d\0\0\0\x0a1\tone\n", open_ended=True),
    Golden(p.CopyDone(), b"c\0\0\0\x04"),
    # Frontend
    Golden(p.Bind(), b"B\0\0\0\x0c\0\0\0\0\0\0\0\0"),
    Golden(
        p.Bind("po", "st", (T, B), (b"42", None, b""), (B,)),
        b"B\0\0\0\x24po\0st\0\0\x02\0\0\0\x01\0\x03"
        b"\0\0\0\x0242\xff\xff\xff\xff\0\0\0\0\0\x01\0\x01",
    ),
    Golden(p.Close(p.Target.STATEMENT, "st"), b"C\0\0\0\x08Sst\0"),
    Golden(p.Close(p.Target.PORTAL, ""), b"C\0\0\0\x06P\0"),
    Golden(p.CopyFail("no more"), b"f\0\0\0\x0cno more\0"),
    Golden(p.Describe(p.Target.STATEMENT, "st"), b"D\0\0\0\x08Sst\0"),
    Golden(p.Describe(p.Target.PORTAL, "po"), b"D\0\0\0\x08Ppo\0"),
    Golden(p.Execute("po", 256), b"E\0\0\0\x0bpo\0\0\0\x01\0"),
    Golden(p.Flush(), b"H\0\0\0\x04"),
    Golden(
        p.FunctionCall(0xFFFF_FFFE, (B,), (b"\0\x07", None), T),
        b"F\0\0\0\x1a\xff\xff\xff\xfe\0\x01\0\x01\0\x02\0\0\0\x02\0\x07\xff\xff\xff\xff\0\0",
    ),
    Golden(
        p.Parse("st", "select $1", (23, 0)),
        b"P\0\0\0\x1bst\0select $1\0\0\x02\0\0\0\x17\0\0\0\0",
    ),
    Golden(p.Query("select 'é'"), b"Q\0\0\0\x10select '\xc3\xa9'\0"),
    Golden(p.Sync(), b"S\0\0\0\x04"),
    Golden(p.Terminate(), b"X\0\0\0\x04"),
    # Backend
    Golden(
        p.BackendKeyData(4242, b"\xde\xad\xbe\xef"),
        b"K\0\0\0\x0c\0\0\x10\x92\xde\xad\xbe\xef",
        open_ended=True,
    ),
    Golden(
        p.BackendKeyData(-2, bytes(range(256))),
        b"K\0\0\x01\x08\xff\xff\xff\xfe" + bytes(range(256)),
        open_ended=True,
    ),
    Golden(p.BindComplete(), b"2\0\0\0\x04"),
    Golden(p.CloseComplete(), b"3\0\0\0\x04"),
    Golden(p.CommandComplete("INSERT 0 1"), b"C\0\0\0\x0fINSERT 0 1\0"),
    Golden(p.CopyBothResponse(T, ()), b"W\0\0\0\x07\0\0\0"),
    Golden(p.CopyInResponse(T, (T, T)), b"G\0\0\0\x0b\0\0\x02\0\0\0\0"),
    Golden(p.CopyOutResponse(B, (B,)), b"H\0\0\0\x09\x01\0\x01\0\x01"),
    Golden(p.DataRow((b"1", None)), b"D\0\0\0\x0f\0\x02\0\0\0\x011\xff\xff\xff\xff"),
    Golden(p.DataRow(()), b"D\0\0\0\x06\0\0"),
    Golden(p.EmptyQueryResponse(), b"I\0\0\0\x04"),
    Golden(
        p.ErrorResponse((("S", "ERROR"), ("C", "42601"), ("M", "bad"), ("L", "1"))),
        b"E\0\0\0\x1bSERROR\0C42601\0Mbad\0L1\0\0",
    ),
    Golden(p.FunctionCallResponse(b"\x01"), b"V\0\0\0\x09\0\0\0\x01\x01"),
    Golden(p.FunctionCallResponse(None), b"V\0\0\0\x08\xff\xff\xff\xff"),
    Golden(
        p.NegotiateProtocolVersion(p.PROTOCOL_3_2, ("_pq_.a", "_pq_.b")),
        b"v\0\0\0\x1a\0\x03\0\x02\0\0\0\x02_pq_.a\0_pq_.b\0",
    ),
    Golden(p.NoData(), b"n\0\0\0\x04"),
    Golden(p.NoticeResponse((("V", "NOTICE"), ("~", "new"))), b"N\0\0\0\x12VNOTICE\0~new\0\0"),
    Golden(p.NotificationResponse(7, "ch", "hi"), b"A\0\0\0\x0e\0\0\0\x07ch\0hi\0"),
    Golden(p.ParameterDescription((23, 25)), b"t\0\0\0\x0e\0\x02\0\0\0\x17\0\0\0\x19"),
    Golden(p.ParameterStatus("TimeZone", "UTC"), b"S\0\0\0\x11TimeZone\0UTC\0"),
    Golden(p.ParseComplete(), b"1\0\0\0\x04"),
    Golden(p.PortalSuspended(), b"s\0\0\0\x04"),
    Golden(p.ReadyForQuery(p.TransactionStatus.IDLE), b"Z\0\0\0\x05I"),
    Golden(p.ReadyForQuery(p.TransactionStatus.IN_TRANSACTION), b"Z\0\0\0\x05T"),
    Golden(p.ReadyForQuery(p.TransactionStatus.FAILED), b"Z\0\0\0\x05E"),
    Golden(
        p.RowDescription((p.FieldDescription("id", 16384, 1, 23, 4, -1, T),)),
        b"T\0\0\0\x1b\0\x01id\0\0\0\x40\0\0\x01\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0",
    ),
)

STARTUP_GOLDENS = (
    (
        p.StartupMessage(p.PROTOCOL_3_0, (("user", "joe"), ("database", "db"))),
        b"\0\0\0\x1e\0\x03\0\0user\0joe\0database\0db\0\0",
    ),
    (
        p.StartupMessage(p.PROTOCOL_3_2, (("user", "joe"), ("_pq_.x", ""))),
        b"\0\0\0\x1a\0\x03\0\x02user\0joe\0_pq_.x\0\0\0",
    ),
    (p.SSLRequest(), b"\0\0\0\x08\x04\xd2\x16\x2f"),
    (p.GSSENCRequest(), b"\0\0\0\x08\x04\xd2\x16\x30"),
    (
        p.CancelRequest(4242, b"\xde\xad\xbe\xef"),
        b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\x10\x92\xde\xad\xbe\xef",
    ),
    (
        p.CancelRequest(-2, bytes(range(256))),
        b"\0\0\x01\x0c\x04\xd2\x16\x2e\xff\xff\xff\xfe" + bytes(range(256)),
    ),
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden" in metafunc.fixturenames:
        metafunc.parametrize("golden", GOLDENS, ids=str)
    if "startup_golden" in metafunc.fixturenames:
        ids = [type(packet).__name__ for packet, _ in STARTUP_GOLDENS]
        metafunc.parametrize("startup_golden", STARTUP_GOLDENS, ids=ids)


@pytest.fixture(scope="session")
def goldens() -> tuple[Golden, ...]:
    return GOLDENS


@pytest.fixture(scope="session")
def startup_goldens() -> tuple[tuple[p.StartupPacket, bytes], ...]:
    return STARTUP_GOLDENS
