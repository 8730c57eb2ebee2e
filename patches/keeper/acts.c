/*
 * pgkeeper - every act of a held socket, written ahead.
 *
 * sbuf.c does all plain I/O of clients and servers through sbuf->ops.  Ours
 * commit to the ledger what is about to be done, then do it.  Bytes that
 * PgBouncer sends from inside a callback go into the destination's outbox:
 * they become true together with the state after them, and leave when the
 * callbacks have returned (outbox.c).
 */
#include "bouncer.h"

#include <usual/safeio.h>
#include <usual/slab.h>

#include "keeper/internal.h"

_Static_assert(offsetof(IOBuf, buf) == KEEPER_IOBUF_HEAD, "where an IOBuf's bytes begin");

/* whole messages are put together up to so many */
#define JOINED_BYTES	2048

static PgSocket **iobuf_owner;

void keeper_acts_setup(void)
{
	iobuf_owner = calloc(keeper_store.header->iobufs + 1, sizeof(*iobuf_owner));
	if (!iobuf_owner)
		die("keeper: out of memory");
}

/*
 * IOBufs: what has left the kernel lives in the ledger.
 */

IOBuf *keeper_iobuf_alloc(SBuf *sbuf)
{
	PgSocket *sk = container_of(sbuf, PgSocket, sbuf);
	uint32_t number = keeper_on ? keeper_store_new_iobuf(&keeper_store) : 0;
	IOBuf *io;

	if (number) {
		/* an act is about to begin */
		keeper_prefetch(sk->keeper_slot);
		iobuf_owner[number] = sk;
		io = keeper_store_iobuf(&keeper_store, number);
	} else {
		io = slab_alloc(iobuf_cache);
	}
	if (io)
		io->keeper_number = number;
	return io;
}

void keeper_iobuf_free(SBuf *sbuf, IOBuf *io)
{
	uint32_t number = io->keeper_number;

	if (!number) {
		slab_free(iobuf_cache, io);
		return;
	}
	keeper_mark(container_of(sbuf, PgSocket, sbuf));
	if (number & KEEPER_LENT)
		io->keeper_number = 0;	/* whose it is now will free it */
	else
		keeper_store_free_iobuf(&keeper_store, number);
}

void keeper_iobuf_owner(uint32_t number, PgSocket *owner)
{
	iobuf_owner[number] = owner;
}

/* who reads into it still has it, and bytes in it are to be sent to somebody: PgBouncer lets go of it first */
static KEEPER_APART bool take_back(IOBuf *io)
{
	uint32_t number = io->keeper_number & ~KEEPER_LENT, slot;

	for (slot = 1; slot <= keeper_store.header->slots; slot++) {
		const struct KeeperLocal *l = &keeper_local[slot];

		if (l->is_handed && l->handed == number)
			return keeper_outbox_take_handed(slot);
	}
	return true;
}

