/*
 * pgkeeper - every act of a held socket, written ahead.
 *
 * sbuf.c does all plain I/O of clients and servers through sbuf->ops.  Ours
 * commit to the ledger what is about to be done, then do it.  Bytes that
 * PgBouncer sends from inside a callback go into the destination's outbox:
 * they become true together with the state after them, and leave when the
 * callbacks have returned.
 */
#include "bouncer.h"

#include <time.h>

#include <usual/safeio.h>
#include <usual/slab.h>

#include "keeper/internal.h"

/* a peer that does not read keeps a closing socket for so long, microseconds */
#define CLOSING_PATIENCE	(5 * USEC)

/* totals of SHOW STATS are recorded so often, microseconds */
#define STATISTICS_PERIOD	(1 * USEC)

/* without an act, changes are committed after so long, microseconds */
#define LAZY_PERIOD		(50 * 1000)
/* ... or when so few are left to be given out, or so many wait to be */
#define LOW			16
#define MANY_FREED		256

bool keeper_on;
char *cf_keeper_socket;
struct KeeperStore keeper_store;
struct KeeperLocal *keeper_local;
uint64_t keeper_accept_token;

static PgSocket **iobuf_owner;
static uint32_t *pending, n_pending;
static struct event retry_event;
static bool retrying;
static usec_t last_commit;

void keeper_local_setup(void)
{
	size_t slots = keeper_store.header->slots + 1;

	keeper_local = calloc(slots, sizeof(*keeper_local));
	pending = calloc(slots, sizeof(*pending));
	iobuf_owner = calloc(keeper_store.header->iobufs + 1, sizeof(*iobuf_owner));
	if (!keeper_local || !pending || !iobuf_owner)
		die("keeper: out of memory");
}

void keeper_commit(enum KeeperAct act, uint32_t slot, uint32_t source)
{
	/* ids must never come twice: known before what carries them can leave */
	keeper_store.header->query_id = next_unique_query_id;
	keeper_store.header->socket_id = last_pgsocket_id;
	last_commit = get_cached_time();
	if (!keeper_store_commit(&keeper_store, keeper_serialize, act, slot, source)) {
		/* fenced: whatever we did now would be done twice */
		log_warning("keeper: another incarnation owns the ledger, stopping");
		_exit(1);
	}
}

/*
 * Slots.
 */

uint32_t keeper_new_slot(void *object, enum KeeperKind kind)
{
	uint32_t slot = keeper_store_new_slot(&keeper_store);
	struct KeeperLocal *l = &keeper_local[slot];

	if (!slot)
		return 0;
	memset(l, 0, sizeof(*l));
	l->object = object;
	l->kind = kind;
	l->fd = -1;
	l->stale = true;
	keeper_store_mark(&keeper_store, slot);
	return slot;
}

static void drop_slot(uint32_t slot)
{
	struct KeeperLocal *l = &keeper_local[slot];

	keeper_forget(l);
	l->kind = KEEPER_FREE;
	l->object = NULL;
	l->fd = -1;
	l->token = 0;
	keeper_store_mark(&keeper_store, slot);
	keeper_store_free_slot(&keeper_store, slot);
}

void keeper_pend(uint32_t slot)
{
	if (!keeper_local[slot].pending) {
		keeper_local[slot].pending = true;
		pending[n_pending++] = slot;
	}
}

static bool bind_socket(PgSocket *sk, enum KeeperKind kind, int fd, bool is_unix, uint64_t token)
{
	struct KeeperSlot *shared;
	struct KeeperLocal *l;
	int on = 1;
	uint32_t slot = keeper_new_slot(sk, kind);

	if (!slot)
		return false;
	l = &keeper_local[slot];
	l->fd = fd;
	l->is_unix = is_unix;
	l->token = token;
	if (is_server_socket(sk))
		l->catalog.rewrite = true;
	shared = &keeper_store.slot[slot];
	shared->base_rx = shared->base_tx = 0;
	shared->unix_rx = shared->unix_tx = shared->unix_busy = 0;
	if (!is_unix) {
		/* urgent data would be counted, but not read */
		setsockopt(fd, SOL_SOCKET, SO_OOBINLINE, &on, sizeof(on));
		if (!keeper_figures(fd, &shared->base_rx, &shared->base_tx)) {
			drop_slot(slot);
			return false;
		}
	}
	sk->keeper_slot = slot;
	return true;
}

