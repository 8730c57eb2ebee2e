"""The verifier that a trial gives its pgbouncers is that of its password."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re

from pgkeeper.trial.scram import Scram, verifier


def test_a_proof_made_with_the_password_fits_its_verifier() -> None:
    text = verifier("pencil", 1000)
    match = re.fullmatch(r"SCRAM-SHA-256\$1000:([^$]+)\$([^:]+):(.+)", text)
    assert match is not None
    salt, stored, server = (base64.b64decode(word) for word in match.groups())
    scram = Scram("pencil")
    bare = scram.first.decode().removeprefix("n,,")
    first = f"{bare.partition(',')[2]}server,s={match[1]},i=1000"
    final = scram.final(first.encode()).decode()
    without_proof, _, proof = final.rpartition(",p=")
    said = f"{bare},{first},{without_proof}".encode()
    mask = hmac.digest(stored, said, "sha256")
    key = bytes(a ^ b for a, b in zip(base64.b64decode(proof), mask, strict=True))
    assert hashlib.sha256(key).digest() == stored
    assert scram.signature == b"v=" + base64.b64encode(hmac.digest(server, said, "sha256"))
    assert len(salt) == 16


def test_two_verifiers_of_one_password_differ() -> None:
    assert verifier("pencil", 10) != verifier("pencil", 10)
