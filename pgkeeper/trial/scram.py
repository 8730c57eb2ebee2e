"""A client's side of SCRAM-SHA-256 (RFC 5802, RFC 7677), message by message.

libpq would do it in one go; who stops between two messages needs them apart.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

__all__ = ["Scram", "verifier"]


class Scram:
    """One exchange: `first`, then `final` with the server's answer, then `signature`."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()
        self._bare = f"n=,r={secrets.token_urlsafe(18)}"
        self._signature = b""

    @property
    def first(self) -> bytes:
        """The client-first-message, without channel binding."""
        return b"n,," + self._bare.encode()

    def final(self, server_first: bytes) -> bytes:
        """The client-final-message that answers the server-first-message."""
        fields = dict(part.split("=", 1) for part in server_first.decode().split(","))
        salted = hashlib.pbkdf2_hmac(
            "sha256", self._secret, base64.b64decode(fields["s"]), int(fields["i"])
        )
        without_proof = f"c=biws,r={fields['r']}"
        all_said = f"{self._bare},{server_first.decode()},{without_proof}".encode()
        key = _hmac(salted, b"Client Key")
        mask = _hmac(hashlib.sha256(key).digest(), all_said)
        proof = bytes(a ^ b for a, b in zip(key, mask, strict=True))
        self._signature = _hmac(_hmac(salted, b"Server Key"), all_said)
        return f"{without_proof},p={base64.b64encode(proof).decode()}".encode()

    @property
    def signature(self) -> bytes:
        """The server-final-message that must follow; known once `final` was asked for."""
        return b"v=" + base64.b64encode(self._signature)


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")


def verifier(secret: str, iterations: int = 4096) -> str:
    """What a server keeps of `secret`, as PostgreSQL and userlist.txt write it."""
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", secret.encode(), salt, iterations)
    stored = hashlib.sha256(_hmac(salted, b"Client Key")).digest()
    server = _hmac(salted, b"Server Key")
    words = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${iterations}:{words[0]}${words[1]}:{words[2]}"