bool keeper_bind_client(PgSocket *client, int fd, bool is_unix, uint64_t token)
{
	if (token > keeper_store.watermark)
		keeper_store.watermark = token;
	if (bind_socket(client, KEEPER_CLIENT, fd, is_unix, token))
		return true;
	client->keeper_unheld = token;
	return false;
}

void keeper_attach_client(PgSocket *client, int fd, bool is_unix)
{
	uint64_t token = keeper_accept_token;
	bool from_hanger = token != 0;

	if (!keeper_on)
		return;
	keeper_accept_token = 0;
	if (!from_hanger)
		token = keeper_store.watermark + 1;
	if (!keeper_bind_client(client, fd, is_unix, token)) {
		slog_warning(client, "keeper: the ledger is full, this client is not held");
		keeper_hanger_unheld(token, KEEPER_UNHELD_LEDGER_FULL, false);
	} else if (!from_hanger && keeper_hanger_connected()) {
		keeper_hanger_register(token, fd, is_unix);
	}
}

void keeper_attach_server(PgSocket *server)
{
	uint64_t token;
	enum KeeperUnheldReason reason = KEEPER_UNHELD_LEDGER_FULL;
	int fd = sbuf_socket(&server->sbuf);
	bool is_unix = pga_is_unix(&server->remote_addr);

	if (!keeper_on || server->keeper_slot)
		return;
	token = ++keeper_store.header->server_token | KEEPER_SERVER_TOKEN;
	if (server->sbuf.tls) {
		reason = KEEPER_UNHELD_TLS;
	} else if (keeper_hanger_connected() && !keeper_hanger_register(token, fd, is_unix)) {
		reason = KEEPER_UNHELD_HANGER_BUSY;
	} else if (bind_socket(server, KEEPER_SERVER, fd, is_unix, token)) {
		uint32_t number = keeper_store_iobuf_of(&keeper_store, server->sbuf.io);

		if (number)
			iobuf_owner[number] = server;
		return;
	}
	server->keeper_unheld = token;
	keeper_hanger_unheld(token, reason, true);
}

bool keeper_detach_tls(SBuf *sbuf)
{
	PgSocket *sk = container_of(sbuf, PgSocket, sbuf);
	uint32_t slot = sk->keeper_slot;

	if (!slot)
		return true;
	/* the 'S' that allows TLS is still in the outbox */
	if (!keeper_outbox_flush(slot))
		return false;
	keeper_hanger_unheld(keeper_local[slot].token, KEEPER_UNHELD_TLS, is_server_socket(sk));
	sk->keeper_unheld = keeper_local[slot].token;
	sk->keeper_slot = 0;
	drop_slot(slot);
	return true;
}

void keeper_socket_freed(PgSocket *sk)
{
	if (sk->keeper_unheld) {
		/* not held: only the hanger's count of such sessions goes down */
		keeper_hanger_release(&sk->keeper_unheld, 1);
		sk->keeper_unheld = 0;
	}
}

void keeper_doom(PgSocket *sk, bool notify, const char *sqlstate, const char *reason)
{
	struct KeeperLocal *l;
	struct KeeperPack pack = { NULL, 0, 0, false };

	if (!sk || !sk->keeper_slot)
		return;
	l = &keeper_local[sk->keeper_slot];
	if (l->doomed)
		return;
	l->doomed = true;
	l->doom_notify = notify;
	keeper_pack_string(&pack, sqlstate);
	keeper_pack_string(&pack, reason);
	l->doom = keeper_pack_blob(&pack, KEEPER_BLOB_DOOM);
	free(pack.data);
	keeper_mark(sk);
}

