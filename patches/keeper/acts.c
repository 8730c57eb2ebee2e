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

#include <usual/safeio.h>
#include <usual/slab.h>

#include "keeper/internal.h"
#include "keeper/system.h"

_Static_assert(offsetof(IOBuf, buf) == KEEPER_IOBUF_HEAD, "where an IOBuf's bytes begin");

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
	keeper_cold_changed(l);
	keeper_store_mark(&keeper_store, slot);
	keeper_pend(slot);
	return true;
}

void keeper_outbox_drop(struct KeeperLocal *l)
{
	keeper_store_free_blob(&keeper_store, l->outbox);
	l->outbox = l->outbox_done = l->outbox_len = 0;
	keeper_cold_changed(l);
}

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

static KEEPER_APART ssize_t counted_send(uint32_t slot, const void *data, size_t len)
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

bool keeper_outbox_flush(uint32_t slot)
{
	struct KeeperLocal *l = &keeper_local[slot];

	while (l->outbox) {
		const uint8_t *data;
		size_t len;
		ssize_t res;

		keeper_store_mark(&keeper_store, slot);
		keeper_commit(KEEPER_ACT_OUTBOX, slot, slot);
		data = keeper_blob_data(keeper_store_blob(&keeper_store, l->outbox)) + l->outbox_done;
		len = l->outbox_len - l->outbox_done;
		if (l->is_unix) {
			res = counted_send(slot, data, len);
		} else {
			res = keeper_system_send(l->fd, data, len);
			if (res > 0)
				l->tx += res;
		}
		keeper_store_mark(&keeper_store, slot);
		if (res < 0 && errno == EAGAIN)
			return false;
		if (res > 0)
			l->outbox_done += res;
		keeper_cold_changed(l);
		/* on an error nobody reads any more: recv will tell the same */
		if (res < 0 || l->outbox_done == l->outbox_len)
			keeper_outbox_drop(l);
	}
	return true;
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

	position = (uint8_t *)dst - sbuf->io->buf;
	if (!may_be_noted(slot, l, sbuf->io->keeper_number, position)
	    || !keeper_store_note_read(&keeper_store, slot, l->rx, sbuf->io->keeper_number, position)) {
		keeper_mark(sk);
		keeper_commit(KEEPER_ACT_RECV, slot, slot);
	}
	/* what it changes: marked before it, as long as all this is at hand */
	mark_again(sk);
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

static ssize_t keeper_send(SBuf *sbuf, const void *data, size_t len)
{
	PgSocket *sk = container_of(sbuf, PgSocket, sbuf);
	uint32_t slot = sk->keeper_slot;
	struct KeeperLocal *l = &keeper_local[slot];
	PgSocket *source;
	ssize_t res;

	if (!slot)
		return safe_send(sbuf->sock, data, len, 0);

	source = stream_source(sk, data);
	if (!source && stream_blocked(sk)) {
		errno = EAGAIN;
		return -1;
	}
	/* not behind what waits in a PktBuf */
	if (!source && !l->answer_outside) {
		if (keeper_outbox_append(slot, data, len))
			return len;
		l->answer_outside = sk->pool && sk->pool->db->admin;
	}
	if (unlikely(l->outbox) && !keeper_outbox_flush(slot)) {
		errno = EAGAIN;
		return -1;
	}
	keeper_mark(source);
	keeper_mark(sk);
	/* bytes the ledger had no room for leave at once: volatile until they have */
	l->bypass = !source;
	keeper_commit(KEEPER_ACT_SEND, slot, source ? source->keeper_slot : 0);
	l->bypass = false;
	/* what it changes: before it, as long as all this is at hand */
	mark_again(source);
	mark_again(sk);
	if (unlikely(l->is_unix))
		return counted_send(slot, data, len);
	l->tx += len;
	res = keeper_system_send(sbuf->sock, data, len);
	if (unlikely(res != (ssize_t)len))
		l->tx -= len - (res > 0 ? res : 0);
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

		if (!is_server_socket(sk))
			keeper_statements_gone(sk);
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
	keeper_recv,
	keeper_send,
	keeper_close
};
