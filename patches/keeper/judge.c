/*
 * pgkeeper - adoption: what can go on exactly?
 *
 * Reads every slot's true copy, adjusts the one stream that may lie beyond it
 * by the kernel's figures, and finds out who cannot go on, with all who depend
 * on them.  Changes nothing but its own notes.
 */
#include "bouncer.h"

#include "keeper/internal.h"
#include "keeper/adopt.h"

/* the held socket of this name is this slot's */
static void take_fd(struct KeeperAdoptee *a, uint64_t token)
{
	struct KeeperHeld *found = keeper_held_find(token);

	if (!found)
		return;
	a->held = found;
	a->fd = found->fd;
	found->fd = -1;
}

/*
 * Judging: what can go on exactly?
 */

void keeper_lose(uint32_t slot, enum KeeperLost reason)
{
	struct KeeperAdoptee *a = &keeper_adoptee[slot];

	if (a->lost)
		return;
	a->lost = true;
	a->reason = reason;
	log_debug("keeper: slot %u (kind %d, state %d) cannot go on: reason %d", slot, a->copy.kind, a->copy.state, reason);
}

static bool kernel_figures(uint32_t slot, struct KeeperAdoptee *a)
{
	const struct KeeperSlot *shared = &keeper_store.slot[slot];

	if (a->copy.flags & KEEPER_F_UNIX) {
		a->read = shared->unix_rx;
		a->written = shared->unix_tx;
		/* in the middle of the one call that nobody counts */
		return !shared->unix_busy;
	}
	if (!keeper_figures(a->fd, &a->read, &a->written))
		return false;
	a->read -= shared->base_rx;
	a->written -= shared->base_tx;
	return true;
}

/* so many bytes of this source are gone, in the order sbuf.c sends them */
static bool consume(struct KeeperAdoptee *source, uint64_t bytes)
{
	struct KeeperCopy *c = &source->copy;
	uint64_t extra_left = 0, io_left = c->io_parse - c->io_done, part;
	size_t len;
	bool extra_first = !(c->flags & KEEPER_F_QUEUE_AFTER);

	if (!keeper_is_socket(c))
		return false;
	if (c->extra && keeper_store_read_blob(&keeper_store, c->extra, KEEPER_BLOB_EXTRA, &len))
		extra_left = len - c->extra_done;
	if (bytes > extra_left + io_left)
		return false;
	part = extra_first ? extra_left : io_left;
	if (part > bytes)
		part = bytes;
	if (extra_first) {
		c->extra_done += part;
		c->io_done += bytes - part;
	} else {
		c->io_done += part;
		c->extra_done += bytes - part;
	}
	return true;
}

/* where did the recv that lies beyond the commit put its bytes? */
static bool find_read(uint32_t slot, struct KeeperCopy *c, const struct KeeperActRecord *act)
{
	const struct KeeperRead *note = keeper_store_read_note(&keeper_store, slot);

	/* a note is younger than the commit: what that announced has found nothing to read */
	if (!note && act->act == KEEPER_ACT_RECV && act->slot == slot)
		return c->io != 0;
	if (!note || note->rx != c->rx || !note->iobuf || note->iobuf > keeper_store.header->iobufs
	    || note->position > keeper_store.header->pkt_buf)
		return false;
	if (c->io != note->iobuf || c->io_recv != note->position) {
		if (c->io_done != c->io_recv)
			return false;
		c->io = note->iobuf;
		c->io_done = c->io_parse = c->io_recv = note->position;
	}
	/* what was read first is dealt with first: who waits for a server keeps his place */
	c->request_time = get_cached_time() - KEEPER_READS + (note - keeper_store.header->read);
	return true;
}

/* false: bytes were read of which nobody knows where they are */
static bool reconcile_read(uint32_t slot, struct KeeperAdoptee *a, const struct KeeperActRecord *act)
{
	struct KeeperCopy *c = &a->copy;
	uint64_t got = a->read - c->rx;

	if (!got) {
		a->recv_due = (c->flags & KEEPER_F_RECV_DUE) || (act->act == KEEPER_ACT_RECV && act->slot == slot);
		return true;
	}
	if (!find_read(slot, c, act) || got > keeper_store.header->pkt_buf - c->io_recv)
		return false;
	c->io_recv += got;
	c->rx += got;
	c->flags |= KEEPER_F_FLUSH_DUE;
	return true;
}