/*
 * Around protocol callbacks.  Marking too much is safe; a nested act may
 * commit, and thereby unmark, what the outer callback is going to change.
 */

void keeper_before_proto(SBuf *sbuf, int event)
{
	PgSocket *sk = container_of(sbuf, PgSocket, sbuf);

	keeper_mark(sk);
	keeper_mark(sk->link);
	if (event == SBUF_EV_FLUSH && sk->keeper_slot)
		keeper_local[sk->keeper_slot].flush_due = false;
}

void keeper_after_proto(SBuf *sbuf)
{
	PgSocket *sk = container_of(sbuf, PgSocket, sbuf);

	keeper_mark(sk);
	keeper_mark(sk->link);
}

/*
 * IOBufs: what has left the kernel lives in the ledger.
 */

IOBuf *keeper_iobuf_alloc(SBuf *sbuf)
{
	uint32_t number = keeper_on ? keeper_store_new_iobuf(&keeper_store) : 0;

	if (!number)
		return slab_alloc(iobuf_cache);
	iobuf_owner[number] = container_of(sbuf, PgSocket, sbuf);
	return keeper_store_iobuf(&keeper_store, number);
}

void keeper_iobuf_free(SBuf *sbuf, IOBuf *io)
{
	uint32_t number = keeper_on ? keeper_store_iobuf_of(&keeper_store, io) : 0;

	if (!number) {
		slab_free(iobuf_cache, io);
		return;
	}
	keeper_mark(container_of(sbuf, PgSocket, sbuf));
	iobuf_owner[number] = NULL;
	keeper_store_free_iobuf(&keeper_store, number);
}

void keeper_iobuf_owner(uint32_t number, PgSocket *owner)
{
	iobuf_owner[number] = owner;
}

void keeper_iobuf_resync(SBuf *sbuf, unsigned small_pkt)
{
	IOBuf *io = sbuf->io, *fresh;
	unsigned avail = io->recv_pos - io->done_pos;
	PgSocket *sk = container_of(sbuf, PgSocket, sbuf);
	const struct KeeperCopy *copy;
	uint32_t number;

	if (!sk->keeper_slot || avail == 0 || avail > small_pkt || io->done_pos == 0) {
		iobuf_try_resync(io, small_pkt);
		keeper_mark(sk);
		return;
	}
	keeper_mark(sk);
	number = keeper_store_iobuf_of(&keeper_store, io);
	copy = keeper_store_copy(&keeper_store, sk->keeper_slot);
	if (!number || (copy->io == number && copy->io_done >= avail)) {
		/* the true copy needs nothing below io_done */
		iobuf_try_resync(io, small_pkt);
		return;
	}
	/* the ledger's, or PgBouncer's own, which leaves this socket volatile meanwhile */
	fresh = keeper_iobuf_alloc(sbuf);
	if (!fresh)
		return;
	memcpy(fresh->buf, io->buf + io->done_pos, avail);
	fresh->done_pos = 0;
	fresh->parse_pos = io->parse_pos - io->done_pos;
	fresh->recv_pos = avail;
	sbuf->io = fresh;
	keeper_iobuf_free(sbuf, io);
}

/*
 * Outbox.
 */

bool keeper_outbox_append(uint32_t slot, const void *data, size_t len)
{
	struct KeeperLocal *l = &keeper_local[slot];
	struct KeeperBlob *blob = l->outbox ? keeper_store_blob(&keeper_store, l->outbox) : NULL;

	if (!blob || l->outbox_len + len > keeper_blob_capacity(blob)) {
		size_t left = l->outbox_len - l->outbox_done;
		uint32_t unit = keeper_store_new_blob(&keeper_store, KEEPER_BLOB_OUTBOX, 2 * (left + len));
		struct KeeperBlob *bigger;

		if (!unit)
			return false;
		bigger = keeper_store_blob(&keeper_store, unit);
		if (blob) {
			memcpy(keeper_blob_data(bigger), keeper_blob_data(blob) + l->outbox_done, left);
			keeper_store_free_blob(&keeper_store, l->outbox);
		}
		l->outbox = unit;
		l->outbox_done = 0;
		l->outbox_len = left;
		blob = bigger;
	}
	/* beyond what a committed length covers: nobody reads it yet */
	memcpy(keeper_blob_data(blob) + l->outbox_len, data, len);
	l->outbox_len += len;
	keeper_store_mark(&keeper_store, slot);
	keeper_pend(slot);
	return true;
}

