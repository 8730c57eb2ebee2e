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
#include "scram.h"

#include <usual/safeio.h>
#include <usual/slab.h>
#include <usual/time.h>

#include "keeper/internal.h"

/* sbuf.c's WaitType and pkt_action, which the ledger keeps as numbers */
enum { WAIT_NONE = 0 };
enum { ACTION_SEND = 1 };

extern uint8_t mock_auth_nonce[32];
extern bool mock_auth_nonce_initialized;

struct Adoptee {
	struct KeeperCopy copy;		/* ours to adjust by the kernel's figures */
	int fd;
	bool lost;			/* cannot go on */
	enum KeeperLost reason;
	uint64_t read, written;		/* kernel's figures, from registration on */
	uint32_t extra_done;
	uint32_t iobuf;			/* kept, but nobody's yet */
	PgSocket *sk;
};

static struct Adoptee *adoptee;		/* by slot */
static unsigned n_slots;

/*
 * Held sockets by token.
 */

static int by_token(const void *a, const void *b)
{
	const struct KeeperHeld *l = a, *r = b;

	return l->token < r->token ? -1 : l->token > r->token;
}

static int take_fd(struct KeeperHeld *held, unsigned n_held, uint64_t token)
{
	struct KeeperHeld key = { token, -1, false };
	struct KeeperHeld *found = bsearch(&key, held, n_held, sizeof(key), by_token);
	int fd;

	if (!found)
		return -1;
	fd = found->fd;
	found->fd = -1;
	return fd;
}

/*
 * Reading records.  Each returns false where the record is damaged or speaks
 * of something the configuration no longer has.
 */

static bool open_record(const struct KeeperCopy *copy, struct KeeperUnpack *unpack)
{
	unpack->failed = false;
	unpack->data = keeper_store_read_blob(&keeper_store, copy->record, KEEPER_BLOB_RECORD, &unpack->len);
	return unpack->data != NULL;
}

static PgCredentials *find_credentials(enum KeeperCredentials kind, const char *name, PgDatabase *db)
{
	struct AANode *node;

	switch (kind) {
	case KEEPER_CRED_GLOBAL:
		return find_global_credentials(name);
	case KEEPER_CRED_FORCED:
		return db ? db->forced_user_credentials : NULL;
	case KEEPER_CRED_DYNAMIC:
		if (!db)
			return NULL;
		node = aatree_search(&db->user_tree, (uintptr_t)name);
		return node ? container_of(node, PgCredentials, tree_node) : NULL;
	case KEEPER_CRED_PAM:
		return add_pam_credentials(name, NULL);
	case KEEPER_CRED_NONE:
	case KEEPER_CRED_MOCK:
		break;
	}
	return NULL;
}

static bool read_global(const struct KeeperCopy *copy)
{
	struct KeeperUnpack unpack;
	struct KeeperGlobalRecord record;

	if (!open_record(copy, &unpack))
		return false;
	keeper_unpack(&unpack, &record, sizeof(record));
	if (unpack.failed)
		return false;
	if (record.mock_nonce_set) {
		memcpy(mock_auth_nonce, record.mock_nonce, sizeof(record.mock_nonce));
		mock_auth_nonce_initialized = true;
	}
	if (record.pause_mode == P_PAUSE)
		cf_pause_mode = P_PAUSE;
	return true;
}

/* tracked parameters were recorded by position: their names at that time */
static char recorded_var[UINT8_MAX][128];
static unsigned n_recorded_vars;

static void read_var_names(const struct KeeperCopy *copy)
{
	struct KeeperUnpack unpack;
	struct KeeperGlobalRecord record;

	n_recorded_vars = 0;
	if (!open_record(copy, &unpack))
		return;
	keeper_unpack(&unpack, &record, sizeof(record));
	while (n_recorded_vars < record.n_vars && !unpack.failed) {
		keeper_unpack_string(&unpack, recorded_var[n_recorded_vars], sizeof(recorded_var[0]));
		n_recorded_vars++;
	}
	if (unpack.failed)
		n_recorded_vars = 0;
}

/* false: damaged; cache may be NULL, only to check */
static bool read_vars(struct KeeperUnpack *unpack, unsigned n, VarCache *cache)
{
	unsigned i;

	if (n > n_recorded_vars)
		return false;
	for (i = 0; i < n; i++) {
		char *value = keeper_unpack_strdup(unpack);

		if (value && cache)
			varcache_set(cache, recorded_var[i], value);
		free(value);
	}
	return !unpack->failed;
}

