/*
 * pgkeeper - adoption: what cannot be true.
 *
 * A check that fits says only that the copy was not scribbled over by chance.
 * These are the rules of PgBouncer's own objects: a copy that breaks one would
 * break somebody else's session, or the process.
 */
#include "bouncer.h"

#include "keeper/internal.h"
#include "keeper/adopt.h"

static bool blob_ok(uint32_t unit, enum KeeperBlobKind kind, size_t *len_p)
{
	*len_p = 0;
	return !unit || keeper_store_read_blob(&keeper_store, unit, kind, len_p);
}

static bool outbox_ok(const struct KeeperCopy *c)
{
	size_t len;

	if (!c->outbox)
		return !c->outbox_done && !c->outbox_len;
	return keeper_store_read_blob(&keeper_store, c->outbox, KEEPER_BLOB_OUTBOX, &len)
	       && c->outbox_done <= c->outbox_len
	       && c->outbox_len <= keeper_blob_capacity(keeper_store_blob(&keeper_store, c->outbox));
}

/* bytes that are to be sent to it, and are not its own */
static bool handed_ok(const struct KeeperCopy *c)
{
	if (!(c->flags & KEEPER_F_HANDED))
		return true;
	return keeper_store.format >= KEEPER_FORMAT_HANDED && c->io && c->io <= keeper_store.header->iobufs
	       && c->io_done < c->io_recv && c->io_parse == c->io_done && c->io_recv <= keeper_store.header->pkt_buf
	       && !(c->flags & KEEPER_F_UNIX);
}

/* slots of these kinds hold nothing but what is named here */
static bool rest_is_zero(const struct KeeperCopy *c)
{
	struct KeeperCopy expected;

	memset(&expected, 0, sizeof(expected));
	expected.epoch = c->epoch;
	expected.kind = c->kind;
	expected.check = c->check;
	if (c->kind == KEEPER_CLOSING) {
		expected.token = c->token;
		expected.rx = c->rx;
		expected.tx = c->tx;
		expected.flags = c->flags & (KEEPER_F_UNIX | KEEPER_F_HANDED);
		if (c->flags & KEEPER_F_HANDED) {
			expected.io = c->io;
			expected.io_done = expected.io_parse = c->io_done;
			expected.io_recv = c->io_recv;
		}
		expected.outbox = c->outbox;
		expected.outbox_done = c->outbox_done;
		expected.outbox_len = c->outbox_len;
	} else {
		expected.record = c->record;
	}
	return memcmp(&expected, c, sizeof(expected)) == 0;
}

static bool stream_ok(const struct KeeperCopy *c)
{
	size_t len;

	if (c->io > keeper_store.header->iobufs || (!c->io && c->io_recv)
	    || c->io_done > c->io_parse || c->io_parse > c->io_recv || c->io_recv > keeper_store.header->pkt_buf)
		return false;
	if (!handed_ok(c))
		return false;
	if (c->pkt_action > KEEPER_ACTION_CALL || (c->pkt_remain && !c->pkt_action) || c->skip_remain > c->pkt_remain)
		return false;
	/* what is fetched is skipped to its end (sbuf_prepare_fetch): it has no dst that the rest could go to */
	if (c->pkt_action == KEEPER_ACTION_CALL && c->skip_remain != c->pkt_remain)
		return false;
	if (c->wait_type != KEEPER_WAIT_NONE && c->wait_type != KEEPER_WAIT_RECV
	    && c->wait_type != KEEPER_WAIT_SEND && c->wait_type != KEEPER_WAIT_ONCE)
		return false;
	return blob_ok(c->extra, KEEPER_BLOB_EXTRA, &len) && c->extra_done <= len;
}