static void outbox_drop(struct KeeperLocal *l)
{
	keeper_store_free_blob(&keeper_store, l->outbox);
	l->outbox = l->outbox_done = l->outbox_len = 0;
}

/* the system call itself, with the ledger's own count where the kernel has none */
static ssize_t counted_send(uint32_t slot, const void *data, size_t len)
{
	struct KeeperLocal *l = &keeper_local[slot];
	struct KeeperSlot *shared = &keeper_store.slot[slot];
	ssize_t res;

	if (l->is_unix)
		__atomic_store_n(&shared->unix_busy, 1, __ATOMIC_RELEASE);
	res = safe_send(l->fd, data, len, 0);
	if (res > 0)
		l->tx += res;
	if (l->is_unix) {
		int saved = errno;

		__atomic_store_n(&shared->unix_tx, l->tx, __ATOMIC_RELEASE);
		__atomic_store_n(&shared->unix_busy, 0, __ATOMIC_RELEASE);
		errno = saved;
	}
	keeper_store_mark(&keeper_store, slot);
	return res;
}

bool keeper_outbox_flush(uint32_t slot)
{
	struct KeeperLocal *l = &keeper_local[slot];

	while (l->outbox) {
		ssize_t res;

		keeper_store_mark(&keeper_store, slot);
		keeper_commit(KEEPER_ACT_OUTBOX, slot, slot);
		res = counted_send(slot, keeper_blob_data(keeper_store_blob(&keeper_store, l->outbox)) + l->outbox_done,
				   l->outbox_len - l->outbox_done);
		if (res < 0 && errno == EAGAIN)
			return false;
		if (res > 0)
			l->outbox_done += res;
		/* on an error nobody reads any more: recv will tell the same */
		if (res < 0 || l->outbox_done == l->outbox_len)
			outbox_drop(l);
	}
	return true;
}

/*
 * The operations table.
 */

static ssize_t keeper_recv(SBuf *sbuf, void *dst, size_t len)
{
	PgSocket *sk = container_of(sbuf, PgSocket, sbuf);
	uint32_t slot = sk->keeper_slot;
	struct KeeperLocal *l = &keeper_local[slot];
	struct KeeperSlot *shared = &keeper_store.slot[slot];
	IOBuf *io;
	bool noted;
	ssize_t res;

	if (!slot)
		return safe_recv(sbuf->sock, dst, len, 0);

	io = sbuf->io;
	noted = keeper_store_note_read(&keeper_store, slot, l->token, l->rx, keeper_store_iobuf_of(&keeper_store, io),
				       (uint8_t *)dst - io->buf);
	keeper_store_mark(&keeper_store, slot);
	if (!noted)
		keeper_commit(KEEPER_ACT_RECV, slot, slot);
	if (l->is_unix)
		__atomic_store_n(&shared->unix_busy, 1, __ATOMIC_RELEASE);
	res = safe_recv(sbuf->sock, dst, len, 0);
	if (res > 0) {
		l->rx += res;
		l->flush_due = true;
		keeper_store_mark(&keeper_store, slot);
	}
	if (l->is_unix) {
		int saved = errno;

		__atomic_store_n(&shared->unix_rx, l->rx, __ATOMIC_RELEASE);
		__atomic_store_n(&shared->unix_busy, 0, __ATOMIC_RELEASE);
		errno = saved;
	}
	return res;
}