static PgCredentials *read_user(const struct KeeperCopy *copy, PgDatabase **db_p)
{
	struct KeeperUnpack unpack;
	struct KeeperUserRecord record;
	char name[MAX_USERNAME], db_name[MAX_DBNAME], passwd[MAX_PASSWORD];
	PgCredentials *credentials;
	bool has_passwd;

	if (!open_record(copy, &unpack))
		return NULL;
	keeper_unpack(&unpack, &record, sizeof(record));
	keeper_unpack_string(&unpack, name, sizeof(name));
	*db_p = keeper_unpack_string(&unpack, db_name, sizeof(db_name)) ? find_or_register_database(NULL, db_name) : NULL;
	has_passwd = keeper_unpack_string(&unpack, passwd, sizeof(passwd));
	if (unpack.failed)
		return NULL;
	if (record.cred_kind == KEEPER_CRED_DYNAMIC && *db_p && has_passwd)
		credentials = add_dynamic_credentials(*db_p, name, passwd);
	else if (record.cred_kind == KEEPER_CRED_PAM)
		credentials = add_pam_credentials(name, has_passwd ? passwd : NULL);
	else
		credentials = find_credentials(record.cred_kind, name, *db_p);
	memset(passwd, 0, sizeof(passwd));
	if (!credentials)
		return NULL;
	if (record.has_scram_keys) {
		memcpy(credentials->scram_ClientKey, record.client_key, sizeof(record.client_key));
		memcpy(credentials->scram_ServerKey, record.server_key, sizeof(record.server_key));
		credentials->has_scram_keys = true;
	}
	return credentials;
}

static PgPool *read_pool(const struct KeeperCopy *copy, bool *changed_p)
{
	struct KeeperUnpack unpack;
	struct KeeperPoolRecord record;
	char db_name[MAX_DBNAME], user[MAX_USERNAME], user_db[MAX_DBNAME], fingerprint[4096];
	char *recorded;
	const uint8_t *welcome;
	size_t len;
	PgDatabase *db;
	PgPool *pool;

	if (!open_record(copy, &unpack))
		return NULL;
	keeper_unpack(&unpack, &record, sizeof(record));
	keeper_unpack_string(&unpack, db_name, sizeof(db_name));
	keeper_unpack_string(&unpack, user, sizeof(user));
	keeper_unpack_string(&unpack, user_db, sizeof(user_db));
	if (unpack.failed)
		return NULL;
	if (record.peer_id)
		return get_peer_pool(find_peer(record.peer_id));
	db = find_or_register_database(NULL, db_name);
	if (!db)
		return NULL;
	pool = get_pool(db, find_credentials(record.cred_kind, user, db));
	if (!pool)
		return NULL;

	recorded = keeper_unpack_strdup(&unpack);
	*changed_p = !recorded || strcmp(recorded, keeper_fingerprint(db, fingerprint, sizeof(fingerprint))) != 0;
	free(recorded);
	if (!read_vars(&unpack, record.n_vars, &pool->orig_vars))
		return NULL;
	welcome = keeper_unpack_bytes(&unpack, &len);
	if (record.welcome_ready && welcome && !pool->welcome_msg) {
		pool->welcome_msg = pktbuf_dynamic(len + 1);
		if (!pool->welcome_msg)
			return NULL;
		pktbuf_put_bytes(pool->welcome_msg, welcome, len);
		pool->welcome_msg_ready = true;
	}
	db->db_paused |= record.db_paused;
	db->db_disabled |= record.db_disabled;
	pool->last_lifetime_disconnect = record.last_lifetime_disconnect;
	memcpy(&pool->stats, record.stats, sizeof(pool->stats));
	pool->newer_stats = pool->older_stats = pool->stats;
	return pool;
}

/*
 * Judging: what can go on exactly?
 */

static void lose(uint32_t slot, enum KeeperLost reason)
{
	struct Adoptee *a = &adoptee[slot];

	if (a->lost)
		return;
	a->lost = true;
	a->reason = reason;
	log_debug("keeper: slot %u (kind %d, state %d) cannot go on: reason %d", slot, a->copy.kind, a->copy.state, reason);
}

static bool is_socket(const struct KeeperCopy *copy)
{
	return copy->kind == KEEPER_CLIENT || copy->kind == KEEPER_SERVER;
}

static bool blob_ok(uint32_t unit, enum KeeperBlobKind kind, size_t *len_p)
{
	*len_p = 0;
	return !unit || keeper_store_read_blob(&keeper_store, unit, kind, len_p);
}

/* do the copy's own numbers make sense? */
static bool plausible(const struct KeeperCopy *c, uint32_t slot)
{
	uint32_t pkt_buf = keeper_store.header->pkt_buf;
	size_t len;
	bool state_ok = c->kind == KEEPER_CLIENT ? c->state > CL_JUSTFREE && c->state < SV_FREE
			: c->state > SV_JUSTFREE && c->state <= SV_TESTED;

	if (is_socket(c) && !state_ok)
		return false;
	if (c->io > keeper_store.header->iobufs || c->io_done > c->io_parse || c->io_parse > c->io_recv
	    || c->io_recv > pkt_buf)
		return false;
	if (c->link > n_slots || c->dst > n_slots || c->pool > n_slots || c->canceled_server > n_slots || c->link == slot)
		return false;
	if (c->n_requests > sizeof(c->request))
		return false;
	if (c->outbox) {
		if (!keeper_store_read_blob(&keeper_store, c->outbox, KEEPER_BLOB_OUTBOX, &len)
		    || c->outbox_done > c->outbox_len
		    || c->outbox_len > keeper_blob_capacity(keeper_store_blob(&keeper_store, c->outbox)))
			return false;
	}
	return blob_ok(c->extra, KEEPER_BLOB_EXTRA, &len) && blob_ok(c->requests, KEEPER_BLOB_REQUESTS, &len)
	       && blob_ok(c->doom, KEEPER_BLOB_DOOM, &len) && (!is_socket(c) || blob_ok(c->record, KEEPER_BLOB_RECORD, &len));
}

