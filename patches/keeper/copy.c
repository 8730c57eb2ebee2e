/*
 * pgkeeper - from a PgSocket to its slot's copy, at each commit.
 *
 * This is what the keeper costs: two commits a query, a few slots each.  Of a
 * copy's three cache lines the third, and the blobs it names, are looked at
 * only when something says that they may have changed.
 */
#include "bouncer.h"

#include "keeper/internal.h"
#include "keeper/commit.h"

unsigned keeper_vars_changes;

/*
 * The bits of a PgSocket as enum KeeperFlag, a table for each byte they lie
 * in.  Where the compiler has put them is found out by setting them.
 */

static uint32_t flags_of[4][256];
static size_t first_byte;

/* of each flag, whether it is no bit of the PgSocket and yet changes seldom */
#define FIXED_FLAGS	(KEEPER_F_UNIX | KEEPER_F_CONSOLE | KEEPER_F_DOOMED | KEEPER_F_DOOM_NOTIFY)

/* what the tables have said lately, in one cache line: sockets are in few states */
static struct {
	uint32_t bits, flags;
} looked_up[8] __attribute__((aligned(KEEPER_CACHE_LINE)));

struct Bit {
	size_t byte;
	uint8_t mask;
	uint32_t flag;
};

static void find_bit(const PgSocket *probe, struct Bit *bit, uint32_t flag)
{
	const uint8_t *p = (const uint8_t *)probe;

	for (bit->byte = 0; !p[bit->byte]; bit->byte++) {
	}
	bit->mask = p[bit->byte];
	bit->flag = flag;
}

void keeper_flags_setup(void)
{
	static PgSocket probe;
	struct Bit bits[32];
	unsigned n = 0, i, value;

#define FIND(field, flag)	memset(&probe, 0, sizeof(probe)); probe.field = 1; find_bit(&probe, &bits[n++], flag)
	FIND(ready, KEEPER_F_READY);
	FIND(idle_tx, KEEPER_F_IDLE_TX);
	FIND(close_needed, KEEPER_F_CLOSE_NEEDED);
	FIND(setting_vars, KEEPER_F_SETTING_VARS);
	FIND(resetting, KEEPER_F_RESETTING);
	FIND(copy_mode, KEEPER_F_COPY_MODE);
	FIND(query_failed, KEEPER_F_QUERY_FAILED);
	FIND(wait_for_welcome, KEEPER_F_WAIT_FOR_WELCOME);
	FIND(wait_for_user_conn, KEEPER_F_WAIT_FOR_USER_CONN);
	FIND(wait_for_user, KEEPER_F_WAIT_FOR_USER);
	FIND(contributes_db_client_count, KEEPER_F_DB_COUNTED);
	FIND(user_connection_counted, KEEPER_F_USER_COUNTED);
	FIND(admin_user, KEEPER_F_ADMIN_USER);
	FIND(own_user, KEEPER_F_OWN_USER);
	FIND(wait_for_response, KEEPER_F_WAIT_FOR_RESPONSE);
#undef FIND
	first_byte = bits[0].byte;
	for (i = 1; i < n; i++) {
		if (bits[i].byte < first_byte)
			first_byte = bits[i].byte;
	}
	memset(flags_of, 0, sizeof(flags_of));
	for (i = 0; i < n; i++) {
		if (bits[i].byte - first_byte >= ARRAY_NELEM(flags_of))
			die("keeper: the bits of a PgSocket lie too far apart");
		for (value = 0; value < 256; value++) {
			if (value & bits[i].mask)
				flags_of[bits[i].byte - first_byte][value] |= bits[i].flag;
		}
	}
}

static inline uint32_t bits_of(const PgSocket *sk)
{
	uint32_t bits;

	memcpy(&bits, (const uint8_t *)sk + first_byte, sizeof(bits));
	return bits;
}