/* whose stream is this: its IOBuf or extra_packets hold the bytes */
static PgSocket *stream_source(PgSocket *destination, const void *data)
{
	uint32_t number = keeper_store_iobuf_of(&keeper_store, data);
	PgSocket *link = destination->link;
	const uint8_t *p = data;

	if (number)
		return iobuf_owner[number];
	if (!link)
		return NULL;
	if (link->sbuf.extra_packets.data && p >= link->sbuf.extra_packets.data
	    && p < link->sbuf.extra_packets.data + link->sbuf.extra_packets.write_pos)
		return link;
	/* an IOBuf from PgBouncer's own allocator, when the ledger had none left */
	if (link->sbuf.io && p >= link->sbuf.io->buf && p < link->sbuf.io->buf + cf_sbuf_len)
		return link;
	return NULL;
}

/*
 * The other side waits to send the rest of its stream to this socket: it is
 * full.  What a callback wants to say now would land inside a message, so say
 * what upstream's send() would: no room.
 */
static bool stream_blocked(PgSocket *destination)
{
	PgSocket *link = destination->link;

	return link && link->sbuf.dst == &destination->sbuf && link->sbuf.wait_type == KEEPER_WAIT_SEND;
}

static ssize_t keeper_send(SBuf *sbuf, const void *data, size_t len)
{
	PgSocket *sk = container_of(sbuf, PgSocket, sbuf);
	uint32_t slot = sk->keeper_slot;
	PgSocket *source;
	ssize_t res;

	if (!slot)
		return safe_send(sbuf->sock, data, len, 0);

	source = stream_source(sk, data);
	if (!source && stream_blocked(sk)) {
		errno = EAGAIN;
		return -1;
	}
	if (!source) {
		if (keeper_outbox_append(slot, data, len))
			return len;
	}
	if (!keeper_outbox_flush(slot)) {
		errno = EAGAIN;
		return -1;
	}
	/* bytes the ledger had no room for leave at once: volatile until they have */
	keeper_local[slot].bypass = !source;
	keeper_mark(source);
	keeper_store_mark(&keeper_store, slot);
	keeper_commit(KEEPER_ACT_SEND, slot, source ? source->keeper_slot : 0);
	keeper_mark(source);
	res = counted_send(slot, data, len);
	keeper_local[slot].bypass = false;
	return res;
}

static int keeper_close(SBuf *sbuf)
{
	PgSocket *sk = container_of(sbuf, PgSocket, sbuf);
	uint32_t slot = sk->keeper_slot;

	if (!slot) {
		if (sbuf->sock > 0)
			safe_close(sbuf->sock);
	} else {
		struct KeeperLocal *l = &keeper_local[slot];

		/* the slot outlives the PgSocket until the descriptor is closed */
		l->kind = KEEPER_CLOSING;
		l->object = NULL;
		l->closing_since = get_cached_time();
		sk->keeper_slot = 0;
		keeper_store_mark(&keeper_store, slot);
		keeper_pend(slot);
	}
	sbuf->sock = 0;
	return 0;
}

const SBufIO keeper_sbufio_ops = {
	keeper_recv,
	keeper_send,
	keeper_close
};

/*
 * Loop end.
 */

static void retry_cb(evutil_socket_t sock, short flags, void *arg)
{
	/* waking the loop is all: keeper_loop_end() follows */
	retrying = false;
}

/* flush what waits; collect what can be closed */
static uint32_t work_on_pending(uint32_t *closing)
{
	uint32_t n = n_pending, n_closing = 0, i;
	uint32_t *list = pending;
	static uint32_t *spare;

	/* flushing commits, and a commit may pend nothing: but be safe against growth */
	if (!spare)
		spare = calloc(keeper_store.header->slots + 1, sizeof(*spare));
	if (!spare)
		return 0;
	memcpy(spare, list, n * sizeof(*spare));
	n_pending = 0;
	for (i = 0; i < n; i++) {
		uint32_t slot = spare[i];
		struct KeeperLocal *l = &keeper_local[slot];

		l->pending = false;
		if (l->kind == KEEPER_FREE)
			continue;
		if (!keeper_outbox_flush(slot)) {
			bool gave_up = l->kind == KEEPER_CLOSING
				       && get_cached_time() - l->closing_since > CLOSING_PATIENCE;

			if (!gave_up) {
				keeper_pend(slot);
				continue;
			}
			outbox_drop(l);
		}
		if (l->kind == KEEPER_CLOSING)
			closing[n_closing++] = slot;
	}
	return n_closing;
}

