/*
 * pgkeeper - bytes that are a socket's own to send.
 *
 * Its outbox: what PgBouncer says from inside a callback.  And what is handed
 * on to it: the end of a message in the IOBuf of who has read it.  Both become
 * true together with the state after them, so that for the end of a query,
 * when server and client part, one commit is enough; and both leave when the
 * callbacks have returned.
 */
#include "bouncer.h"

#include "keeper/internal.h"

/*
 * Handed on.
 */

uint32_t keeper_leaving;

static IOBuf *handed_iobuf(const struct KeeperLocal *l)
{
	return keeper_store_iobuf(&keeper_store, l->handed);
}

/* nothing of it is needed here any more */
static inline void let_go(struct KeeperLocal *l)
{
	IOBuf *io = handed_iobuf(l);

	l->is_handed = false;
	if (io->keeper_number)
		io->keeper_number &= ~KEEPER_LENT;
	else
		keeper_store_free_iobuf(&keeper_store, l->handed);
}

/* how a send has ended that did not take all of it; true: nothing is left of it */
static KEEPER_APART bool handed_in_part(uint32_t slot, ssize_t res)
{
	struct KeeperLocal *l = &keeper_local[slot];

	keeper_store_mark(&keeper_store, slot);
	if (res > 0)
		l->handed_done += res;
	if (res >= 0 || errno == EAGAIN)
		return false;
	/* nobody reads any more: recv will tell the same */
	let_go(l);
	return true;
}

/*
 * The copy itself says that these bytes may leave at any time, so it need not
 * be written when they have: whoever reads it asks the kernel.
 */
static inline __attribute__((always_inline)) bool send_handed_inline(uint32_t slot)
{
	struct KeeperLocal *l = &keeper_local[slot];
	size_t len = l->handed_end - l->handed_done;
	ssize_t res;

	if (keeper_store.place[slot] & KEEPER_MARKED)
		keeper_commit(KEEPER_ACT_OUTBOX, slot, slot);
	res = keeper_send_to(slot, handed_iobuf(l)->buf + l->handed_done, len);
	if (unlikely(res != (ssize_t)len))
		return handed_in_part(slot, res);
	let_go(l);
	if (unlikely(l->kind == KEEPER_CLOSING))
		keeper_store_mark(&keeper_store, slot);
	return true;
}

static KEEPER_APART bool send_handed(uint32_t slot)
{
	return send_handed_inline(slot);
}

void keeper_send_leaving_now(void)
{
	uint32_t slot = keeper_leaving;
	const struct KeeperLocal *l = &keeper_local[slot];

	keeper_leaving = 0;
	if (likely(l->is_handed) && unlikely(!send_handed_inline(slot)))
		keeper_pend(slot);
	else if (unlikely(l->outbox) && !keeper_outbox_flush(slot))
		keeper_pend(slot);
}

/*
 * Outbox.
 */

/* at least so many bytes more fit behind what is not sent yet, with so many free in front of that */
static bool make_room(struct KeeperLocal *l, size_t in_front, size_t len)
{
	size_t left = l->outbox_len - l->outbox_done;
	uint32_t unit = keeper_store_new_blob(&keeper_store, KEEPER_BLOB_OUTBOX, 2 * (in_front + left + len));
	struct KeeperBlob *bigger;

	if (!unit)
		return false;
	bigger = keeper_store_blob(&keeper_store, unit);
	if (l->outbox) {
		memcpy(keeper_blob_data(bigger) + in_front,
		       keeper_blob_data(keeper_store_blob(&keeper_store, l->outbox)) + l->outbox_done, left);
		keeper_store_free_blob(&keeper_store, l->outbox);
	}
	l->outbox = unit;
	l->outbox_done = 0;
	l->outbox_len = in_front + left;
	return true;
}

bool keeper_outbox_append(uint32_t slot, const void *data, size_t len)
{
	struct KeeperLocal *l = &keeper_local[slot];
	struct KeeperBlob *blob = l->outbox ? keeper_store_blob(&keeper_store, l->outbox) : NULL;

	if (!blob || l->outbox_len + len > keeper_blob_capacity(blob)) {
		if (!make_room(l, 0, len))
			return false;
		blob = keeper_store_blob(&keeper_store, l->outbox);
	}
	/* beyond what a committed length covers: nobody reads it yet */
	memcpy(keeper_blob_data(blob) + l->outbox_len, data, len);
	l->outbox_len += len;
	keeper_cold_changed(l);
	keeper_store_mark(&keeper_store, slot);
	keeper_pend(slot);
	return true;
}

bool keeper_outbox_take_handed(uint32_t slot)
{
	struct KeeperLocal *l = &keeper_local[slot];
	size_t left;

	if (!l->is_handed || send_handed(slot))
		return true;
	left = l->handed_end - l->handed_done;
	if (!make_room(l, left, 0))
		return false;
	memcpy(keeper_blob_data(keeper_store_blob(&keeper_store, l->outbox)), handed_iobuf(l)->buf + l->handed_done, left);
	let_go(l);
	keeper_cold_changed(l);
	keeper_store_mark(&keeper_store, slot);
	keeper_pend(slot);
	return true;
}

void keeper_outbox_drop(uint32_t slot)
{
	struct KeeperLocal *l = &keeper_local[slot];

	if (l->is_handed)
		let_go(l);
	keeper_store_free_blob(&keeper_store, l->outbox);
	l->outbox = l->outbox_done = l->outbox_len = 0;
	keeper_cold_changed(l);
}

bool keeper_outbox_flush(uint32_t slot)
{
	struct KeeperLocal *l = &keeper_local[slot];

	if (l->is_handed && !send_handed(slot))
		return false;
	while (l->outbox) {
		const uint8_t *data;
		size_t len;
		ssize_t res;

		keeper_store_mark(&keeper_store, slot);
		keeper_commit(KEEPER_ACT_OUTBOX, slot, slot);
		data = keeper_blob_data(keeper_store_blob(&keeper_store, l->outbox)) + l->outbox_done;
		len = l->outbox_len - l->outbox_done;
		res = keeper_send_to(slot, data, len);
		keeper_store_mark(&keeper_store, slot);
		if (res < 0 && errno == EAGAIN)
			return false;
		if (res > 0)
			l->outbox_done += res;
		keeper_cold_changed(l);
		/* on an error nobody reads any more: recv will tell the same */
		if (res < 0 || l->outbox_done == l->outbox_len)
			keeper_outbox_drop(slot);
	}
	return true;
}

/*
 * A socket that is full.
 */

static void writable_cb(evutil_socket_t sock, short flags, void *arg)
{
	uint32_t slot = (uintptr_t)arg;

	keeper_outbox_forget(&keeper_local[slot]);
	keeper_pend(slot);
}

bool keeper_outbox_wait(uint32_t slot)
{
	struct KeeperLocal *l = &keeper_local[slot];

	if (l->writable)
		return true;
	l->writable = event_new(pgb_event_base, l->fd, EV_WRITE, writable_cb, (void *)(uintptr_t)slot);
	if (l->writable && event_add(l->writable, NULL) == 0)
		return true;
	keeper_outbox_forget(l);
	return false;
}

void keeper_outbox_forget(struct KeeperLocal *l)
{
	if (l->writable)
		event_free(l->writable);
	l->writable = NULL;
}
