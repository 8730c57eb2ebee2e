/*
 * pgkeeper - adoption: go on where a dead pgbouncer stood.
 *
 * At every send and receive of sbuf.c PgBouncer's memory must be complete,
 * because the call may say EAGAIN.  The ledger holds that memory, so adoption
 * means: put it back, add what the kernel says the last call still did, and go
 * on as if that call had just returned.  No socket is touched before all has
 * been read; a kill in here is just another kill.
 */
#include "bouncer.h"

#include <usual/safeio.h>
#include <usual/time.h>

#include "keeper/internal.h"
#include "keeper/adopt.h"


/* by slot */
struct KeeperAdoptee *keeper_adoptee;
/* as long as that */
static PgPool **pool_room;
static PgSocket **socket_room;

/* zeros; each page is written to, so that it is there when it is needed */
static void *make_room_for(size_t size)
{
	volatile uint8_t *room = calloc(1, size);
	size_t at;

	if (!room)
		die("keeper: out of memory");
	for (at = 0; at < size; at += 4096)
		room[at] = 0;
	return (void *)room;
}

void keeper_adoptees_begin(void)
{
	size_t n = keeper_store.header->slots + 1;

	if (keeper_adoptee)
		return;
	keeper_adoptee = make_room_for(n * sizeof(*keeper_adoptee));
	socket_room = make_room_for(n * sizeof(*socket_room));
	pool_room = make_room_for(n * sizeof(*pool_room));
}

static void adoptees_end(void)
{
	free(keeper_adoptee);
	free(socket_room);
	free(pool_room);
	keeper_adoptee = NULL;
}

/*
 * Ends.
 */

static const char *lost_message(enum KeeperLost reason)
{
	switch (reason) {
	case KEEPER_LOST_CONFIG:
		return "pgbouncer was restarted, and its configuration no longer has this database or user";
	case KEEPER_LOST_CONSOLE:
		return "pgbouncer was restarted";
	default:
		return "pgbouncer was restarted while data of this session was in flight";
	}
}

/* its peer has closed: nobody loses this session */
static bool peer_is_gone(int fd)
{
	char byte;
	ssize_t res = recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);

	return res == 0 || (res < 0 && errno != EAGAIN && errno != EINTR);
}

/* turn a slot that cannot go on into one that is being closed */
static void end_lost(uint32_t slot, struct KeeperReady *ready)
{
	struct KeeperAdoptee *a = &keeper_adoptee[slot];
	struct KeeperLocal *l = &keeper_local[slot];
	bool cancel = a->copy.state == CL_WAITING_CANCEL || a->copy.state == CL_ACTIVE_CANCEL;
	bool is_client = a->copy.kind == KEEPER_CLIENT;
	uint8_t data[512];
	PktBuf pkt;

	l->kind = KEEPER_CLOSING;
	l->object = NULL;
	l->closing_since = get_cached_time();
	l->tx = a->written;
	l->rx = a->read;
	/* rather not at all than twice */
	if (a->torn)
		keeper_outbox_drop(slot);
	keeper_store_mark(&keeper_store, slot);
	keeper_pend(slot);
	if (is_client && !cancel && !peer_is_gone(a->fd)) {
		ready->lost[a->reason]++;
		log_warning("keeper: a client session%s could not go on: %s",
			    a->copy.flags & KEEPER_F_UNIX ? " over a Unix-domain socket" : "", lost_message(a->reason));
	}
	if (is_client && !cancel && keeper_at_boundary(a)) {
		pktbuf_static(&pkt, data, sizeof(data));
		pktbuf_write_generic(&pkt, PqMsg_ErrorResponse, "cscscscsc",
				     'S', "FATAL", 'V', "FATAL", 'C', "57P01", 'M', lost_message(a->reason), 0);
		keeper_outbox_append(slot, pkt.buf, pkt.write_pos);
	}
}

