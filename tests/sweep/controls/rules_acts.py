"""Rules of the writer, each broken on purpose: ahead of every act, and nothing reused too early."""

from __future__ import annotations

from functools import partial

from tests.sweep.controls.mutants import Change
from tests.sweep.controls.rule import KEEPER, Broken, Hunt
from tests.sweep.controls.workloads import workload
from tests.sweep.syscall.sweep import between, every

_ACTS = f"{KEEPER}/acts.c"
_COPY = f"{KEEPER}/copy.c"
_ENDS = f"{KEEPER}/ends.c"
_COMMIT_H = "include/keeper/commit.h"
_HOOKED = f"{KEEPER}/keeper.c"
_HOOKED_H = "include/keeper/keeper.h"
_OUTBOX_C = f"{KEEPER}/outbox.c"
_LOOP = f"{KEEPER}/loop.c"
_RECORD = f"{KEEPER}/record.c"
_STORE = f"{KEEPER}/store.c"
_STORE_H = "include/keeper/store.h"

_SEND = "keeper_commit(KEEPER_ACT_SEND, slot, source ? source->keeper_slot : 0);"
_OUTBOX = (
    "keeper_store_mark(&keeper_store, slot);\n\t\tkeeper_commit(KEEPER_ACT_OUTBOX, slot, slot);"
)
_NOTHING_JOINED = Change(_ACTS, "may_be_joined(l, source, data, len)", "false")
_NOTHING_HANDED = Change(_ACTS, "may_hand_on(sk, l, source, data, len)", "false")
_NO_NOTE = Change(_ACTS, "if (!may_be_noted(", "if (false)\n\t\tif (!may_be_noted(")
_NOTE_LATE = (
    "(void)keeper_store_note_read(&keeper_store, slot, l->rx, sbuf->io->keeper_number, position);"
)
_READ = "if (likely(res > 0))\n\t\t\tl->rx += res;"
_OPERATORS_END = "disconnect_client_sqlstate(l->object, between_messages(l->object)"
_MARK = "\tif (unlikely(sk->keeper_clean))\n\t\tkeeper_mark_clean(sk);\n"
_MARKS_BEFORE = Change(_HOOKED_H, f"{_MARK}\tif (event", "\tif (event")
_MARKS_AFTER = Change(_HOOKED_H, f"{_MARK}\t/* the last", "\t/* the last")
# What is not marked is compared with its true copy before each commit.
_VERIFIED = Change(_COPY, '#include "bouncer.h"\n', '#define CASSERT\n#include "bouncer.h"\n')

