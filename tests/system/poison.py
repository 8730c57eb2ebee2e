"""Changes for a patched PgBouncer that dies of certain words, as a real one does of a bug."""

from __future__ import annotations

from tests.sweep.controls.mutants import Change

#: In a Query of a client: it dies by SIGABRT; it runs for ever.
CRASH = "fall-over"
LOOP = "run-for-ever"
#: In a message of a server.
CRASH_IN_ANSWER = "fall-back"

_HAS = "memmem(pkt->data.data + pkt->data.read_pos, mbuf_avail_for_read(&pkt->data), "

#: It knows these words.
POISONABLE = (
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

#: CVE-2026-6664 as it was: the sum of position and length overflows, and so passes the check.
VULNERABLE = tuple(
    Change(
        "lib/usual/mbuf.h",
        f"\tif (len > buf->write_pos - buf->read_pos)\n\t\treturn false;\n\t*dst_p = {value}",
        f"\tif (buf->read_pos + len > buf->write_pos)\n\t\treturn false;\n\t*dst_p = {value}",
    )
    for value in ("buf->data + buf->read_pos;", "(char *)buf->data + buf->read_pos;")
)