/* what was handed on leaves first, whichever act was the last; takes it off the bytes that are gone */
static uint64_t sent_of_handed(struct KeeperAdoptee *a, uint64_t *gone)
{
	uint64_t left = a->handed_end - a->handed_done, part = *gone < left ? *gone : left;

	*gone -= part;
	a->handed_done += part;
	/* the IOBuf may be another's already */
	if (a->handed_done == a->handed_end)
		a->handed = 0;
	return part;
}

/* false: bytes were written that nobody had announced */
static bool reconcile_written(uint32_t slot, struct KeeperAdoptee *a, const struct KeeperActRecord *act)
{
	struct KeeperCopy *c = &a->copy;
	uint64_t gone = a->written - c->tx;

	c->tx += sent_of_handed(a, &gone);
	if (!gone)
		return true;
	if (act->slot != slot)
		return false;
	if (act->act == KEEPER_ACT_OUTBOX && gone <= c->outbox_len - c->outbox_done) {
		c->outbox_done += gone;
	} else if (act->act != KEEPER_ACT_SEND || !act->source || act->source > keeper_store.header->slots
		   || !consume(&keeper_adoptee[act->source], gone)) {
		return false;
	}
	c->tx += gone;
	return true;
}

static void reconcile(uint32_t slot, const struct KeeperActRecord *act)
{
	struct KeeperAdoptee *a = &keeper_adoptee[slot];

	if (!kernel_figures(slot, a) || !reconcile_written(slot, a, act)) {
		a->torn = true;
		a->handed = 0;
	}
	if (a->torn || !reconcile_read(slot, a, act))
		keeper_lose(slot, KEEPER_LOST_IN_FLIGHT);
}

void keeper_judge(uint32_t slot, const struct KeeperActRecord *act)
{
	struct KeeperAdoptee *a = &keeper_adoptee[slot];
	struct KeeperCopy *c = &a->copy;

	if (a->damaged)
		return;
	/* its FIN comes only after all this */
	if (c->kind == KEEPER_CLOSING && a->handed) {
		uint64_t gone;

		a->torn = !kernel_figures(slot, a);
		gone = a->torn ? 0 : a->written - c->tx;
		c->tx += sent_of_handed(a, &gone);
		if (a->torn)
			a->handed = 0;
	}
	if (!keeper_is_socket(c))
		return;
	if (c->flags & KEEPER_F_CONSOLE)
		keeper_lose(slot, KEEPER_LOST_CONSOLE);
	else if (c->flags & KEEPER_F_VOLATILE)
		keeper_lose(slot, KEEPER_LOST_IN_FLIGHT);
	else if (c->pool && (keeper_local[c->pool].kind != KEEPER_POOL || !keeper_local[c->pool].object))
		keeper_lose(slot, KEEPER_LOST_CONFIG);
	reconcile(slot, act);
}

/* both sides of a link change in one commit, unless one is doomed */
static bool link_ok(uint32_t slot, const struct KeeperAdoptee *a, const struct KeeperAdoptee *other)
{
	const struct KeeperCopy *client = a->copy.kind == KEEPER_CLIENT ? &a->copy : &other->copy;
	const struct KeeperCopy *server = a->copy.kind == KEEPER_CLIENT ? &other->copy : &a->copy;

	if (client->kind != KEEPER_CLIENT || server->kind != KEEPER_SERVER)
		return false;
	if (other->damaged || ((a->copy.flags | other->copy.flags) & KEEPER_F_DOOMED))
		return true;
	if (other->copy.link != slot || (client->state == CL_ACTIVE_CANCEL) != (server->state == SV_ACTIVE_CANCEL))
		return false;
	/* a login asks in a pool of auth_dbname, and is linked to that until it is released */
	if (client->state == CL_ACTIVE && client->pool != server->pool && !(server->flags & KEEPER_F_RESETTING))
		return false;
	return client->wait_type != KEEPER_WAIT_NONE || client->state != CL_ACTIVE
	       || (server->flags & (KEEPER_F_SETTING_VARS | KEEPER_F_RESETTING));
}

