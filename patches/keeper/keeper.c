/*
 * pgkeeper - slots: who is in the ledger, and when its slot must be written.
 */
#include "bouncer.h"

#include "keeper/internal.h"

bool keeper_on;
char *cf_keeper_socket;
/* who has no slot counts as marked */
static uint8_t nobody = KEEPER_MARKED;
struct KeeperStore keeper_store = { .place = &nobody };
struct KeeperLocal *keeper_local;
uint64_t keeper_accept_token;
bool keeper_accept_fresh;

void keeper_local_setup(void)
{
	size_t slots = keeper_store.header->slots + 1;

	if (posix_memalign((void **)&keeper_local, KEEPER_CACHE_LINE, slots * sizeof(*keeper_local)) != 0)
		die("keeper: out of memory");
	memset(keeper_local, 0, slots * sizeof(*keeper_local));
	keeper_flags_setup();
	keeper_acts_setup();
	keeper_loop_setup();
}

static void write_all_anew(bool only_full)
{
	uint32_t slot;

	for (slot = 1; slot <= keeper_store.header->slots; slot++) {
		struct KeeperLocal *l = &keeper_local[slot];

		if (l->kind == KEEPER_FREE || (only_full && !l->full))
			continue;
		l->calm = false;
		l->stale = true;
		keeper_store_mark(&keeper_store, slot);
	}
	keeper_commit(KEEPER_ACT_NONE, 0, 0);
}

/*
 * One commit makes all of it true: every copy and every record; what is kept
 * of these from the last time was written in the former format.  A format that
 * changes other blobs has more to write here.
 */
void keeper_write_in_format(uint32_t format)
{
	struct KeeperActRecord *act = keeper_store.header->act;
	uint32_t slot;

	if (format < KEEPER_FORMAT_HANDED) {
		for (slot = 1; slot <= keeper_store.header->slots; slot++)
			(void)keeper_outbox_take_handed(slot);
	}
	keeper_store.format = format;
	act[(keeper_store.epoch + 1) & 1].format = format;
	write_all_anew(false);
	act[(keeper_store.epoch + 1) & 1].format = format;
	/* a record that found no room beside the former one finds it in that one's place */
	write_all_anew(true);
}

/*
 * Callbacks within callbacks: what comes after the inner one is the outer
 * one's again.
 */

#define MAX_NESTED	16

PgSocket *keeper_handled;
static PgSocket *outer[MAX_NESTED];

/* in the header, where the hanger looks when we have crashed */
static void tell_handled(void)
{
	const PgSocket *sk = keeper_handled;
	uint64_t handled = 0;

	if (sk)
		handled = sk->keeper_slot ? sk->keeper_slot : sk->keeper_unheld | KEEPER_HANDLED_TOKEN;
	if (keeper_store.header)
		keeper_store.header->handled = handled;
}

void keeper_handles(PgSocket *sk)
{
	unsigned depth = keeper_store.handling - 1;

	if (depth > 0 && depth < MAX_NESTED)
		outer[depth] = keeper_handled;
	keeper_handled = sk;
	tell_handled();
}

void keeper_handles_outer(void)
{
	unsigned depth = keeper_store.handling;

	if (depth >= MAX_NESTED || !outer[depth])
		return;
	keeper_handled = outer[depth];
	outer[depth] = NULL;
	tell_handled();
}

void keeper_handles_nobody(void)
{
	keeper_handled = NULL;
	tell_handled();
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

void keeper_drop_slot(uint32_t slot)
{
	struct KeeperLocal *l = &keeper_local[slot];

	keeper_outbox_forget(l);
	keeper_forget(l);
	l->kind = KEEPER_FREE;
	l->object = NULL;
	l->fd = -1;
	l->token = 0;
	keeper_store_mark(&keeper_store, slot);
	keeper_store_free_slot(&keeper_store, slot);
}

static bool bind_socket(PgSocket *sk, enum KeeperKind kind, int fd, bool is_unix, uint64_t token, bool fresh)
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
		if (!fresh && !keeper_figures(fd, &shared->base_rx, &shared->base_tx)) {
			keeper_drop_slot(slot);
			return false;
		}
	}
	sk->keeper_slot = slot;
	sk->keeper_clean = false;
	/* by its number from now on */
	tell_handled();
	return true;
}

static bool bind_client(PgSocket *client, int fd, bool is_unix, uint64_t token, bool fresh)
{
	if (token > keeper_store.watermark)
		keeper_store.watermark = token;
	if (bind_socket(client, KEEPER_CLIENT, fd, is_unix, token, fresh))
		return true;
	client->keeper_unheld = token;
	return false;
}

void keeper_attach_client(PgSocket *client, int fd, bool is_unix)
{
	uint64_t token = keeper_accept_token;
	bool from_hanger = token != 0, fresh = keeper_accept_fresh;

	if (!keeper_on)
		return;
	keeper_accept_token = 0;
	keeper_accept_fresh = false;
	if (!from_hanger)
		token = keeper_store.watermark + 1;
	if (!bind_client(client, fd, is_unix, token, fresh)) {
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
	} else if (bind_socket(server, KEEPER_SERVER, fd, is_unix, token, false)) {
		if (server->sbuf.io && server->sbuf.io->keeper_number)
			keeper_iobuf_owner(server->sbuf.io->keeper_number, server);
		/* if no client waits for it, nothing else commits it */
		keeper_commit_at_loop_end();
		return;
	}
	server->keeper_unheld = token;
	keeper_hanger_unheld(token, reason, true);
}

void keeper_cancel_begins(PgSocket *server, PgSocket *request)
{
	if (!keeper_on)
		return;
	keeper_attach_server(server);
	/* if the request is not held, its target says so from now on */
	keeper_mark(request->canceled_server);
	if (server->keeper_slot)
		return;
	/* its bytes leave at once, not with the state after them: better lost than sent twice */
	keeper_doom(request, false, NULL, "cancel request was being forwarded");
	keeper_commit(KEEPER_ACT_NONE, 0, 0);
}

void keeper_say_now(PgSocket *sk)
{
	if (sk->keeper_slot)
		(void)keeper_outbox_flush(sk->keeper_slot);
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
	if (!is_server_socket(sk))
		keeper_unfold(sk);
	keeper_hanger_unheld(keeper_local[slot].token, KEEPER_UNHELD_TLS, is_server_socket(sk));
	sk->keeper_unheld = keeper_local[slot].token;
	sk->keeper_slot = 0;
	sk->keeper_clean = false;
	tell_handled();
	keeper_drop_slot(slot);
	return true;
}

void keeper_socket_freed(PgSocket *sk)
{
	if (sk->keeper_unheld) {
		/* not held: only the hanger's count of such sessions goes down */
		keeper_hanger_release(&sk->keeper_unheld, 1, true);
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
	l->calm = false;
	keeper_mark(sk);
}

static inline void mark(PgSocket *sk)
{
	uint32_t slot = sk->keeper_slot;

	/* by its number already, or while it is being committed */
	if (keeper_store.place[slot] & KEEPER_MARKED)
		return;
	sk->keeper_clean = false;
	keeper_store_mark(&keeper_store, slot);
	keeper_prefetch(slot);
}

void keeper_mark_clean(PgSocket *sk)
{
	PgSocket *link = sk->link;

	mark(sk);
	if (link && link->keeper_clean)
		mark(link);
}

void keeper_unsettle(PgSocket *sk)
{
	keeper_local[sk->keeper_slot].calm = false;
}
