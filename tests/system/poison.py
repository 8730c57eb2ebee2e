"""Builds of the patched PgBouncer that die of certain words, as a real one does of a bug."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgkeeper.bouncer.build import binary, source_dir
from tests.sweep.controls.mutants import Change, Mutants

if TYPE_CHECKING:
    from pathlib import Path

    from testbed import RunDir

#: In a Query of a client: it dies by SIGABRT; it runs for ever.
CRASH = "fall-over"
LOOP = "run-for-ever"
#: In a message of a server.
CRASH_IN_ANSWER = "fall-back"

_HAS = "memmem(pkt->data.data + pkt->data.read_pos, mbuf_avail_for_read(&pkt->data), "

_CHANGES = (
    Change(
        "src/client.c",
        "case PqMsg_Query:\n\t\tif (cf_disable_pqexec) {",
        "case PqMsg_Query:\n"
        f'\t\tif ({_HAS}"{CRASH}", {len(CRASH)}))\n\t\t\tabort();\n'
        f'\t\twhile ({_HAS}"{LOOP}", {len(LOOP)})) {{\n\t\t}}\n'
        "\t\tif (cf_disable_pqexec) {",
    ),
    Change(
        "src/server.c",
        "\tswitch (pkt->type) {\n\tdefault:\n\t\tslog_error(server, \"unknown pkt: '%c'\"",
        f'\tif ({_HAS}"{CRASH_IN_ANSWER}", {len(CRASH_IN_ANSWER)}))\n\t\tabort();\n'
        "\tswitch (pkt->type) {\n\tdefault:\n\t\tslog_error(server, \"unknown pkt: '%c'\"",
    ),
)


def poisonable(run_dir: RunDir) -> Path:
    """The executable that knows these words."""
    binary()
    return Mutants(source_dir(), run_dir.folder("mutants-poison")).binary(_CHANGES)


# CVE-2026-6664 as it was: the sum of position and length overflows, and so passes the check.
_OVERFLOW = tuple(
    Change(
        "lib/usual/mbuf.h",
        f"\tif (len > buf->write_pos - buf->read_pos)\n\t\treturn false;\n\t*dst_p = {value}",
        f"\tif (buf->read_pos + len > buf->write_pos)\n\t\treturn false;\n\t*dst_p = {value}",
    )
    for value in ("buf->data + buf->read_pos;", "(char *)buf->data + buf->read_pos;")
)


def vulnerable(run_dir: RunDir) -> Path:
    """The executable without the patch against CVE-2026-6664, but with all others."""
    binary()
    return Mutants(source_dir(), run_dir.folder("mutants-vulnerable")).binary(_OVERFLOW)
