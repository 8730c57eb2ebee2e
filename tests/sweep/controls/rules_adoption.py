"""Rules of the successor, each broken on purpose: what it restores, and in which order it acts."""

from __future__ import annotations

from functools import partial

from tests.sweep.controls.mutants import Change
from tests.sweep.controls.rule import KEEPER, Broken, Hunt, again
from tests.sweep.controls.workloads import workload
from tests.sweep.syscall.sweep import between, every

_ADOPT = f"{KEEPER}/adopt.c"
_CATALOG = f"{KEEPER}/catalog.c"
_GLOBALS = f"{KEEPER}/globals.c"
_FIGURES = f"{KEEPER}/figures.c"
_JUDGE = f"{KEEPER}/judge.c"
_REBUILD = f"{KEEPER}/rebuild.c"
_STORE = f"{KEEPER}/store.c"

RULES = (
    Broken(
        "no scrub",
        (Change(_STORE, "copy[i].epoch = 0;\n", ";\n"),),
        Hunt(workload("parameters"), partial(between, 1)),
        "copies of a commit that never came about are taken for true",
    ),
    Broken(
        "a received FIN is counted as a byte",
        (Change(_FIGURES, "- fin_received(after.tcpi_state)"),),
        Hunt(workload("last-server-goes"), partial(every, 1, 24)),
        "one byte more than there is seems to have been read",
    ),
    Broken(
        "a sent FIN is counted as a byte",
        (Change(_FIGURES, "- fin_sent(after.tcpi_state)"),),
        Hunt(workload("session"), partial(every, 3)),
        "one byte more than there is seems to have been written",
        covered_by="who has sent a FIN is closing with an empty outbox, and is not asked for"
        " figures; see test_figures.py",
    ),
    Broken(
        "no baseline of a server's figures",
        (Change(_JUDGE, "a->written -= shared->base_tx;"),),
        Hunt(workload("simple"), partial(every, 3)),
        "the SYN of the active opener counts as a byte",
    ),
    Broken(
        "the source of a send is left as it was",
        (Change(_JUDGE, "|| !consume(&keeper_adoptee[act->source], gone)"),),
        Hunt(workload("ahead")),
        "what the last send still sent is sent again",
    ),
    Broken(
        "what was handed on is forgotten",
        (Change(_JUDGE, "a->handed = c->io;", "a->handed = 0;"),),
        Hunt(workload("simple"), partial(every, 1, 85)),
        "a query or its answer that was to be sent next exists nowhere any more",
    ),
    Broken(
        "what was handed on is taken for unsent",
        (
            Change(_JUDGE, "a->handed_done += part;", ";"),
            Change(_JUDGE, "if (a->handed_done == a->handed_end)", "if (!left)"),
        ),
        Hunt(workload("simple"), partial(every, 3)),
        "what the kernel has taken is sent again",
    ),
    Broken(
        "flush_due is lost at adoption",
        (Change(_REBUILD, "sk->keeper_flush_due = c->flags & KEEPER_F_FLUSH_DUE ? 1 : 0;"),),
        Hunt(workload("ahead")),
        "the last bytes were consumed, and what was to happen then never does",
    ),
    Broken(
        "an older note of a read is believed",
        (
            Change(
                _STORE,
                "for (i = KEEPER_READS; i-- > 0; ) {",
                "for (i = 0; i < KEEPER_READS; i++) {",
            ),
        ),
        Hunt(workload("resets"), partial(every, 3)),
        "an earlier recv had found nothing, and this one went to another place",
        covered_by="no socket has been seen to have two notes between two commits: of what was"
        " full of bytes, the next recv is refused a note, and what was empty says something first",
    ),
    Broken(
        "the dead one's notes are written over",
        (Change(_STORE, "store->n_reads = KEEPER_READS;"),),
        Hunt(workload("beside"), partial(again, range(20, 90), range(40, 90))),
        "the next successor does not find what was read",
        covered_by="in an adoption, no socket has been seen to read before another one had sent,"
        " and so committed: the rule is for what our workloads do not do",
    ),
    Broken(
        "adopted sockets wait one by one",
        (
            Change(
                _ADOPT,
                "c->wait_type != KEEPER_WAIT_NONE && !sbuf_adopt_wait(&list[i]->sbuf)",
                "false",
            ),
            Change(
                _ADOPT,
                "if (bytes || sk->keeper_flush_due)",
                'if (!sbuf_adopt_wait(sbuf))\n\t\tdie("wait");\n'
                "\tif (bytes || sk->keeper_flush_due)",
            ),
        ),
        Hunt(workload("contention"), partial(again, range(112, 130), range(40, 100, 2))),
        "the first commit of the successor says that all the others are paused",
    ),
    Broken(
        "clients go on before servers",
        (
            Change(
                _ADOPT,
                "== servers)\n\t\t\t\twake(",
                "!= servers)\n\t\t\t\twake(",
            ),
        ),
        Hunt(workload("contention"), partial(every, 3)),
        "a client's next request would meet a server that has not heard the end of the last one",
        covered_by="PgBouncer itself takes sockets in any order: a server is not let go of while"
        " requests are outstanding",
    ),
    Broken(
        "who waits loses his place",
        (Change(_ADOPT, "qsort(list, n, sizeof(*list), by_age);"),),
        Hunt(workload("queue"), partial(every, 3, 150)),
        "the server goes to the wrong client",
    ),
    Broken(
        "what was read first is forgotten",
        (
            Change(
                _JUDGE,
                "c->request_time = get_cached_time()"
                " - KEEPER_READS + (note - keeper_store.header->read);",
            ),
        ),
        Hunt(workload("turns"), partial(every, 1, 200)),
        "the server goes to the wrong client, though nobody has been told that he waits",
    ),
    Broken(
        "outstanding requests are lost",
        (Change(_REBUILD, "if (is_server && !rebuild_requests(sk, c))", "if (false)"),),
        Hunt(workload("extended"), partial(every, 3)),
        "answers that nobody asked for reach the client, and those it waits for do not",
    ),
    Broken(
        "setting_vars is lost",
        (Change(_REBUILD, "flags & KEEPER_F_SETTING_VARS ? 1 : 0", "0"),),
        Hunt(workload("parameters"), partial(every, 3)),
        "the client that waits for its SETs waits for ever, or is sent their answers",
    ),
    Broken(
        "nobody knows which console waits",
        (Change(_REBUILD, "c->flags & KEEPER_F_WAIT_FOR_RESPONSE ? 1 : 0", "0"),),
        Hunt(workload("waiting-operators"), partial(every, 5)),
        "PAUSE is never answered",
    ),
    Broken(
        "nobody knows what WAIT_CLOSE waits for",
        (Change(_GLOBALS, "db->db_wait_close = strstr(state, set_aside[4]) != NULL;"),),
        Hunt(workload("waiting-operators"), partial(every, 3, 120)),
        "WAIT_CLOSE is never answered",
    ),
    Broken(
        "a packet that is buffered in part is lost",
        (Change(_REBUILD, "|| !rebuild_packet(sk, &record, c->state == CL_LOGIN)"),),
        Hunt(workload("statements"), partial(every, 3)),
        "its beginning has left the kernel",
    ),
    Broken(
        "statements are numbered from the start",
        (Change(_ADOPT, "next_unique_query_id = keeper_store.header->query_id;"),),
        Hunt(workload("new-statement")),
        "a server that has a statement of this number runs it in place of the new one",
    ),
    Broken(
        "new clients are closed",
        (Change(_ADOPT, "held[i].token > watermark)", "false)"),),
        Hunt(workload("simple")),
        "a socket that no slot names yet is a client whose login goes on",
    ),
)