void keeper_iobuf_resync(SBuf *sbuf, unsigned small_pkt)
{
	IOBuf *io = sbuf->io, *fresh;
	unsigned avail = io->recv_pos - io->done_pos;
	PgSocket *sk = container_of(sbuf, PgSocket, sbuf);
	const struct KeeperCopy *copy;
	uint32_t number;

	/* an empty one, where the next bytes go to its beginning anyway */
	if (io->recv_pos == 0)
		return;
	if (unlikely(io->keeper_number & KEEPER_LENT) && !take_back(io))
		return;
	if (!sk->keeper_slot || avail == 0 || avail > small_pkt || io->done_pos == 0) {
		iobuf_try_resync(io, small_pkt);
		keeper_mark(sk);
		return;
	}
	keeper_mark(sk);
	number = io->keeper_number;
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
 * Plain I/O.
 */

/* where the kernel counts nothing, the ledger does */

static KEEPER_APART ssize_t counted_recv(uint32_t slot, void *dst, size_t len)
{
	struct KeeperSlot *shared = &keeper_store.slot[slot];
	struct KeeperLocal *l = &keeper_local[slot];
	ssize_t res;

	__atomic_store_n(&shared->unix_busy, 1, __ATOMIC_RELEASE);
	res = keeper_system_recv(l->fd, dst, len);
	if (res > 0)
		l->rx += res;
	__atomic_store_n(&shared->unix_rx, l->rx, __ATOMIC_RELEASE);
	__atomic_store_n(&shared->unix_busy, 0, __ATOMIC_RELEASE);
	return res;
}

KEEPER_APART ssize_t keeper_counted_send(uint32_t slot, const void *data, size_t len)
{
	struct KeeperSlot *shared = &keeper_store.slot[slot];
	struct KeeperLocal *l = &keeper_local[slot];
	ssize_t res;

	__atomic_store_n(&shared->unix_busy, 1, __ATOMIC_RELEASE);
	res = keeper_system_send(l->fd, data, len);
	if (res > 0)
		l->tx += res;
	__atomic_store_n(&shared->unix_tx, l->tx, __ATOMIC_RELEASE);
	__atomic_store_n(&shared->unix_busy, 0, __ATOMIC_RELEASE);
	return res;
}

/*
 * The operations table.
 */

/* keeper_mark() for who has just been committed, or looked at */
static inline void mark_again(PgSocket *sk)
{
	if (sk && sk->keeper_clean) {
		sk->keeper_clean = false;
		keeper_store_mark(&keeper_store, sk->keeper_slot);
	}
}

static inline bool may_be_noted(uint32_t slot, const struct KeeperLocal *l, uint32_t iobuf, uint32_t position)
{
	if (likely(l->copies & KEEPER_COPY_DRAINED))
		return true;
	return (l->copies & KEEPER_COPY_OURS) && keeper_store_notable(&keeper_store, slot, l->rx, iobuf, position);
}

static ssize_t keeper_recv(SBuf *sbuf, void *dst, size_t len)
{
	PgSocket *sk = container_of(sbuf, PgSocket, sbuf);
	uint32_t slot = sk->keeper_slot;
	struct KeeperLocal *l = &keeper_local[slot];
	uint32_t position;
	ssize_t res;

	if (!slot)
		return safe_recv(sbuf->sock, dst, len, 0);

	if (unlikely(keeper_leaving)) {
		/* within the callback that follows what was handed on: somebody is woken by it */
		l->next = KEEPER_NEXT_RECV;
		keeper_mark(sk);
		keeper_send_leaving();
		l->next = 0;
	}
	if (unlikely(l->is_handed || (sbuf->io->keeper_number & KEEPER_LENT))
	    && (!keeper_outbox_take_handed(slot) || !take_back(sbuf->io))) {
		errno = EAGAIN;
		return -1;
	}
	position = (uint8_t *)dst - sbuf->io->buf;
	if (!may_be_noted(slot, l, sbuf->io->keeper_number, position)
	    || !keeper_store_note_read(&keeper_store, slot, l->rx, sbuf->io->keeper_number, position)) {
		keeper_mark(sk);
		keeper_commit(KEEPER_ACT_RECV, slot, slot);
	}
	/* what it changes: marked before it, as long as all this is at hand */
	mark_again(sk);
	mark_again(sk->link);
	if (unlikely(l->is_unix)) {
		res = counted_recv(slot, dst, len);
	} else {
		res = keeper_system_recv(sbuf->sock, dst, len);
		if (likely(res > 0))
			l->rx += res;
	}
	if (likely(res > 0)) {
		l->copies &= ~KEEPER_COPY_DRAINED;
		sk->keeper_flush_due = true;
	}
	return res;
}

/* whose stream is this: its IOBuf or extra_packets hold the bytes */
static PgSocket *stream_source(PgSocket *destination, const void *data)
{
	PgSocket *link = destination->link;
	const uint8_t *p = data;
	uint32_t number;

	if (link && link->sbuf.io && p >= link->sbuf.io->buf && p < link->sbuf.io->buf + cf_sbuf_len)
		return link;
	if (link && link->sbuf.extra_packets.data && p >= link->sbuf.extra_packets.data
	    && p < link->sbuf.extra_packets.data + link->sbuf.extra_packets.write_pos)
		return link;
	/* no link any more, but in the middle of a packet for it */
	number = keeper_store_iobuf_of(&keeper_store, data);
	return number ? iobuf_owner[number] : NULL;
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

/*
 * Is this the end of all that its source has read and is to send on?  Then the
 * source is done with its IOBuf, and SBUF_EV_FLUSH follows.  A copy has one
 * place for an IOBuf.  Clients that do not read may keep what was handed on to
 * them for long: when few are left, the server waits with it, as upstream's does.
 */
static inline bool may_hand_on(const PgSocket *sk, const struct KeeperLocal *l, const PgSocket *source,
			       const uint8_t *data, size_t len)
{
	const SBuf *from = &source->sbuf;
	const IOBuf *io = from->io;

	return io && data + len == io->buf + io->recv_pos && io->parse_pos == io->recv_pos && !from->pkt_remain
	       && io->recv_pos < (unsigned)cf_sbuf_len && !sk->sbuf.io && from->dst == &sk->sbuf
	       && !mbuf_avail_for_read(&from->extra_packets) && io->keeper_number && !l->is_unix
	       && source->keeper_slot && keeper_store.format >= KEEPER_FORMAT_HANDED
	       && keeper_store.n_free_iobuf > keeper_store.iobufs / 4;
}

/*
 * A few whole messages in front of others for the same socket: a rewritten
 * Bind in extra_packets, and the Execute that follows it.  To copy them costs
 * less than a commit and a system call for each.
 */
static inline bool may_be_joined(const struct KeeperLocal *l, const PgSocket *source, const uint8_t *data, size_t len)
{
	const IOBuf *io = source->sbuf.io;

	if (len > JOINED_BYTES || !source->keeper_slot)
		return false;
	if (io && data >= io->buf && data < io->buf + cf_sbuf_len)
		return unlikely(l->outbox) && !source->sbuf.pkt_remain
		       && l->outbox_len - l->outbox_done + len <= JOINED_BYTES;
	return !l->outbox || l->outbox_len - l->outbox_done + len <= JOINED_BYTES;
}

static ssize_t keeper_send(SBuf *sbuf, const void *data, size_t len)
{
	PgSocket *sk = container_of(sbuf, PgSocket, sbuf);
	uint32_t slot = sk->keeper_slot;
	struct KeeperLocal *l = &keeper_local[slot];
	PgSocket *source;

	if (!slot)
		return safe_send(sbuf->sock, data, len, 0);

	source = stream_source(sk, data);
	if (!source && stream_blocked(sk)) {
		errno = EAGAIN;
		return -1;
	}
	/*
	 * Not behind what waits in a PktBuf.  Nothing is committed here, not even
	 * for the sake of who else is leaving: the callback has changed the state
	 * for these bytes already, as when a server is released to be reset.
	 */
	if (!source && !l->answer_outside) {
		if (keeper_outbox_append(slot, data, len))
			return len;
		l->answer_outside = sk->pool && sk->pool->db->admin;
	}
	keeper_mark(source);
	keeper_mark(sk);
	/* it commits: before anything of this send is in the state, but for bytes that there was no room for */
	if (unlikely(keeper_leaving && keeper_leaving != slot)) {
		if (!source)
			l->next = KEEPER_NEXT_BYPASS;
		keeper_send_leaving_now();
		l->next = 0;
		keeper_mark(source);
		keeper_mark(sk);
	}
	if (likely(source) && may_be_joined(l, source, data, len) && keeper_outbox_append(slot, data, len)) {
		keeper_leaving = slot;
		return len;
	}
	if (unlikely(l->outbox || l->is_handed)) {
		bool is_free = keeper_outbox_flush(slot);

		/* which has committed: who is told that there is no room waits for it from now on */
		keeper_mark(source);
		keeper_mark(sk);
		if (!is_free) {
			errno = EAGAIN;
			return -1;
		}
	}
	if (likely(source) && may_hand_on(sk, l, source, data, len)) {
		keeper_hand_on(slot, source->sbuf.io, data, len);
		return len;
	}
	l->next = source ? 0 : KEEPER_NEXT_BYPASS;
	keeper_commit(KEEPER_ACT_SEND, slot, source ? source->keeper_slot : 0);
	l->next = 0;
	/* what it changes: before it, as long as all this is at hand */
	mark_again(source);
	mark_again(sk);
	return keeper_send_to(slot, data, len);
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

		if (!is_server_socket(sk))
			keeper_statements_gone(sk);
		keeper_outbox_forget(l);
		/* the slot outlives the PgSocket until the descriptor is closed */
		l->kind = KEEPER_CLOSING;
		l->object = NULL;
		l->closing_since = get_cached_time();
		sk->keeper_slot = 0;
		sk->keeper_clean = false;
		keeper_store_mark(&keeper_store, slot);
		keeper_pend(slot);
	}
	sbuf->sock = 0;
	return 0;
}

const SBufIO keeper_sbufio_ops = {
	.sbufio_recv = keeper_recv,
	.sbufio_send = keeper_send,
	.sbufio_close = keeper_close
};