static bool client_ok(const struct KeeperCopy *c)
{
	bool doomed = c->flags & KEEPER_F_DOOMED;

	if (c->requests || c->n_requests)
		return false;
	switch (c->state) {
	case CL_LOGIN:
		return !c->canceled_server;
	case CL_ACTIVE:
		/* who is paused is waiting for the server's parameters to be set */
		return c->pool && !c->canceled_server && (c->link || c->wait_type != KEEPER_WAIT_NONE || doomed);
	case CL_WAITING:
	case CL_WAITING_LOGIN:
		return c->pool && !c->canceled_server && (doomed || (!c->link && c->wait_type == KEEPER_WAIT_NONE));
	case CL_WAITING_CANCEL:
		return c->pool && (doomed || (!c->link && c->wait_type == KEEPER_WAIT_NONE));
	case CL_ACTIVE_CANCEL:
		return c->pool && (c->link || doomed) && c->wait_type == KEEPER_WAIT_NONE;
	default:
		return false;
	}
}

static bool server_ok(const struct KeeperCopy *c)
{
	bool doomed = c->flags & KEEPER_F_DOOMED;
	size_t len;

	if (!c->pool || c->canceled_server || (c->pkt_remain && c->pkt_action == KEEPER_ACTION_CALL)
	    || c->n_requests > sizeof(c->request) || (c->requests && c->n_requests)
	    || !blob_ok(c->requests, KEEPER_BLOB_REQUESTS, &len) || len % sizeof(struct KeeperRequest))
		return false;
	if (doomed)
		return c->state > SV_JUSTFREE && c->state <= SV_TESTED;
	if (c->wait_type == KEEPER_WAIT_NONE || (c->link && c->state != SV_ACTIVE && c->state != SV_ACTIVE_CANCEL)
	    || ((c->flags & KEEPER_F_SETTING_VARS) && !c->link))
		return false;
	switch (c->state) {
	case SV_IDLE:
	case SV_USED:
		/*
		 * Whoever gets it next must not get anything else with it.  It need not be
		 * ready: a server that says why it goes is not, and is given to nobody.
		 */
		return !c->requests && !c->n_requests && !keeper_is_sending(c);
	case SV_BEING_CANCELED:
		return (c->flags & KEEPER_F_READY) && !c->link && !c->requests && !c->n_requests && !keeper_is_sending(c);
	case SV_ACTIVE_CANCEL:
		return c->link && !c->requests && !c->n_requests && !keeper_is_sending(c);
	case SV_ACTIVE:
	case SV_TESTED:
		return true;
	default:
		return false;
	}
}

/* in the middle of handing bytes on to its dst */
bool keeper_is_sending(const struct KeeperCopy *c)
{
	return c->extra || c->io_parse > c->io_done
	       || (c->pkt_remain && c->pkt_action == KEEPER_ACTION_SEND)
	       || (c->pkt_action == KEEPER_ACTION_SKIP && c->pkt_remain > c->skip_remain);
}

bool keeper_plausible(const struct KeeperCopy *c, uint32_t slot)
{
	uint32_t slots = keeper_store.header->slots;
	size_t len;

	if (c->kind == KEEPER_FREE)
		return true;
	if (!outbox_ok(c))
		return false;
	switch (c->kind) {
	case KEEPER_CLIENT:
	case KEEPER_SERVER:
		break;
	case KEEPER_CLOSING:
		return c->token && handed_ok(c) && rest_is_zero(c);
	case KEEPER_POOL:
	case KEEPER_USER:
	case KEEPER_GLOBAL:
		return rest_is_zero(c);
	default:
		return false;
	}
	if (!(c->token & ~KEEPER_SERVER_TOKEN)
	    || (c->kind == KEEPER_SERVER) != ((c->token & KEEPER_SERVER_TOKEN) != 0))
		return false;
	if (c->link > slots || c->dst > slots || c->pool > slots || c->canceled_server > slots || c->link == slot)
		return false;
	if (!stream_ok(c) || !blob_ok(c->doom, KEEPER_BLOB_DOOM, &len) || !blob_ok(c->record, KEEPER_BLOB_RECORD, &len))
		return false;
	return c->kind == KEEPER_CLIENT ? client_ok(c) : server_ok(c);
}