static bool kernel_figures(uint32_t slot, struct Adoptee *a)
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
static bool consume(struct Adoptee *source, uint64_t bytes)
{
	struct KeeperCopy *c = &source->copy;
	uint64_t extra_left = 0, io_left = c->io_parse - c->io_done, part;
	size_t len;
	bool extra_first = !(c->flags & KEEPER_F_QUEUE_AFTER);

	if (c->extra && keeper_store_read_blob(&keeper_store, c->extra, KEEPER_BLOB_EXTRA, &len))
		extra_left = len;
	if (bytes > extra_left + io_left)
		return false;
	part = extra_first ? extra_left : io_left;
	if (part > bytes)
		part = bytes;
	if (extra_first) {
		source->extra_done = part;
		c->io_done += bytes - part;
	} else {
		c->io_done += part;
		source->extra_done = bytes - part;
	}
	return true;
}

static void reconcile(uint32_t slot, const struct KeeperActRecord *act)
{
	struct Adoptee *a = &adoptee[slot];
	struct KeeperCopy *c = &a->copy;
	uint64_t got, gone;

	if (!kernel_figures(slot, a)) {
		lose(slot, KEEPER_LOST_IN_FLIGHT);
		return;
	}
	got = a->read - c->rx;
	gone = a->written - c->tx;
	if (got) {
		if (act->act != KEEPER_ACT_RECV || act->slot != slot || !c->io
		    || got > keeper_store.header->pkt_buf - c->io_recv) {
			lose(slot, KEEPER_LOST_IN_FLIGHT);
			return;
		}
		c->io_recv += got;
		c->rx += got;
		c->flags |= KEEPER_F_FLUSH_DUE;
	}
	if (gone) {
		bool ok = false;

		if (act->slot == slot && act->act == KEEPER_ACT_OUTBOX)
			ok = gone <= c->outbox_len - c->outbox_done;
		else if (act->slot == slot && act->act == KEEPER_ACT_SEND && act->source && act->source <= n_slots)
			ok = consume(&adoptee[act->source], gone);
		if (!ok) {
			lose(slot, KEEPER_LOST_IN_FLIGHT);
			return;
		}
		if (act->act == KEEPER_ACT_OUTBOX)
			c->outbox_done += gone;
		c->tx += gone;
	}
}

static void judge(uint32_t slot, const struct KeeperActRecord *act)
{
	struct Adoptee *a = &adoptee[slot];
	struct KeeperCopy *c = &a->copy;

	if (!is_socket(c))
		return;
	if (c->flags & KEEPER_F_CONSOLE)
		lose(slot, KEEPER_LOST_CONSOLE);
	else if (c->flags & KEEPER_F_VOLATILE)
		lose(slot, KEEPER_LOST_IN_FLIGHT);
	else if (c->pool && !keeper_local[c->pool].object)
		lose(slot, KEEPER_LOST_CONFIG);
	else if (c->kind == KEEPER_SERVER && !c->pool)
		lose(slot, KEEPER_LOST_DAMAGED);
	else if (c->kind == KEEPER_SERVER && c->state == SV_BEING_CANCELED)
		/* a cancel is on its way that nobody watches any more */
		lose(slot, KEEPER_LOST_IN_FLIGHT);
	reconcile(slot, act);
}

/* who depends on a lost one is lost as well */
static void judge_links(void)
{
	uint32_t slot;
	bool again = true;

	while (again) {
		again = false;
		for (slot = 1; slot <= n_slots; slot++) {
			struct Adoptee *a = &adoptee[slot], *other;

			if (!is_socket(&a->copy) || a->lost)
				continue;
			if (a->copy.link) {
				other = &adoptee[a->copy.link];
				if (!is_socket(&other->copy) || other->copy.kind == a->copy.kind
				    || (other->copy.link != slot && !((a->copy.flags | other->copy.flags) & KEEPER_F_DOOMED)))
					lose(slot, KEEPER_LOST_DAMAGED);
				else if (other->lost)
					lose(slot, other->reason);
			} else if (a->copy.kind == KEEPER_SERVER && a->copy.state == SV_ACTIVE
				   && !(a->copy.flags & (KEEPER_F_READY | KEEPER_F_DOOMED))) {
				lose(slot, KEEPER_LOST_DAMAGED);
			}
			if (!a->lost && a->copy.dst && (a->copy.pkt_remain || a->copy.io_parse > a->copy.io_done)
			    && a->copy.pkt_action == ACTION_SEND) {
				/* in the middle of a message to somebody else */
				other = &adoptee[a->copy.dst];
				if (a->copy.dst != a->copy.link || other->lost)
					lose(slot, KEEPER_LOST_IN_FLIGHT);
			}
			again |= a->lost;
		}
	}
}