static void finish_closing(const uint32_t *closing, uint32_t n)
{
	uint64_t tokens[KEEPER_BATCH];
	uint32_t i, done, batch;

	if (!n)
		return;
	/* true for all of them: nothing left to send, about to be closed */
	keeper_commit(KEEPER_ACT_CLOSE, closing[0], 0);
	for (i = 0; i < n; i++) {
		struct KeeperLocal *l = &keeper_local[closing[i]];

		if (l->fd < 0)
			continue;
		/* the hanger's duplicate would keep close() from telling the peer */
		shutdown(l->fd, SHUT_WR);
		safe_close(l->fd);
		l->fd = -1;
	}
	for (done = 0; done < n; done += batch) {
		batch = n - done < KEEPER_BATCH ? n - done : KEEPER_BATCH;
		for (i = 0; i < batch; i++)
			tokens[i] = keeper_local[closing[done + i]].token;
		if (keeper_hanger_connected() && !keeper_hanger_release(tokens, batch)) {
			/* its queue is full: say it again later */
			for (i = done; i < n; i++)
				keeper_pend(closing[i]);
			return;
		}
		for (i = 0; i < batch; i++)
			drop_slot(closing[done + i]);
	}
}

static void finish_pending(void)
{
	static uint32_t *closing;
	static struct timeval soon = { 0, 10000 };

	if (!n_pending)
		return;
	if (!closing)
		closing = calloc(keeper_store.header->slots + 1, sizeof(*closing));
	if (closing)
		finish_closing(closing, work_on_pending(closing));
	if (n_pending && !retrying) {
		evtimer_assign(&retry_event, pgb_event_base, retry_cb, NULL);
		retrying = evtimer_add(&retry_event, &soon) == 0;
	}
}

void keeper_settle(void)
{
	finish_pending();
	if (keeper_store.n_dirty)
		keeper_commit(KEEPER_ACT_NONE, 0, 0);
}

/*
 * What happened since the last commit can be done again from it, so a commit
 * here is for those who look (and gives back what was freed): not each loop.
 */
static bool commit_is_due(void)
{
	return get_cached_time() >= last_commit + LAZY_PERIOD
	       || keeper_store.n_free_slot < LOW || keeper_store.n_free_iobuf < LOW
	       || keeper_store.n_freed_blob > MANY_FREED;
}

/* facts about pools that nobody uses give way to sessions */
static void make_room(void)
{
	struct List *item;

	statlist_for_each(item, &pool_list) {
		PgPool *pool = container_of(item, PgPool, head);

		if (!pool->keeper_slot || pool_client_count(pool) || pool_server_count(pool)
		    || !statlist_empty(&pool->waiting_cancel_req_list) || !statlist_empty(&pool->active_cancel_req_list))
			continue;
		drop_slot(pool->keeper_slot);
		pool->keeper_slot = 0;
	}
}

void keeper_loop_end(void)
{
	static usec_t statistics_due;
	struct timespec now;

	if (!keeper_on)
		return;
	finish_pending();
	if (get_cached_time() >= statistics_due) {
		statistics_due = get_cached_time() + STATISTICS_PERIOD;
		keeper_mark_pools();
		if (keeper_store.n_free_slot < LOW)
			make_room();
	}
	if (keeper_store.n_dirty && commit_is_due())
		keeper_commit(KEEPER_ACT_NONE, 0, 0);

	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	__atomic_store_n(&keeper_store.header->heartbeat,
			 (uint64_t)now.tv_sec * USEC + now.tv_nsec / 1000, __ATOMIC_RELAXED);
}