static void finish_doomed(uint32_t slot, PgSocket *sk)
{
	struct KeeperUnpack unpack = { NULL, 0, false };
	const struct KeeperCopy *c = &keeper_adoptee[slot].copy;
	bool notify = c->flags & KEEPER_F_DOOM_NOTIFY;
	char sqlstate[8], reason[256];
	bool has_state = false, has_reason = false;

	if (c->doom)
		unpack.data = keeper_store_read_blob(&keeper_store, c->doom, KEEPER_BLOB_DOOM, &unpack.len);
	if (unpack.data) {
		has_state = keeper_unpack_string(&unpack, sqlstate, sizeof(sqlstate));
		has_reason = keeper_unpack_string(&unpack, reason, sizeof(reason));
	}
	if (is_server_socket(sk))
		disconnect_server(sk, notify, "%s", has_reason ? reason : "disconnect was under way");
	else
		disconnect_client_sqlstate(sk, notify, has_state ? sqlstate : NULL, has_reason ? reason : NULL);
}

/*
 * Order of the lists.
 */

static bool waits_for_server(const PgSocket *sk, const struct KeeperCopy *c)
{
	return !is_server_socket(sk) && (c->state == CL_WAITING || c->state == CL_WAITING_LOGIN);
}

static int by_age(const void *a, const void *b)
{
	const PgSocket *l = *(PgSocket *const *)a, *r = *(PgSocket *const *)b;
	const struct KeeperCopy *lc = &keeper_adoptee[l->keeper_slot].copy, *rc = &keeper_adoptee[r->keeper_slot].copy;
	uint64_t lt = waits_for_server(l, lc) ? lc->wait_start : lc->request_time;
	uint64_t rt = waits_for_server(r, rc) ? rc->wait_start : rc->request_time;

	if (lt != rt)
		return lt < rt ? -1 : 1;
	return lc->token < rc->token ? -1 : lc->token > rc->token;
}

/* time in which nobody served does not count against those who waited, or had not logged in yet */
static void extend_deadlines(PgSocket *client, const struct KeeperCopy *c, uint64_t down_us)
{
	bool waits = waits_for_server(client, c);

	client->wait_start = c->wait_start ? c->wait_start + down_us : 0;
	if (client->state == CL_LOGIN || client->state == CL_WAITING_LOGIN || client->wait_for_welcome)
		client->connect_time += down_us;
	if (waits || client->state == CL_WAITING_CANCEL)
		client->request_time += down_us;
	if (waits && client->query_start)
		client->query_start += down_us;
}

/* put the sockets into PgBouncer's lists, oldest first, and link them */
static void enlist(PgSocket **list, unsigned n, uint64_t down_us)
{
	unsigned i;

	qsort(list, n, sizeof(*list), by_age);
	for (i = 0; i < n; i++) {
		PgSocket *sk = list[i];
		const struct KeeperCopy *c = &keeper_adoptee[sk->keeper_slot].copy;

		if (is_server_socket(sk)) {
			change_server_state(sk, c->state);
		} else {
			change_client_state(sk, c->state);
			extend_deadlines(sk, c, down_us);
		}
		keeper_rebuild_counts(sk, c->flags);
	}
	for (i = 0; i < n; i++) {
		PgSocket *sk = list[i];
		const struct KeeperCopy *c = &keeper_adoptee[sk->keeper_slot].copy;
		PgSocket *dst = c->dst ? keeper_adoptee[c->dst].sk : NULL;

		/* where one side is doomed, the other may have gone on to somebody else */
		sk->link = c->link && keeper_adoptee[c->link].copy.link == sk->keeper_slot ? keeper_adoptee[c->link].sk : NULL;
		sk->sbuf.dst = dst ? &dst->sbuf : NULL;
		if (c->canceled_server && keeper_adoptee[c->canceled_server].copy.kind == KEEPER_SERVER
		    && keeper_adoptee[c->canceled_server].sk) {
			sk->canceled_server = keeper_adoptee[c->canceled_server].sk;
			statlist_append(&sk->canceled_server->canceling_clients, &sk->cancel_head);
		}
	}
}

/* the slot is still this socket's: nobody has closed it meanwhile */
static bool still(const PgSocket *sk, uint32_t slot)
{
	return keeper_local[slot].object == sk;
}

static void wake(uint32_t slot, PgSocket *sk)
{
	const struct KeeperCopy *c = &keeper_adoptee[slot].copy;
	SBuf *sbuf = &sk->sbuf;
	bool bytes = !iobuf_empty(sbuf->io) || mbuf_avail_for_read(&sbuf->extra_packets) > 0;

	if (c->wait_type == KEEPER_WAIT_NONE)
		return;
	if (bytes || sk->keeper_flush_due)
		sbuf_adopt_resume(sbuf, keeper_adoptee[slot].recv_due);
}