static KEEPER_APART uint32_t look_up(uint32_t bits)
{
	uint8_t p[sizeof(bits)];

	memcpy(p, &bits, sizeof(bits));
	return flags_of[0][p[0]] | flags_of[1][p[1]] | flags_of[2][p[2]] | flags_of[3][p[3]];
}

static inline void find_flags(const PgSocket *sk, struct KeeperLocal *l)
{
	uint32_t bits = bits_of(sk);
	unsigned i = (bits * 0x9e3779b1U) >> 29;

	if (unlikely(looked_up[i].bits != bits)) {
		looked_up[i].bits = bits;
		looked_up[i].flags = look_up(bits);
	}
	l->bits = bits;
	l->flags = (l->flags & FIXED_FLAGS) | looked_up[i].flags;
}

/*
 * A copy's first two lines are written by words, each composed in a register,
 * and added to the check on the way: reading them back would wait for the
 * smaller writes of their parts.
 */

#define WORD(field)	(offsetof(struct KeeperCopy, field) / sizeof(uint64_t))

static inline uint64_t put(struct KeeperCopy *copy, unsigned i, uint64_t word)
{
	((KeeperWord *)copy)[i] = word;
	return keeper_check_word(i, word);
}

/* a part of a word: so many bytes, from this one on */
static inline uint64_t part(unsigned first_byte_of, unsigned size, uint64_t value)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return value << 8 * first_byte_of;
#else
	return value << 8 * (sizeof(value) - first_byte_of - size);
#endif
}

#define PART(field, value) \
	part(offsetof(struct KeeperCopy, field) % sizeof(uint64_t), sizeof(((struct KeeperCopy *)0)->field), value)
#define SAME_WORD(first, last) \
	_Static_assert(WORD(first) == WORD(last) && offsetof(struct KeeperCopy, first) % sizeof(uint64_t) == 0 \
		       && (offsetof(struct KeeperCopy, last) + sizeof(((struct KeeperCopy *)0)->last)) % sizeof(uint64_t) == 0, \
		       "written as one word")
SAME_WORD(kind, flags);
SAME_WORD(link, dst);
SAME_WORD(io, io_done);
SAME_WORD(io_parse, io_recv);
SAME_WORD(pkt_remain, skip_remain);
_Static_assert(WORD(check) == WORD(n_requests) + 3, "the requests fill three words");

/*
 * Outstanding requests.
 */

static KEEPER_APART uint64_t write_requests_apart(PgSocket *sk, struct KeeperLocal *l, struct KeeperCopy *copy)
{
	static struct KeeperPack pack;
	struct List *el;

	pack.len = 0;
	statlist_for_each(el, &sk->outstanding_requests) {
		OutstandingRequest *request = container_of(el, OutstandingRequest, node);
		struct KeeperRequest entry;

		memset(&entry, 0, sizeof(entry));
		entry.type = request->type;
		entry.action = request->action;
		entry.query_id = request->server_ps_query_id;
		if (request->server_ps) {
			entry.closing = 1;
			entry.query_id = request->server_ps->query_id;
			entry.statement = keeper_statement_blob(request->server_ps->ps);
			l->full |= !entry.statement;
		}
		keeper_pack(&pack, &entry, sizeof(entry));
	}
	l->requests = keeper_pack_blob(&pack, KEEPER_BLOB_REQUESTS);
	l->full |= !l->requests;
	l->calm &= !l->full;
	keeper_cold_changed(l);
	return put(copy, WORD(n_requests), 0) + put(copy, WORD(n_requests) + 1, 0) + put(copy, WORD(n_requests) + 2, 0);
}

static inline uint8_t inline_request(const OutstandingRequest *request)
{
	return request->action << 6 | (request->type - 0x40);
}