/* who depends on a lost one is lost as well */
void keeper_judge_links(void)
{
	uint32_t slot;
	bool again = true;

	while (again) {
		again = false;
		for (slot = 1; slot <= keeper_store.header->slots; slot++) {
			struct KeeperAdoptee *a = &keeper_adoptee[slot], *other;

			if (!keeper_is_socket(&a->copy) || a->lost)
				continue;
			if (a->copy.link) {
				other = &keeper_adoptee[a->copy.link];
				if (!link_ok(slot, a, other))
					keeper_lose(slot, KEEPER_LOST_DAMAGED);
				else if (other->lost)
					keeper_lose(slot, other->reason);
			} else if (a->copy.kind == KEEPER_SERVER && a->copy.state == SV_ACTIVE
				   && !(a->copy.flags & (KEEPER_F_READY | KEEPER_F_DOOMED))) {
				keeper_lose(slot, KEEPER_LOST_DAMAGED);
			}
			/* in the middle of a message to somebody else */
			if (!a->lost && keeper_is_sending(&a->copy) && (!a->copy.dst || a->copy.dst != a->copy.link))
				keeper_lose(slot, KEEPER_LOST_IN_FLIGHT);
			again |= a->lost;
		}
	}
}


/* does this client's stream stand between two messages, with nothing left to send? */
bool keeper_at_boundary(const struct KeeperAdoptee *a)
{
	const struct KeeperCopy *c = &a->copy, *server;

	if (a->damaged || a->torn || a->handed || c->outbox_len != c->outbox_done)
		return false;
	if (!c->link)
		return true;
	server = &keeper_adoptee[c->link].copy;
	return server->kind == KEEPER_SERVER && !keeper_adoptee[c->link].damaged && !keeper_is_sending(server);
}

void keeper_settle_closing(uint32_t slot, const struct KeeperActRecord *act)
{
	struct KeeperLocal *l = &keeper_local[slot];
	uint64_t gone;

	/* its FIN may confuse the figures, but comes only after the outbox is empty */
	if (act->act != KEEPER_ACT_OUTBOX || act->slot != slot)
		return;
	if (!kernel_figures(slot, &keeper_adoptee[slot])) {
		keeper_outbox_drop(slot);
		return;
	}
	gone = keeper_adoptee[slot].written - l->tx;
	if (gone > l->outbox_len - l->outbox_done)
		gone = l->outbox_len - l->outbox_done;
	l->outbox_done += gone;
	l->tx += gone;
}

/* what is to be sent to it is no IOBuf of its own */
static void take_handed(struct KeeperAdoptee *a)
{
	struct KeeperCopy *c = &a->copy;

	if (!(c->flags & KEEPER_F_HANDED))
		return;
	a->handed = c->io;
	a->handed_done = c->io_done;
	a->handed_end = c->io_recv;
	c->flags &= ~KEEPER_F_HANDED;
	c->io = c->io_done = c->io_parse = c->io_recv = 0;
}

/* what is left of a damaged slot is its socket, if that is really its own */
static void condemn(uint32_t slot)
{
	struct KeeperAdoptee *a = &keeper_adoptee[slot];
	uint64_t token = a->copy.token;

	log_warning("keeper: slot %u of the ledger is damaged", slot);
	memset(&a->copy, 0, sizeof(a->copy));
	keeper_lose(slot, KEEPER_LOST_DAMAGED);
	if (!(token & KEEPER_SERVER_TOKEN) && token > keeper_store.watermark)
		return;
	take_fd(a, token);
	if (a->fd < 0)
		return;
	a->copy.token = token;
	a->copy.kind = token & KEEPER_SERVER_TOKEN ? KEEPER_SERVER : KEEPER_CLIENT;
}

void keeper_read_slots(void)
{
	uint32_t slot;

	keeper_held_sort();
	for (slot = 1; slot <= keeper_store.header->slots; slot++) {
		struct KeeperAdoptee *a = &keeper_adoptee[slot];

		a->fd = -1;
		a->copy = *keeper_store_copy(&keeper_store, slot);
		if (!a->copy.epoch) {
			a->copy.kind = KEEPER_FREE;
		} else if (a->copy.check != keeper_check(&a->copy, slot) || !keeper_plausible(&a->copy, slot)) {
			a->damaged = true;
		} else if (keeper_is_socket(&a->copy) || a->copy.kind == KEEPER_CLOSING) {
			take_fd(a, a->copy.token);
			/* released, but not committed as free */
			if (a->fd < 0)
				a->copy.kind = KEEPER_FREE;
			else
				take_handed(a);
		}
	}
	/* a damaged token may be another's, so these come last */
	for (slot = 1; slot <= keeper_store.header->slots; slot++) {
		if (keeper_adoptee[slot].damaged)
			condemn(slot);
	}
}