RULES = (
    Broken(
        "immediate sends bypass the outbox",
        (
            Change(_ACTS, "if (keeper_outbox_append(slot, data, len))", "if (false)"),
            Change(_ACTS, "l->next = source ? 0 : KEEPER_NEXT_BYPASS;"),
        ),
        Hunt(workload("simple")),
        "an answer leaves before the packet that caused it is consumed: it is made again",
    ),
    Broken(
        "a send is committed after it",
        (
            _NOTHING_HANDED,
            Change(_ACTS, _SEND),
            Change(
                _ACTS,
                "return keeper_send_to(slot, data, len);",
                f"ssize_t res = keeper_send_to(slot, data, len); {_SEND} return res;",
            ),
        ),
        Hunt(workload("simple"), partial(every, 3)),
        "bytes are out that no committed state speaks of: they are sent twice",
    ),
    Broken(
        "an outbox is committed after it was sent",
        (
            Change(_OUTBOX_C, _OUTBOX),
            Change(_OUTBOX_C, "l->outbox_done += res;", f"{{ l->outbox_done += res; {_OUTBOX} }}"),
        ),
        Hunt(workload("contention"), partial(every, 3)),
        "the kernel has more of a stream than any committed state announced",
    ),
    Broken(
        "a recv is neither noted nor committed",
        (_NO_NOTE,),
        Hunt(workload("simple"), partial(every, 3)),
        "nobody knows where the bytes went that left the kernel",
    ),
    Broken(
        "a recv is noted after it",
        (
            _NO_NOTE,
            Change(_ACTS, _READ, f"{_NOTE_LATE} {_READ}"),
        ),
        Hunt(workload("simple"), partial(every, 3)),
        "as without a note, if the kill comes in between",
    ),
    Broken(
        "a recv that cannot be noted is not committed",
        (
            Change(
                _ACTS,
                "keeper_commit(KEEPER_ACT_RECV, slot, slot);",
                "if (keeper_store.n_reads < KEEPER_READS)\n"
                "\t\t\tkeeper_commit(KEEPER_ACT_RECV, slot, slot);",
            ),
        ),
        Hunt(workload("halves"), partial(every, 2, 700), slow=True),
        "there are so many notes between two commits, and no more",
    ),
    Broken(
        "a note where the recv does not append",
        (Change(_STORE_H, "copy->rx == rx && (appends || starts)", "copy->rx == rx"),),
        Hunt(workload("bursts"), partial(every, 3, 60)),
        "committed bytes and noted ones lie at two places: only one of them can be told",
    ),
    Broken(
        "a note in spite of reads since the commit",
        (Change(_STORE_H, "copy->rx == rx &&"),),
        Hunt(workload("statements"), partial(every, 3, 120)),
        "an earlier note of the same socket is forgotten with its bytes",
    ),
    Broken(
        "a copy counts as drained when bytes are left",
        (Change(_COPY, "drained = io->done_pos == io->recv_pos;"),),
        Hunt(workload("bursts"), partial(every, 3, 60)),
        "as with a note where the recv does not append",
    ),
    Broken(
        "a copy counts as drained in spite of reads since",
        (Change(_ACTS, "l->copies &= ~KEEPER_COPY_DRAINED;"),),
        Hunt(workload("statements"), partial(every, 3, 120)),
        "as with a note in spite of reads since the commit",
    ),
    Broken(
        "stream bytes overtake the outbox",
        (
            _NOTHING_JOINED,
            _NOTHING_HANDED,
            Change(_ACTS, "if (unlikely(l->outbox || l->is_handed)) {", "if (false) {"),
        ),
        Hunt(workload("answers")),
        "a result arrives before the answers that PgBouncer gave earlier",
    ),
    Broken(
        "what is handed on is sent before the commit",
        (
            Change(
                _OUTBOX_C,
                "\tif (keeper_store.place[slot] & KEEPER_MARKED)\n"
                "\t\tkeeper_commit(KEEPER_ACT_OUTBOX, slot, slot);\n",
            ),
        ),
        Hunt(workload("simple"), partial(every, 3)),
        "bytes are out that no committed state speaks of: they are sent twice",
    ),
    Broken(
        "another's bytes leave in the middle of a send",
        (
            Change(
                _ACTS,
                "if (unlikely(keeper_leaving && keeper_leaving != slot)) {",
                "if (false) {",
            ),
            Change(
                _ACTS,
                "keeper_leaving = slot;\n\t\treturn len;",
                "if (keeper_leaving != slot)\n\t\t\tkeeper_send_leaving();\n"
                "\t\tkeeper_leaving = slot;\n\t\treturn len;",
            ),
        ),
        Hunt(workload("statements"), partial(every, 1, 200)),
        "the commit for them has what is sent both in the outbox and in front of it",
    ),
    Broken(
        "another's bytes leave before what a callback says",
        (
            Change(
                _ACTS,
                "\tsource = stream_source(sk, data);\n",
                "\tif (keeper_leaving && keeper_leaving != slot)\n\t\tkeeper_send_leaving_now();\n"
                "\tsource = stream_source(sk, data);\n",
            ),
        ),
        Hunt(workload("always-reset")),
        "the commit for them has a server that is being reset, and no reset query: for ever",
    ),
    Broken(
        "nobody looks whether a full socket takes more",
        (
            Change(
                _LOOP,
                "if (l->kind == KEEPER_CLOSING || !keeper_outbox_wait(slot))",
                "if (l->kind == KEEPER_CLOSING)",
            ),
        ),
        Hunt(workload("deaf-server")),
        "the last of a message, for which there was no room, stays here",
    ),
    Broken(
        "an IOBuf that was handed on is given back by who has read it",
        (Change(_ACTS, "if (number & KEEPER_LENT)", "if (false)"),),
        Hunt(workload("contention"), partial(every, 3)),
        "it is handed out twice",
    ),
    Broken(
        "whoever is woken by the end of a query reads after a commit that does not say so",
        (Change(_ACTS, "l->next = KEEPER_NEXT_RECV;"),),
        Hunt(workload("resets"), partial(every, 1, 330)),
        "a successor runs the query of a client that has gone",
    ),
    Broken(
        "a socket is closed before its outbox is empty",
        (
            Change(
                _LOOP,
                "if (!keeper_outbox_flush(slot)) {",
                "if (l->kind != KEEPER_CLOSING && !keeper_outbox_flush(slot)) {",
            ),
        ),
        Hunt(workload("session")),
        "the last words, an error or a Terminate, are never said",
    ),
    Broken(
        "a close is not committed before it",
        (Change(_LOOP, "keeper_commit(KEEPER_ACT_CLOSE, closing[0], 0);"),),
        Hunt(workload("session"), partial(every, 3)),
        "who was shut down would be thought alive",
        covered_by="the successor closes again, for the same reason; with nothing to be said the"
        " peer cannot tell, and what was to be said was committed with the outbox",
    ),
    Broken(
        "an operator's goodbye leaves before the end is committed",
        (
            Change(
                _ENDS,
                _OPERATORS_END,
                "if (between_messages(l->object) && send_pooler_error(l->object, false,"
                ' "57P01", true, "terminated by the operator (pgkeeper)"))\n'
                "\t\t\t\tkeeper_outbox_flush(slot);\n"
                "\t\t\tdisconnect_client_sqlstate(l->object, false",
            ),
        ),
        Hunt(workload("end-sessions")),
        "a session that has been told its end goes on, and is told again",
    ),
    Broken(
        "an operator's goodbye does not wait for the end of a message",
        (Change(_ENDS, _OPERATORS_END, "disconnect_client_sqlstate(l->object, true"),),
        Hunt(workload("end-sessions")),
        "the client takes it for a part of the message, or waits for the rest of that",
    ),
    Broken(
        "IOBufs are handed out again before the commit",
        (
            Change(
                _STORE_H,
                "store->freed_iobuf[store->n_freed_iobuf++] = number;",
                "store->free_iobuf[store->n_free_iobuf++] = number;",
            ),
        ),
        Hunt(workload("bursts"), partial(every, 1, 85)),
        "the bytes of one socket are written over those that another's true copy still names",
    ),
    Broken(
        "blobs are handed out again before the commit",
        (
            Change(
                _STORE,
                "store->freed_blob[store->n_freed_blob++] = unit;",
                "release_block(store, unit, order_for(keeper_store_blob(store, unit)->units));",
            ),
        ),
        Hunt(workload("statements"), partial(between, 1)),
        "a value that a true copy names is written over",
    ),
    Broken(
        "slots are handed out again before the commit",
        (
            Change(
                _STORE,
                "store->freed_slot[store->n_freed_slot++] = slot;",
                "store->free_slot[store->n_free_slot++] = slot;",
            ),
        ),
        Hunt(workload("ends"), partial(every, 3)),
        "a new socket's figures stand beside the true copy of the old one",
        covered_by="a slot is freed only when the hanger has let go of its socket, so nobody asks"
        " for its figures; its copies change at the commit alone",
    ),
    Broken(
        "an IOBuf is resynced in place",
        (Change(_ACTS, "if (!sk->keeper_slot || avail == 0", "if (true || avail == 0"),),
        Hunt(workload("resync"), partial(every, 1, 100)),
        "bytes are moved over those that the true copy still needs",
    ),
    Broken(
        "the act record of the committed state is written over",
        (
            Change(
                _COMMIT_H,
                "*record = &header->act[epoch & 1];",
                "*record = &header->act[store->epoch & 1];",
            ),
        ),
        Hunt(workload("simple"), partial(between, 1)),
        "a kill within a commit leaves the old state with the new act",
    ),
    Broken(
        "no marks around a protocol callback",
        (_MARKS_BEFORE, _MARKS_AFTER, _VERIFIED),
        Hunt(workload("fakes"), partial(every, 2, 120)),
        "what a callback changes without an act, at itself or its link, is committed in halves",
        covered_by="a recv marks its socket and its link, a send both ends, and every change of"
        " state marks: comparing all that is not marked finds nothing",
    ),
    Broken(
        "no marks after a protocol callback",
        (_MARKS_AFTER,),
        Hunt(workload("fakes"), partial(every, 3)),
        "what is changed after a nested act in the callback is not committed",
        covered_by="who acts marks both ends again after the act, and every change of state marks",
    ),
    Broken(
        "a packet that is buffered whole is not looked for",
        (
            Change(_HOOKED_H, "keeper_unsettle(sk);", ";"),
            Change(_COPY, "sk->sbuf.pkt_action != KEEPER_ACTION_CALL &&"),
        ),
        Hunt(workload("large"), partial(every, 3)),
        "its beginning has left the kernel, and is in no buffer",
    ),
    Broken(
        "the last id of a statement is recorded after its Parse",
        (Change(_COPY, "keeper_store.header->query_id = next_unique_query_id;"),),
        Hunt(workload("new-statement")),
        "the successor gives it to another statement, while a server knows this one by it",
        covered_by="the successor goes by what it reads in catalogs as well, and the client's has"
        " it; who closes a statement at once would have to be killed in the same event loop",
    ),
    Broken(
        "extra_packets are not mirrored",
        (_NOTHING_JOINED, Change(_COPY, "write_extra(sk, l);")),
        Hunt(workload("extended"), partial(every, 3)),
        "a rewritten Parse or Bind that was to be sent next exists nowhere any more",
    ),
    Broken(
        "no doom mark",
        (Change(_HOOKED, "l->doomed = true;", "return;"),),
        Hunt(workload("ends"), partial(every, 3)),
        "others have been told of an end that the successor does not know of",
        covered_by="what led to the end is still in the buffer or the socket, or a time that has"
        " run out: it is found again",
    ),
    Broken(
        "flush_due is not set when bytes arrive",
        (Change(_ACTS, "sk->keeper_flush_due = true;"),),
        Hunt(workload("ahead")),
        "the last bytes are consumed, and what was to happen then never does",
    ),
    Broken(
        "the login's ReadyForQuery is consumed late",
        (
            Change(
                "src/server.c",
                "if (keeper_on && !server->pool->db->admin) {",
                "keeper_attach_server(server);\n\t\tif (false) {",
            ),
        ),
        Hunt(workload("fakes"), partial(every, 1)),
        "a client that ran nested on the server is sent the login's packet by the successor",
    ),
    Broken(
        "the watermark does not advance",
        (Change(_HOOKED, "keeper_store.watermark = token;"),),
        Hunt(workload("session"), partial(every, 3)),
        "a socket that was being closed is taken for a new client",
        covered_by="a slot is freed after the hanger was told to let go of the socket, and it"
        " reads that before it knows of the death",
    ),
    Broken(
        "a request is added before the flush",
        (
            Change(
                "src/client.c",
                "if (client->packet_cb_state.flag == CB_HANDLE_COMPLETE_PACKET"
                " && !sbuf_flush(sbuf))",
                "if (false)",
            ),
        ),
        Hunt(workload("statements"), settings={"pkt_buf": 512, "tcp_socket_buffer": 4096}),
        "a fully buffered packet that does not fit into the socket is counted twice",
        covered_by="sbuf_process_pending() sends all that is pending before it calls back: the"
        " flush always has nothing to do",
    ),
)