/* a PAM check dies with the process: read the password packet again */
static bool must_ask_again(const PgSocket *sk, const struct KeeperCopy *c)
{
	return c->kind == KEEPER_CLIENT && c->state == CL_LOGIN && c->wait_type == KEEPER_WAIT_NONE
	       && sk->client_auth_type == AUTH_TYPE_PAM && !sk->link;
}

/* the last request to cancel on this server is gone: upstream would have released it then */
static bool nobody_cancels(const PgSocket *server)
{
	return server->state == SV_BEING_CANCELED && statlist_empty(&server->canceling_clients);
}

static void go_on(PgSocket **list, unsigned n)
{
	uint32_t *slot = calloc(n + 1, sizeof(*slot));
	unsigned i;
	int servers;

	if (!slot)
		die("keeper: out of memory");
	/*
	 * All wait as they did before the first of them acts, and the end of a
	 * server is heard of before the query that it would have got.
	 */
	for (servers = 1; servers >= 0; servers--) {
		for (i = 0; i < n; i++) {
			struct KeeperCopy *c = &keeper_adoptee[list[i]->keeper_slot].copy;

			if (is_server_socket(list[i]) != servers)
				continue;
			slot[i] = list[i]->keeper_slot;
			if (must_ask_again(list[i], c))
				c->wait_type = KEEPER_WAIT_RECV;
			if (c->wait_type != KEEPER_WAIT_NONE && !sbuf_adopt_wait(&list[i]->sbuf))
				die("keeper: cannot wait for an adopted socket: %s", strerror(errno));
			if ((c->outbox && c->outbox_done < c->outbox_len) || keeper_local[slot[i]].is_handed)
				keeper_pend(slot[i]);
		}
	}
	for (i = 0; i < n; i++) {
		if (still(list[i], slot[i]) && (keeper_adoptee[slot[i]].copy.flags & KEEPER_F_DOOMED))
			finish_doomed(slot[i], list[i]);
	}
	for (i = 0; i < n; i++) {
		/* a request that was not held may still arrive: it must not meet the next client's query */
		if (still(list[i], slot[i]) && is_server_socket(list[i]) && nobody_cancels(list[i]))
			disconnect_server(list[i], true, "a cancel request may be on its way");
	}
	for (servers = 1; servers >= 0; servers--) {
		for (i = 0; i < n; i++) {
			if (still(list[i], slot[i]) && is_server_socket(list[i]) == servers)
				wake(slot[i], list[i]);
		}
	}
	free(slot);
}

/*
 * Everything, in order.
 */

static uint64_t highest_token(void)
{
	uint64_t highest = 0;
	uint32_t slot;

	for (slot = 1; slot <= keeper_store.header->slots; slot++) {
		uint64_t token = keeper_adoptee[slot].copy.token;

		if (!(token & KEEPER_SERVER_TOKEN) && !keeper_adoptee[slot].lost && token > highest)
			highest = token;
	}
	return highest;
}

/* sockets that no slot names: new clients, and what was being closed */
static void sort_out_unnamed(uint64_t watermark)
{
	const struct KeeperHeld *held = keeper_held;
	unsigned i;

	for (i = 0; i < keeper_n_held; i++) {
		if (held[i].fd < 0)
			continue;
		if (!(held[i].token & KEEPER_SERVER_TOKEN) && held[i].token > watermark) {
			keeper_accept_token = held[i].token;
			if (!accept_client(held[i].fd, held[i].is_unix))
				log_debug("keeper: a client left before it could be accepted");
			keeper_accept_token = 0;
		} else {
			shutdown(held[i].fd, SHUT_RDWR);
			safe_close(held[i].fd);
			keeper_hanger_release(&held[i].token, 1, true);
		}
	}
}