static KEEPER_APART uint64_t write_requests(PgSocket *sk, struct KeeperLocal *l, struct KeeperCopy *copy)
{
	unsigned n = statlist_count(&sk->outstanding_requests);
	unsigned i = WORD(n_requests), at = sizeof(copy->n_requests);
	uint64_t word = PART(n_requests, n), check = 0;
	struct List *el;

	if (l->requests) {
		keeper_store_free_blob(&keeper_store, l->requests);
		l->requests = 0;
		keeper_cold_changed(l);
	}
	if (n > KEEPER_INLINE_REQUESTS)
		return write_requests_apart(sk, l, copy);
	statlist_for_each(el, &sk->outstanding_requests) {
		const OutstandingRequest *request = container_of(el, OutstandingRequest, node);

		if (request->server_ps || request->server_ps_query_id)
			return write_requests_apart(sk, l, copy);
		word |= part(at, 1, inline_request(request));
		if (++at == sizeof(word)) {
			check += put(copy, i++, word);
			word = at = 0;
		}
	}
	for (; i < WORD(check); i++) {
		check += put(copy, i, word);
		word = 0;
	}
	return check;
}

/* or none: a client's list is not even initialized */
static inline uint64_t write_one_request(PgSocket *sk, struct KeeperLocal *l, struct KeeperCopy *copy)
{
	const OutstandingRequest *request;
	uint64_t word = 0;

	if (statlist_count(&sk->outstanding_requests)) {
		request = container_of(sk->outstanding_requests.head.next, OutstandingRequest, node);
		if (unlikely(request->server_ps || request->server_ps_query_id))
			return write_requests(sk, l, copy);
		word = PART(n_requests, 1) | part(sizeof(copy->n_requests), 1, inline_request(request));
	}
	put(copy, WORD(n_requests) + 1, 0);
	put(copy, WORD(n_requests) + 2, 0);
	return put(copy, WORD(n_requests), word);
}

/*
 * extra_packets is mirrored once, and while it is being sent only the count of
 * what is gone changes.  It may be filled anew at the same place and length,
 * so compare what it holds.
 */
static void write_extra(PgSocket *sk, struct KeeperLocal *l)
{
	struct MBuf *extra = &sk->sbuf.extra_packets;
	unsigned left = mbuf_avail_for_read(extra);
	uint32_t unit;

	keeper_cold_changed(l);
	if (l->extra && left && left <= l->extra_len) {
		const uint8_t *mirror = keeper_blob_data(keeper_store_blob(&keeper_store, l->extra));

		if (memcmp(mirror + l->extra_len - left, extra->data + extra->read_pos, left) == 0) {
			l->extra_done = l->extra_len - left;
			return;
		}
	}
	keeper_store_free_blob(&keeper_store, l->extra);
	l->extra = l->extra_len = l->extra_done = 0;
	if (!left)
		return;
	unit = keeper_store_new_blob(&keeper_store, KEEPER_BLOB_EXTRA, left);
	if (!unit) {
		l->full = true;
		return;
	}
	memcpy(keeper_blob_data(keeper_store_blob(&keeper_store, unit)), extra->data + extra->read_pos, left);
	keeper_store_finish_blob(&keeper_store, unit, left);
	l->extra = unit;
	l->extra_len = left;
}

/*
 * The copy.
 */

static uint32_t pool_slot(PgPool *pool)
{
	if (!pool)
		return 0;
	if (!pool->keeper_slot)
		pool->keeper_slot = keeper_new_slot(pool, KEEPER_POOL);
	return pool->keeper_slot;
}

static inline uint32_t slot_of(const PgSocket *sk)
{
	return sk ? sk->keeper_slot : 0;
}

/*
 * Has nothing changed but what every commit writes?  A packet that is buffered
 * whole is announced by its action, and each part of it ends the calm.
 */
static inline bool is_calm(const PgSocket *sk, const struct KeeperLocal *l)
{
	return l->calm && l->pool == sk->pool && l->vars_changes == keeper_vars_changes
	       && sk->sbuf.pkt_action != KEEPER_ACTION_CALL && !mbuf_avail_for_read(&sk->sbuf.extra_packets);
}