/*
 * Rebuilding.
 */

static void rebuild_requests(PgSocket *server, const struct KeeperCopy *c)
{
	const struct KeeperRequest *entry = NULL;
	size_t len = 0, n, i;

	if (c->requests)
		entry = (const struct KeeperRequest *)
			keeper_store_read_blob(&keeper_store, c->requests, KEEPER_BLOB_REQUESTS, &len);
	n = entry ? len / sizeof(*entry) : c->n_requests;
	for (i = 0; i < n; i++) {
		OutstandingRequest *request = slab_alloc(outstanding_request_cache);

		if (!request)
			die("keeper: out of memory");
		if (entry) {
			request->type = entry[i].type;
			request->action = entry[i].action;
			if (entry[i].closing)
				request->server_ps = keeper_closing_statement(entry[i].statement);
			else
				request->server_ps_query_id = entry[i].query_id;
		} else {
			request->type = (c->request[i] & 0x3f) + 0x40;
			request->action = c->request[i] >> 6;
		}
		statlist_append(&server->outstanding_requests, &request->node);
	}
}

static bool rebuild_scram(struct ScramState *scram, uint32_t unit)
{
	struct KeeperUnpack unpack = { NULL, 0, false };

	if (!unit)
		return true;
	unpack.data = keeper_store_read_blob(&keeper_store, unit, KEEPER_BLOB_SCRAM, &unpack.len);
	if (!unpack.data || !keeper_store_keep_blob(&keeper_store, unit))
		return false;
	scram->client_nonce = keeper_unpack_strdup(&unpack);
	scram->client_first_message_bare = keeper_unpack_strdup(&unpack);
	scram->client_final_message_without_proof = keeper_unpack_strdup(&unpack);
	scram->server_nonce = keeper_unpack_strdup(&unpack);
	scram->server_first_message = keeper_unpack_strdup(&unpack);
	scram->salt = keeper_unpack_strdup(&unpack);
	keeper_unpack(&unpack, &scram->cbind_flag, sizeof(scram->cbind_flag));
	keeper_unpack(&unpack, &scram->adhoc, sizeof(scram->adhoc));
	keeper_unpack(&unpack, &scram->iterations, sizeof(scram->iterations));
	keeper_unpack(&unpack, scram->ClientKey, sizeof(scram->ClientKey));
	keeper_unpack(&unpack, scram->StoredKey, sizeof(scram->StoredKey));
	keeper_unpack(&unpack, scram->ServerKey, sizeof(scram->ServerKey));
	return !unpack.failed;
}

static bool rebuild_packet(PgSocket *sk, const struct KeeperSocketRecord *record)
{
	struct KeeperUnpack unpack = { NULL, 0, false };
	PktHdr *pkt = &sk->packet_cb_state.pkt;
	uint32_t head[2];

	sk->packet_cb_state.flag = record->packet_flag;
	if (!record->packet)
		return true;
	unpack.data = keeper_store_read_blob(&keeper_store, record->packet, KEEPER_BLOB_PACKET, &unpack.len);
	if (!unpack.data || !keeper_store_keep_blob(&keeper_store, record->packet))
		return false;
	keeper_unpack(&unpack, head, sizeof(head));
	pkt->type = head[0];
	pkt->len = head[1];
	mbuf_init_dynamic(&pkt->data);
	return !unpack.failed && unpack.len <= pkt->len && mbuf_make_room(&pkt->data, pkt->len)
	       && mbuf_write(&pkt->data, unpack.data, unpack.len);
}

static void rebuild_flags(PgSocket *sk, uint32_t flags)
{
	sk->ready = flags & KEEPER_F_READY ? 1 : 0;
	sk->idle_tx = flags & KEEPER_F_IDLE_TX ? 1 : 0;
	sk->close_needed = flags & KEEPER_F_CLOSE_NEEDED ? 1 : 0;
	sk->setting_vars = flags & KEEPER_F_SETTING_VARS ? 1 : 0;
	sk->resetting = flags & KEEPER_F_RESETTING ? 1 : 0;
	sk->copy_mode = flags & KEEPER_F_COPY_MODE ? 1 : 0;
	sk->query_failed = flags & KEEPER_F_QUERY_FAILED ? 1 : 0;
	sk->wait_for_welcome = flags & KEEPER_F_WAIT_FOR_WELCOME ? 1 : 0;
	sk->wait_for_user_conn = flags & KEEPER_F_WAIT_FOR_USER_CONN ? 1 : 0;
	sk->wait_for_user = flags & KEEPER_F_WAIT_FOR_USER ? 1 : 0;
	/* wait_for_auth is never restored: it would skip the password check */
	sk->sbuf.extra_packet_queue_after = flags & KEEPER_F_QUEUE_AFTER ? 1 : 0;
}