void keeper_adopt(uint64_t down_us, struct KeeperReady *ready)
{
	struct KeeperActRecord act;
	uint64_t watermark;
	uint32_t n_slots = keeper_store.header->slots;
	PgPool **changed_pool;
	PgSocket **list;
	unsigned n = 0, n_changed = 0, i;
	uint32_t slot;

	reset_time_cache();
	/* from now on we are who may crash */
	keeper_last_words();
	keeper_handles_nobody();
	keeper_adoptees_begin();
	changed_pool = pool_room;
	list = socket_room;

	/* read everything */
	keeper_store_recover(&keeper_store);
	act = *keeper_store_act(&keeper_store);
	next_unique_query_id = keeper_store.header->query_id;
	if (keeper_store.header->socket_id > last_pgsocket_id)
		last_pgsocket_id = keeper_store.header->socket_id;
	keeper_read_slots();
	if (act.epoch != keeper_store.epoch) {
		/* damaged: nothing may lie beyond the commit, and all we know of are old */
		log_warning("keeper: the ledger's act record is damaged");
		act.act = KEEPER_ACT_NONE;
		keeper_store.watermark = highest_token();
	}
	watermark = keeper_store.watermark;
	keeper_read_facts(changed_pool, &n_changed);

	/* decide who can go on */
	for (slot = 1; slot <= n_slots; slot++) {
		keeper_store.header->handled = slot;
		keeper_judge(slot, &act);
	}
	keeper_handles_nobody();
	keeper_judge_links();

	/* rebuild; what turns out damaged now takes its partner along */
	keeper_catalogs_begin();
	for (slot = 1; slot <= n_slots; slot++) {
		struct KeeperAdoptee *a = &keeper_adoptee[slot];

		if (!keeper_is_socket(&a->copy) && a->copy.kind != KEEPER_CLOSING)
			continue;
		keeper_store.header->handled = slot;
		keeper_adopt_local(slot);
		if (keeper_is_socket(&a->copy) && !a->lost)
			a->sk = keeper_rebuild(slot);
		if (a->copy.kind == KEEPER_CLOSING && keeper_local[slot].outbox)
			keeper_settle_closing(slot, &act);
	}
	keeper_handles_nobody();
	keeper_catalogs_end();
	keeper_judge_links();

	/* who goes on, who ends */
	for (slot = 1; slot <= n_slots; slot++) {
		struct KeeperAdoptee *a = &keeper_adoptee[slot];
		const struct KeeperLocal *l = &keeper_local[slot];

		if (l->kind == KEEPER_FREE)
			continue;
		if (a->sk && !a->lost)
			list[n++] = a->sk;
		if (!a->sk || a->lost)
			continue;
		ready->clients += a->copy.kind == KEEPER_CLIENT;
		ready->servers += a->copy.kind == KEEPER_SERVER;
	}
	keeper_store_recovered(&keeper_store);
	for (slot = 1; slot <= n_slots; slot++) {
		struct KeeperAdoptee *a = &keeper_adoptee[slot];

		if (keeper_is_socket(&a->copy) && a->lost) {
			/* a cancel that may still arrive must not meet the next client's query */
			uint32_t target = a->copy.canceled_server;

			if (a->copy.state == CL_ACTIVE_CANCEL && target && keeper_adoptee[target].sk
			    && is_server_socket(keeper_adoptee[target].sk))
				keeper_adoptee[target].sk->close_needed = true;
			end_lost(slot, ready);
			if (a->sk)
				keeper_discard(a->sk);
			a->sk = NULL;
		} else if (a->copy.kind == KEEPER_CLOSING) {
			/* finish what was begun */
			keeper_local[slot].closing_since = get_cached_time();
			keeper_pend(slot);
			keeper_store_mark(&keeper_store, slot);
		} else if (keeper_local[slot].kind == KEEPER_FREE && keeper_store_copy(&keeper_store, slot)->epoch
			   && keeper_store_copy(&keeper_store, slot)->kind != KEEPER_FREE) {
			/* a fact that the configuration no longer knows, or a closed socket */
			keeper_store_mark(&keeper_store, slot);
			keeper_store_free_slot(&keeper_store, slot);
		} else if (keeper_local[slot].kind != KEEPER_FREE || a->damaged) {
			/* a free one too: its next owner must not be found beside a damaged copy */
			keeper_store_mark(&keeper_store, slot);
		}
	}
	for (slot = 1; slot <= n_slots; slot++) {
		if (keeper_adoptee[slot].iobuf)
			keeper_store_free_iobuf(&keeper_store, keeper_adoptee[slot].iobuf);
	}
	keeper_mark_global();
	enlist(list, n, down_us);
	go_on(list, n);
	if (keeper_store.incarnation > 1)
		keeper_maintain_soon();
	for (i = 0; i < n_changed; i++)
		tag_pool_dirty(changed_pool[i]);
	sort_out_unnamed(watermark);

	adoptees_end();
}