/*
 * A console whose command a successor could neither begin again nor carry on.
 * SUSPEND ends when the console that asked for it has gone, and who asked for
 * SHUTDOWN is to hear that it was interrupted.
 */
static bool is_lost_console(const struct KeeperLocal *l)
{
	return l->in_command || l->answer_outside || cf_pause_mode == P_SUSPEND || cf_shutdown == SHUTDOWN_IMMEDIATE;
}

static KEEPER_APART void update_rest(PgSocket *sk, struct KeeperLocal *l)
{
	bool is_console = !is_server_socket(sk) && sk->pool && sk->pool->db->admin;
	bool settled;

	/* ids must never come twice: known before what carries them can leave; who is new is never calm */
	keeper_store.header->query_id = next_unique_query_id;
	keeper_store.header->socket_id = last_pgsocket_id;
	l->full = false;
	keeper_cold_changed(l);
	l->pool = sk->pool;
	l->pool_slot = pool_slot(sk->pool);
	l->canceled_server = slot_of(sk->canceled_server);
	if (l->extra || mbuf_avail_for_read(&sk->sbuf.extra_packets))
		write_extra(sk, l);
	if (l->catalog.added || l->catalog.rewrite) {
		l->catalog.lost = !keeper_catalog_write(sk, &l->catalog);
		l->stale = true;
	}
	settled = keeper_update_record(sk, l);
	l->full |= !l->record || !l->pool_slot != !sk->pool || l->catalog.lost
		   || (!l->packet && mbuf_written(&sk->packet_cb_state.pkt.data));
	l->flags = 0;
	if (l->is_unix)
		l->flags |= KEEPER_F_UNIX;
	if (is_console && is_lost_console(l))
		l->flags |= KEEPER_F_CONSOLE;
	if (l->doomed)
		l->flags |= KEEPER_F_DOOMED;
	if (l->doom_notify)
		l->flags |= KEEPER_F_DOOM_NOTIFY;
	find_flags(sk, l);
	l->calm = settled && !l->full && !l->extra && l->packet_flag == CB_NONE && !l->canceled_server && !is_console;
}

static KEEPER_APART void write_third_line(struct KeeperLocal *l, struct KeeperCopy *copy, unsigned which)
{
	copy->token = l->token;
	copy->pool = l->pool_slot;
	copy->record = l->record;
	copy->outbox = l->outbox;
	copy->outbox_done = l->outbox_done;
	copy->outbox_len = l->outbox_len;
	copy->doom = l->doom;
	copy->extra = l->extra;
	copy->extra_done = l->extra_done;
	copy->requests = l->requests;
	copy->canceled_server = l->canceled_server;
	copy->spare[0] = copy->spare[1] = 0;
	/* stale or not, both copies are to say the same */
	l->cold_check = keeper_check_cold(copy);
	l->copies &= ~(1 << which);
}

/* a request to cancel that dies with this process, but may still arrive at the server */
static bool cancel_in_the_dark(const PgSocket *server)
{
	struct List *item;

	statlist_for_each(item, &server->canceling_clients) {
		if (!container_of(item, PgSocket, cancel_head)->keeper_slot)
			return true;
	}
	return false;
}

/* a link that a successor cannot find; one to a server that logs in for a replication client is made anew */
static inline bool link_in_the_dark(const PgSocket *sk, uint32_t link)
{
	return unlikely(!link && sk->link) && sk->link->state != SV_LOGIN;
}