static void rebuild_counts(PgSocket *sk, uint32_t flags)
{
	if (is_server_socket(sk)) {
		sk->pool->db->connection_count++;
		if (sk->pool->user_credentials)
			sk->pool->user_credentials->global_user->connection_count++;
		return;
	}
	if ((flags & KEEPER_F_DB_COUNTED) && sk->db) {
		sk->db->client_connection_count++;
		sk->contributes_db_client_count = true;
	}
	if ((flags & KEEPER_F_USER_COUNTED) && sk->login_user_credentials) {
		sk->login_user_credentials->global_user->client_connection_count++;
		sk->user_connection_counted = true;
	}
}

/* a PgSocket in no list yet; NULL: lost, with the reason set */
static PgSocket *rebuild(uint32_t slot)
{
	struct Adoptee *a = &adoptee[slot];
	const struct KeeperCopy *c = &a->copy;
	bool is_server = c->kind == KEEPER_SERVER, is_unix = c->flags & KEEPER_F_UNIX;
	struct KeeperLocal *l = &keeper_local[slot];
	struct KeeperSocketRecord record;
	struct KeeperUnpack unpack;
	char name[MAX_USERNAME], credentials_db[MAX_DBNAME], db_name[MAX_DBNAME];
	PgCredentials *credentials = NULL;
	PgDatabase *db = NULL;
	bool has_db;
	PgSocket *sk;

	if (!open_record(c, &unpack))
		return lose(slot, KEEPER_LOST_DAMAGED), NULL;
	keeper_unpack(&unpack, &record, sizeof(record));
	keeper_unpack_string(&unpack, name, sizeof(name));
	if (keeper_unpack_string(&unpack, credentials_db, sizeof(credentials_db)))
		db = find_or_register_database(NULL, credentials_db);
	has_db = keeper_unpack_string(&unpack, db_name, sizeof(db_name));
	if (unpack.failed)
		return lose(slot, KEEPER_LOST_DAMAGED), NULL;
	if (record.cred_kind != KEEPER_CRED_NONE) {
		credentials = find_credentials(record.cred_kind, name, db);
		if (!credentials)
			return lose(slot, KEEPER_LOST_CONFIG), NULL;
	}
	if (!is_server && has_db) {
		db = find_or_register_database(NULL, db_name);
		if (!db)
			return lose(slot, KEEPER_LOST_CONFIG), NULL;
	} else if (!is_server) {
		/* a login that has not named a database yet, or one that does not exist */
		db = NULL;
		if (credentials || (c->state != CL_LOGIN && c->state != CL_WAITING_CANCEL))
			return lose(slot, KEEPER_LOST_CONFIG), NULL;
	}

	sk = slab_alloc(is_server ? server_cache : client_cache);
	if (!sk)
		return lose(slot, KEEPER_LOST_RESOURCES), NULL;
	sk->keeper_slot = slot;
	sk->id = record.id;
	sk->pool = c->pool ? keeper_local[c->pool].object : NULL;
	if (is_server) {
		statlist_init(&sk->canceling_clients, "canceling_clients");
	} else {
		sk->db = db;
	}
	sk->login_user_credentials = credentials;
	sk->client_auth_type = record.auth_type;
	sk->replication = record.replication;
	sk->connect_time = record.connect_time;
	sk->request_time = c->request_time;
	sk->query_start = c->query_start;
	sk->xact_start = c->xact_start;
	memcpy(sk->cancel_key, record.cancel_key, sizeof(sk->cancel_key));
	sk->startup_options = keeper_unpack_strdup(&unpack);
	rebuild_flags(sk, c->flags);
	sk->admin_user = c->flags & KEEPER_F_ADMIN_USER ? 1 : 0;
	sk->own_user = c->flags & KEEPER_F_OWN_USER ? 1 : 0;

	sk->sbuf.sock = a->fd;
	sk->sbuf.pkt_action = c->pkt_action;
	sk->sbuf.pkt_remain = c->pkt_remain;
	sk->sbuf.skip_remain = c->skip_remain;
	if (!tune_socket(a->fd, is_unix))
		log_warning("keeper: tune_socket failed for an adopted socket");
	if (is_server && is_unix)
		pga_set(&sk->remote_addr, AF_UNIX, sk->pool->db->port);
	else
		fill_remote_addr(sk, a->fd, is_unix);
	fill_local_addr(sk, a->fd, is_unix);

	if (a->iobuf && c->io_recv > c->io_done) {
		IOBuf *io = keeper_store_iobuf(&keeper_store, a->iobuf);

		io->done_pos = c->io_done;
		io->parse_pos = c->io_parse;
		io->recv_pos = c->io_recv;
		sk->sbuf.io = io;
		keeper_iobuf_owner(a->iobuf, sk);
		a->iobuf = 0;
	}
	if (c->extra) {
		size_t len;
		const uint8_t *extra = keeper_store_read_blob(&keeper_store, c->extra, KEEPER_BLOB_EXTRA, &len);

		if (!mbuf_write(&sk->sbuf.extra_packets, extra + a->extra_done, len - a->extra_done))
			lose(slot, KEEPER_LOST_RESOURCES);
	}
	if (!read_vars(&unpack, record.n_vars, &sk->vars)
	    || !keeper_catalog_read(sk, record.catalog, record.catalog_used)
	    || !rebuild_scram(&sk->scram_state, record.scram) || !rebuild_packet(sk, &record))
		lose(slot, KEEPER_LOST_DAMAGED);
	if (is_server)
		rebuild_requests(sk, c);
	if (record.id > last_pgsocket_id)
		last_pgsocket_id = record.id;

	l->object = sk;
	l->flush_due = c->flags & KEEPER_F_FLUSH_DUE;
	l->catalog.blob = record.catalog;
	l->catalog.used = record.catalog_used;
	l->scram = record.scram;
	l->packet = record.packet;
	l->packet_flag = record.packet_flag;
	l->packet_written = mbuf_written(&sk->packet_cb_state.pkt.data);
	return sk;
}