static inline uint64_t serialize_socket(PgSocket *sk, struct KeeperLocal *l, struct KeeperCopy *copy, unsigned which)
{
	const SBuf *sbuf = &sk->sbuf;
	const IOBuf *io = sbuf->io;
	uint32_t link = slot_of(sk->link), dst = 0, flags;
	uint8_t wait_type;
	uint64_t check;
	bool drained = true;

	if (unlikely(!is_calm(sk, l)))
		update_rest(sk, l);
	else if (bits_of(sk) != l->bits)
		find_flags(sk, l);
	flags = l->flags;
	if (sbuf->extra_packet_queue_after)
		flags |= KEEPER_F_QUEUE_AFTER;
	if (sk->keeper_flush_due)
		flags |= KEEPER_F_FLUSH_DUE;
	if (sbuf->dst)
		dst = container_of(sbuf->dst, PgSocket, sbuf)->keeper_slot;

	check = put(copy, WORD(rx), l->rx);
	check += put(copy, WORD(tx), l->tx);
	check += put(copy, WORD(link), PART(link, link) | PART(dst, dst));
	/* who has lent it has read all of it */
	if (io && unlikely(io->keeper_number & KEEPER_LENT))
		io = NULL;
	if (l->is_handed) {
		check += put(copy, WORD(io), PART(io, l->handed) | PART(io_done, l->handed_done));
		check += put(copy, WORD(io_parse), PART(io_parse, l->handed_done) | PART(io_recv, l->handed_end));
		flags |= KEEPER_F_HANDED;
		/* there is no place for both; one that is empty, as before a recv, needs none */
		if (unlikely(io && io->done_pos != io->recv_pos))
			flags |= KEEPER_F_VOLATILE;
		/* on the way down to a format that has none, and no room for it in the outbox */
		if (unlikely(keeper_store.format < KEEPER_FORMAT_HANDED))
			flags = (flags & ~KEEPER_F_HANDED) | KEEPER_F_VOLATILE;
	} else if (io) {
		check += put(copy, WORD(io), PART(io, io->keeper_number) | PART(io_done, io->done_pos));
		check += put(copy, WORD(io_parse), PART(io_parse, io->parse_pos) | PART(io_recv, io->recv_pos));
		drained = io->done_pos == io->recv_pos;
		if (unlikely(!io->keeper_number))
			flags |= KEEPER_F_VOLATILE;
	} else {
		put(copy, WORD(io), 0);
		put(copy, WORD(io_parse), 0);
	}
	check += put(copy, WORD(pkt_remain), PART(pkt_remain, sbuf->pkt_remain) | PART(skip_remain, sbuf->skip_remain));
	check += put(copy, WORD(query_start), sk->query_start);
	check += put(copy, WORD(xact_start), sk->xact_start);
	check += put(copy, WORD(request_time), sk->request_time);
	check += put(copy, WORD(wait_start), sk->wait_start);
	if (l->kind == KEEPER_SERVER && unlikely(!statlist_empty(&sk->canceling_clients)) && cancel_in_the_dark(sk))
		flags |= KEEPER_F_CLOSE_NEEDED;
	if (unlikely(l->requests) || statlist_count(&sk->outstanding_requests) > 1)
		check += write_requests(sk, l, copy);
	else
		check += write_one_request(sk, l, copy);
	if (unlikely(l->full || l->next == KEEPER_NEXT_BYPASS) || link_in_the_dark(sk, link))
		flags |= KEEPER_F_VOLATILE;
	if (unlikely(l->next == KEEPER_NEXT_RECV))
		flags |= KEEPER_F_RECV_DUE;
	/* SUSPEND ends with the console that asked for it, and that with the process */
	wait_type = sk->suspended ? KEEPER_WAIT_RECV : sbuf->wait_type;
	check += put(copy, WORD(kind), PART(kind, l->kind) | PART(state, sk->state) | PART(wait_type, wait_type)
		     | PART(pkt_action, sbuf->pkt_action) | PART(flags, flags));

	if (unlikely(l->copies & 1 << which))
		write_third_line(l, copy, which);
	l->copies = (l->copies & KEEPER_COLD_STALE) | KEEPER_COPY_OURS | (drained ? KEEPER_COPY_DRAINED : 0);
	sk->keeper_clean = true;
	return check + l->cold_check;
}