/* a blob that the true copy names: ours until the next commit has replaced it */
static uint32_t keep(uint32_t slot, uint32_t unit)
{
	if (!unit)
		return 0;
	if (unit <= keeper_store.header->units && keeper_store_keep_blob(&keeper_store, unit))
		return unit;
	lose(slot, KEEPER_LOST_DAMAGED);
	return 0;
}

static void adopt_local(uint32_t slot)
{
	struct Adoptee *a = &adoptee[slot];
	const struct KeeperCopy *c = &a->copy;
	struct KeeperLocal *l = &keeper_local[slot];

	memset(l, 0, sizeof(*l));
	l->kind = c->kind;
	l->fd = a->fd;
	l->token = c->token;
	l->rx = c->rx;
	l->tx = c->tx;
	l->is_unix = c->flags & KEEPER_F_UNIX;
	l->stale = true;
	if (a->lost && a->reason == KEEPER_LOST_DAMAGED)
		return;
	l->record = keep(slot, c->record);
	l->requests = keep(slot, c->requests);
	l->extra = keep(slot, c->extra);
	l->doom = keep(slot, c->doom);
	l->outbox = keep(slot, c->outbox);
	if (l->outbox) {
		l->outbox_done = c->outbox_done;
		l->outbox_len = c->outbox_len;
	}
	if (c->io) {
		if (keeper_store_keep_iobuf(&keeper_store, c->io))
			a->iobuf = c->io;
		else
			lose(slot, KEEPER_LOST_DAMAGED);
	}
}

/* take apart what was rebuilt in vain */
static void discard(PgSocket *sk)
{
	sk->keeper_slot = 0;
	sk->sbuf.sock = 0;
	sk->sbuf.io = NULL;
	mbuf_free(&sk->sbuf.extra_packets);
	free_header(&sk->packet_cb_state.pkt);
	free_scram_state(&sk->scram_state);
	free(sk->startup_options);
	if (is_server_socket(sk))
		change_server_state(sk, SV_FREE);
	else
		change_client_state(sk, CL_FREE);
}

/*
 * Ends.
 */

/* does this client's stream stand between two messages, with nothing left to send? */
static bool at_boundary(const struct Adoptee *a)
{
	const struct KeeperCopy *c = &a->copy, *server;

	if (a->written != c->tx || c->outbox_len != c->outbox_done)
		return false;
	if (!c->link)
		return true;
	server = &adoptee[c->link].copy;
	return server->kind == KEEPER_SERVER && !server->extra && server->io_done == server->io_parse
	       && (!server->pkt_remain || server->pkt_action != ACTION_SEND);
}

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

/* turn a slot that cannot go on into one that is being closed */
static void end_lost(uint32_t slot, struct KeeperReady *ready)
{
	struct Adoptee *a = &adoptee[slot];
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
	keeper_store_mark(&keeper_store, slot);
	keeper_pend(slot);
	if (is_client && !cancel) {
		ready->lost[a->reason]++;
		log_warning("keeper: a client session could not go on: %s", lost_message(a->reason));
	}
	if (is_client && !cancel && at_boundary(a)) {
		pktbuf_static(&pkt, data, sizeof(data));
		pktbuf_write_generic(&pkt, PqMsg_ErrorResponse, "cscscscsc",
				     'S', "FATAL", 'V', "FATAL", 'C', "57P01", 'M', lost_message(a->reason), 0);
		keeper_outbox_append(slot, pkt.buf, pkt.write_pos);
	}
}