static KEEPER_APART uint64_t serialize_other(struct KeeperLocal *l, struct KeeperCopy *copy)
{
	memset(&copy->rx, 0, sizeof(*copy) - offsetof(struct KeeperCopy, rx));
	copy->kind = l->kind;
	switch (l->kind) {
	case KEEPER_POOL:
		keeper_write_pool(l->object, l, copy);
		break;
	case KEEPER_USER:
		keeper_write_credentials(l->object, l, copy);
		break;
	case KEEPER_GLOBAL:
		keeper_write_global(l, copy);
		break;
	case KEEPER_CLOSING:
		copy->token = l->token;
		copy->rx = l->rx;
		copy->tx = l->tx;
		copy->outbox = l->outbox;
		copy->outbox_done = l->outbox_done;
		copy->outbox_len = l->outbox_len;
		copy->flags = l->is_unix ? KEEPER_F_UNIX : 0;
		if (l->is_handed) {
			copy->flags |= KEEPER_F_HANDED;
			copy->io = l->handed;
			copy->io_done = copy->io_parse = l->handed_done;
			copy->io_recv = l->handed_end;
		}
		break;
	default:
		break;
	}
	return keeper_check_hot(copy) + keeper_check_cold(copy);
}

static inline uint64_t serialize(unsigned slot, struct KeeperCopy *copy, unsigned which)
{
	struct KeeperLocal *l = &keeper_local[slot];

	if (likely(l->kind == KEEPER_CLIENT || l->kind == KEEPER_SERVER))
		return serialize_socket(l->object, l, copy, which);
	return serialize_other(l, copy);
}

#ifdef CASSERT
/*
 * With assertions: who is not marked must be as its true copy says, but for what a
 * reader finds out from notes and from the kernel.
 */
static void verify_marks(void)
{
	uint32_t slot;

	for (slot = 1; slot <= keeper_store.header->slots; slot++) {
		struct KeeperLocal *l = &keeper_local[slot], saved = *l;
		const struct KeeperCopy *is = keeper_store_copy(&keeper_store, slot);
		struct KeeperCopy should = *is;
		PgSocket *sk = l->object;
		bool was_clean;
		unsigned i;

		if ((l->kind != KEEPER_CLIENT && l->kind != KEEPER_SERVER) || (keeper_store.place[slot] & KEEPER_MARKED)
		    || !is_calm(sk, l) || l->requests || statlist_count(&sk->outstanding_requests) > 1)
			continue;
		was_clean = sk->keeper_clean;
		serialize_socket(sk, l, &should, 0);
		sk->keeper_clean = was_clean;
		*l = saved;
		if (is->flags & KEEPER_F_HANDED) {
			should.tx = is->tx;
			should.io = is->io;
			should.io_done = is->io_done;
			should.io_parse = is->io_parse;
			should.io_recv = is->io_recv;
			should.flags |= KEEPER_F_HANDED;
		}
		should.flags |= is->flags & KEEPER_F_RECV_DUE;
		/* PgBouncer leaves it where it was until the next packet, and does not look at it: it may have gone */
		if (!should.link || !should.dst)
			should.dst = is->dst;
		for (i = WORD(rx); i < WORD(check); i++) {
			uint64_t wrong = ((const KeeperWord *)is)[i], right = ((const KeeperWord *)&should)[i];

			if (wrong == right)
				continue;
			log_error("keeper: slot %u is not marked, and word %u of it has become %" PRIx64 ", not %" PRIx64,
				  slot, i, right, wrong);
			abort();
		}
	}
}
#endif

void keeper_commit(enum KeeperAct act, uint32_t slot, uint32_t source)
{
#ifdef CASSERT
	verify_marks();
#endif
	if (unlikely(!keeper_store_commit(&keeper_store, serialize, act, slot, source))) {
		/* fenced: whatever we did now would be done twice */
		log_warning("keeper: another incarnation owns the ledger, stopping");
		_exit(1);
	}
}