static void finish_doomed(uint32_t slot, PgSocket *sk)
{
	struct KeeperUnpack unpack = { NULL, 0, false };
	const struct KeeperCopy *c = &adoptee[slot].copy;
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

static int by_age(const void *a, const void *b)
{
	const PgSocket *l = *(PgSocket *const *)a, *r = *(PgSocket *const *)b;
	const struct KeeperCopy *lc = &adoptee[l->keeper_slot].copy, *rc = &adoptee[r->keeper_slot].copy;
	uint64_t lt = is_server_socket(l) || !lc->wait_start ? lc->request_time : lc->wait_start;
	uint64_t rt = is_server_socket(r) || !rc->wait_start ? rc->request_time : rc->wait_start;

	if (lt != rt)
		return lt < rt ? -1 : 1;
	return lc->token < rc->token ? -1 : lc->token > rc->token;
}

/* put the sockets into PgBouncer's lists, oldest first, and link them */
static void enlist(PgSocket **list, unsigned n, uint64_t down_us)
{
	unsigned i;

	qsort(list, n, sizeof(*list), by_age);
	for (i = 0; i < n; i++) {
		PgSocket *sk = list[i];
		const struct KeeperCopy *c = &adoptee[sk->keeper_slot].copy;

		if (is_server_socket(sk)) {
			change_server_state(sk, c->state);
		} else {
			change_client_state(sk, c->state);
			/* time in which nobody served does not count against those who waited */
			sk->wait_start = c->wait_start ? c->wait_start + down_us : 0;
			if (sk->state == CL_LOGIN || sk->state == CL_WAITING_LOGIN)
				sk->connect_time += down_us;
			if (sk->state == CL_WAITING_CANCEL)
				sk->request_time += down_us;
		}
		rebuild_counts(sk, c->flags);
	}
	for (i = 0; i < n; i++) {
		PgSocket *sk = list[i];
		const struct KeeperCopy *c = &adoptee[sk->keeper_slot].copy;
		PgSocket *dst = c->dst ? adoptee[c->dst].sk : NULL;

		sk->link = c->link ? adoptee[c->link].sk : NULL;
		sk->sbuf.dst = dst ? &dst->sbuf : NULL;
		if (c->canceled_server && adoptee[c->canceled_server].sk) {
			sk->canceled_server = adoptee[c->canceled_server].sk;
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
	const struct KeeperCopy *c = &adoptee[slot].copy;
	SBuf *sbuf = &sk->sbuf;
	bool bytes = !iobuf_empty(sbuf->io) || mbuf_avail_for_read(&sbuf->extra_packets) > 0;

	if (c->wait_type == WAIT_NONE)
		return;
	if (bytes || keeper_local[slot].flush_due)
		sbuf_adopt_resume(sbuf);
}

/* a PAM check dies with the process: read the password packet again */
static bool must_ask_again(const PgSocket *sk, const struct KeeperCopy *c)
{
	return c->kind == KEEPER_CLIENT && c->state == CL_LOGIN && c->wait_type == WAIT_NONE
	       && sk->client_auth_type == AUTH_TYPE_PAM && !sk->link;
}

static void go_on(PgSocket **list, unsigned n)
{
	uint32_t *slot = calloc(n + 1, sizeof(*slot));
	unsigned i;
	int servers;

	if (!slot)
		die("keeper: out of memory");
	for (i = 0; i < n; i++) {
		struct KeeperCopy *c = &adoptee[list[i]->keeper_slot].copy;

		slot[i] = list[i]->keeper_slot;
		if (must_ask_again(list[i], c))
			c->wait_type = !WAIT_NONE;
		/* all wait as they did before the first of them acts */
		if (c->wait_type != WAIT_NONE && !sbuf_adopt_wait(&list[i]->sbuf))
			die("keeper: cannot wait for an adopted socket: %s", strerror(errno));
		if (c->outbox && c->outbox_done < c->outbox_len)
			keeper_pend(slot[i]);
	}
	for (i = 0; i < n; i++) {
		if (still(list[i], slot[i]) && (adoptee[slot[i]].copy.flags & KEEPER_F_DOOMED))
			finish_doomed(slot[i], list[i]);
	}
	for (servers = 1; servers >= 0; servers--) {
		for (i = 0; i < n; i++) {
			if (still(list[i], slot[i]) && is_server_socket(list[i]) == servers)
				wake(slot[i], list[i]);
		}
	}
	free(slot);
}

/* how much of its last words is out already */
static void settle_closing(uint32_t slot, const struct KeeperActRecord *act)
{
	struct KeeperLocal *l = &keeper_local[slot];
	uint64_t gone;

	/* its FIN may confuse the figures, but comes only after the outbox is empty */
	if (act->act != KEEPER_ACT_OUTBOX || act->slot != slot || !kernel_figures(slot, &adoptee[slot]))
		return;
	gone = adoptee[slot].written - l->tx;
	if (gone > l->outbox_len - l->outbox_done)
		gone = l->outbox_len - l->outbox_done;
	l->outbox_done += gone;
	l->tx += gone;
}

/*
 * Everything, in order.
 */

static void read_slots(struct KeeperHeld *held, unsigned n_held)
{
	uint32_t slot;

	for (slot = 1; slot <= n_slots; slot++) {
		struct Adoptee *a = &adoptee[slot];

		a->fd = -1;
		a->copy = *keeper_store_copy(&keeper_store, slot);
		if (!a->copy.epoch)
			a->copy.kind = KEEPER_FREE;
		if (a->copy.kind == KEEPER_FREE)
			continue;
		if (a->copy.check != keeper_check(&a->copy) || !plausible(&a->copy, slot)) {
			log_warning("keeper: slot %u of the ledger is damaged", slot);
			lose(slot, KEEPER_LOST_DAMAGED);
		}
		if (is_socket(&a->copy) || a->copy.kind == KEEPER_CLOSING) {
			a->fd = take_fd(held, n_held, a->copy.token);
			/* released, but not committed as free */
			if (a->fd < 0)
				a->copy.kind = KEEPER_FREE;
		}
	}
}

static void read_facts(PgPool **changed_pool, unsigned *n_changed)
{
	uint32_t slot;
	bool changed;

	for (slot = 1; slot <= n_slots; slot++) {
		struct Adoptee *a = &adoptee[slot];

		if (a->lost || a->copy.kind != KEEPER_GLOBAL)
			continue;
		read_var_names(&a->copy);
		if (read_global(&a->copy))
			adopt_local(slot);
	}
	for (slot = 1; slot <= n_slots; slot++) {
		struct Adoptee *a = &adoptee[slot];
		PgDatabase *db = NULL;
		PgCredentials *credentials;

		if (a->lost || a->copy.kind != KEEPER_USER)
			continue;
		credentials = read_user(&a->copy, &db);
		if (!credentials || credentials->keeper_slot)
			continue;
		adopt_local(slot);
		keeper_local[slot].object = credentials;
		keeper_local[slot].user_db = db;
		credentials->keeper_slot = slot;
	}
	for (slot = 1; slot <= n_slots; slot++) {
		struct Adoptee *a = &adoptee[slot];
		PgPool *pool;

		if (a->lost || a->copy.kind != KEEPER_POOL)
			continue;
		changed = false;
		pool = read_pool(&a->copy, &changed);
		if (!pool || pool->keeper_slot)
			continue;
		adopt_local(slot);
		keeper_local[slot].object = pool;
		pool->keeper_slot = slot;
		if (changed)
			changed_pool[(*n_changed)++] = pool;
	}
}

/* sockets that no slot names: new clients, and what was being closed */
static void sort_out_unnamed(struct KeeperHeld *held, unsigned n_held, uint64_t watermark)
{
	unsigned i;

	for (i = 0; i < n_held; i++) {
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
			keeper_hanger_release(&held[i].token, 1);
		}
	}
}

void keeper_adopt(struct KeeperHeld *held, unsigned n_held, uint64_t down_us, struct KeeperReady *ready)
{
	struct KeeperActRecord act;
	uint64_t watermark;
	PgPool **changed_pool;
	PgSocket **list;
	unsigned n = 0, n_changed = 0, i;
	uint32_t slot;

	reset_time_cache();
	n_slots = keeper_store.header->slots;
	adoptee = calloc(n_slots + 1, sizeof(*adoptee));
	list = calloc(n_slots + 1, sizeof(*list));
	changed_pool = calloc(n_slots + 1, sizeof(*changed_pool));
	if (!adoptee || !list || !changed_pool)
		die("keeper: out of memory");

	/* read everything */
	keeper_store_recover(&keeper_store);
	act = *keeper_store_act(&keeper_store);
	watermark = keeper_store.watermark;
	next_unique_query_id = keeper_store.header->query_id;
	if (keeper_store.header->socket_id > last_pgsocket_id)
		last_pgsocket_id = keeper_store.header->socket_id;
	qsort(held, n_held, sizeof(*held), by_token);
	read_slots(held, n_held);
	read_facts(changed_pool, &n_changed);

	/* decide who can go on */
	for (slot = 1; slot <= n_slots; slot++)
		judge(slot, &act);
	judge_links();

	/* rebuild; what turns out damaged now takes its partner along */
	for (slot = 1; slot <= n_slots; slot++) {
		struct Adoptee *a = &adoptee[slot];

		if (!is_socket(&a->copy) && a->copy.kind != KEEPER_CLOSING)
			continue;
		adopt_local(slot);
		if (is_socket(&a->copy) && !a->lost)
			a->sk = rebuild(slot);
		if (a->copy.kind == KEEPER_CLOSING && keeper_local[slot].outbox)
			settle_closing(slot, &act);
	}
	judge_links();

	/* who goes on, who ends */
	for (slot = 1; slot <= n_slots; slot++) {
		struct Adoptee *a = &adoptee[slot];
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
		struct Adoptee *a = &adoptee[slot];

		if (is_socket(&a->copy) && a->lost) {
			/* a cancel that may still arrive must not meet the next client's query */
			uint32_t target = a->copy.canceled_server;

			if (a->copy.state == CL_ACTIVE_CANCEL && target && adoptee[target].sk)
				adoptee[target].sk->close_needed = true;
			end_lost(slot, ready);
			if (a->sk)
				discard(a->sk);
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
		} else if (keeper_local[slot].kind != KEEPER_FREE) {
			keeper_store_mark(&keeper_store, slot);
		}
	}
	for (slot = 1; slot <= n_slots; slot++) {
		if (adoptee[slot].iobuf)
			keeper_store_free_iobuf(&keeper_store, adoptee[slot].iobuf);
	}
	keeper_mark_global();
	enlist(list, n, down_us);
	go_on(list, n);
	for (i = 0; i < n_changed; i++)
		tag_pool_dirty(changed_pool[i]);
	sort_out_unnamed(held, n_held, watermark);

	free(adoptee);
	free(list);
	free(changed_pool);
	adoptee = NULL;
}
