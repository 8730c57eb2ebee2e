/*
 * pgkeeper - adoption: a PgSocket from its slot.
 */
#include "bouncer.h"
#include "scram.h"

#include <usual/slab.h>

#include "keeper/internal.h"
#include "keeper/adopt.h"

/*
 * Rebuilding.
 */

/* false: damaged */
static bool rebuild_requests(PgSocket *server, const struct KeeperCopy *c)
{
	const struct KeeperRequest *entry = NULL;
	size_t len = 0, n, i;
	bool is_damaged = false;

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
			if (!entry[i].closing)
				request->server_ps_query_id = entry[i].query_id;
			else
				request->server_ps = keeper_closing_statement(entry[i].statement);
			is_damaged |= entry[i].closing && !request->server_ps;
		} else {
			request->type = (c->request[i] & 0x3f) + 0x40;
			request->action = c->request[i] >> 6;
		}
		is_damaged |= request->action > RA_FAKE;
		statlist_append(&server->outstanding_requests, &request->node);
	}
	return !is_damaged;
}

static bool rebuild_scram(struct ScramState *scram, uint32_t unit)
{
	struct KeeperUnpack unpack = { NULL, 0, false };
	uint8_t adhoc;

	if (!unit)
		return true;
	unpack.data = keeper_store_read_blob(&keeper_store, unit, KEEPER_BLOB_SCRAM, &unpack.len);
	if (!unpack.data)
		return false;
	scram->client_nonce = keeper_unpack_strdup(&unpack);
	scram->client_first_message_bare = keeper_unpack_strdup(&unpack);
	scram->client_final_message_without_proof = keeper_unpack_strdup(&unpack);
	scram->server_nonce = keeper_unpack_strdup(&unpack);
	scram->server_first_message = keeper_unpack_strdup(&unpack);
	scram->salt = keeper_unpack_strdup(&unpack);
	keeper_unpack(&unpack, &scram->cbind_flag, sizeof(scram->cbind_flag));
	keeper_unpack(&unpack, &adhoc, sizeof(adhoc));
	scram->adhoc = adhoc != 0;
	keeper_unpack(&unpack, &scram->iterations, sizeof(scram->iterations));
	keeper_unpack(&unpack, scram->ClientKey, sizeof(scram->ClientKey));
	keeper_unpack(&unpack, scram->StoredKey, sizeof(scram->StoredKey));
	keeper_unpack(&unpack, scram->ServerKey, sizeof(scram->ServerKey));
	return !unpack.failed && scram->client_nonce && scram->client_first_message_bare && scram->server_nonce
	       && scram->server_first_message && scram->salt;
}

static bool rebuild_packet(PgSocket *sk, const struct KeeperSocketRecord *record, bool is_login)
{
	struct KeeperUnpack unpack = { NULL, 0, false };
	PktHdr *pkt = &sk->packet_cb_state.pkt;
	bool is_whole = record->packet_flag == CB_HANDLE_COMPLETE_PACKET;
	uint32_t head[2];
	size_t capacity;

	if (record->packet_flag > CB_HANDLE_COMPLETE_PACKET)
		return false;
	sk->packet_cb_state.flag = record->packet_flag;
	if (!record->packet)
		return !is_whole;
	unpack.data = keeper_store_read_blob(&keeper_store, record->packet, KEEPER_BLOB_PACKET, &unpack.len);
	if (!unpack.data || record->packet_flag == CB_NONE)
		return false;
	capacity = keeper_blob_capacity(keeper_store_blob(&keeper_store, record->packet));
	if (record->packet_used > capacity)
		return false;
	unpack.len = record->packet_used;
	keeper_unpack(&unpack, head, sizeof(head));
	pkt->type = head[0];
	pkt->len = head[1];
	/* its blob has had room for the whole of it from the beginning */
	if (unpack.failed || !pkt->type || pkt->len > capacity - sizeof(head) || unpack.len > pkt->len
	    || unpack.len < (is_login ? OLD_HEADER_LEN : NEW_HEADER_LEN) || (is_whole && unpack.len != pkt->len))
		return false;
	mbuf_init_dynamic(&pkt->data);
	return mbuf_make_room(&pkt->data, pkt->len)
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

void keeper_rebuild_counts(PgSocket *sk, uint32_t flags)
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

/* a blob that the true copy names: ours until the next commit has replaced it */
static uint32_t keep(uint32_t slot, uint32_t unit)
{
	if (!unit)
		return 0;
	if (keeper_store_keep_blob(&keeper_store, unit))
		return unit;
	keeper_lose(slot, KEEPER_LOST_DAMAGED);
	return 0;
}

static bool carries_cancel(const struct KeeperCopy *c)
{
	return c->state == CL_WAITING_CANCEL || c->state == CL_ACTIVE_CANCEL || c->state == SV_ACTIVE_CANCEL;
}

/* the database whose pools look up users, if it is another one */
static const char *auth_dbname(const PgDatabase *db)
{
	return db && db->auth_dbname ? db->auth_dbname : cf_auth_dbname;
}

/* is the pool one of the database that the record names? */
static bool pool_ok(const struct KeeperCopy *c, const PgDatabase *db)
{
	bool is_looked_up = c->flags & (KEEPER_F_WAIT_FOR_USER | KEEPER_F_WAIT_FOR_USER_CONN);
	const PgPool *pool = c->pool ? keeper_local[c->pool].object : NULL;

	if (!pool)
		return true;
	/* a cancel request may be on its way to a peer */
	if (carries_cancel(c))
		return true;
	if (pool->db->peer_id)
		return false;
	if (is_looked_up && auth_dbname(db))
		return strcmp(pool->db->name, auth_dbname(db)) == 0;
	return pool->db == db;
}

static void rebuild_addresses(PgSocket *sk, const struct KeeperAdoptee *a, bool is_unix)
{
	if (a->held->has_addresses) {
		sk->remote_addr = a->held->remote;
		sk->local_addr = a->held->local;
		return;
	}
	if (is_server_socket(sk) && is_unix)
		pga_set(&sk->remote_addr, AF_UNIX, sk->pool->db->port);
	else
		fill_remote_addr(sk, a->fd, is_unix);
	fill_local_addr(sk, a->fd, is_unix);
}

/* a PgSocket in no list yet; NULL: lost, with the reason set */
PgSocket *keeper_rebuild(uint32_t slot)
{
	struct KeeperAdoptee *a = &keeper_adoptee[slot];
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

	if (!keeper_open_record(c, &unpack))
		return keeper_lose(slot, KEEPER_LOST_DAMAGED), NULL;
	keeper_unpack(&unpack, &record, sizeof(record));
	keeper_unpack_string(&unpack, name, sizeof(name));
	if (keeper_unpack_string(&unpack, credentials_db, sizeof(credentials_db)))
		db = find_or_register_database(NULL, credentials_db);
	has_db = keeper_unpack_string(&unpack, db_name, sizeof(db_name));
	if (unpack.failed || record.auth_type > AUTH_TYPE_REJECT || record.replication > REPLICATION_PHYSICAL)
		return keeper_lose(slot, KEEPER_LOST_DAMAGED), NULL;
	if (record.cred_kind != KEEPER_CRED_NONE) {
		credentials = keeper_find_credentials(record.cred_kind, name, db);
		if (!credentials)
			return keeper_lose(slot, KEEPER_LOST_CONFIG), NULL;
	}
	if (!is_server && has_db) {
		db = find_or_register_database(NULL, db_name);
		if (!db)
			return keeper_lose(slot, KEEPER_LOST_CONFIG), NULL;
	} else if (!is_server) {
		/* a login that has not named a database yet, or one that does not exist */
		db = NULL;
		if (credentials || (c->state != CL_LOGIN && !carries_cancel(c)))
			return keeper_lose(slot, KEEPER_LOST_CONFIG), NULL;
	}
	if (!pool_ok(c, db))
		return keeper_lose(slot, KEEPER_LOST_DAMAGED), NULL;

	sk = slab_alloc(is_server ? server_cache : client_cache);
	if (!sk)
		return keeper_lose(slot, KEEPER_LOST_RESOURCES), NULL;
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
	sk->wait_for_response = c->flags & KEEPER_F_WAIT_FOR_RESPONSE ? 1 : 0;

	sk->sbuf.sock = a->fd;
	sk->sbuf.pkt_action = c->pkt_action;
	sk->sbuf.pkt_remain = c->pkt_remain;
	sk->sbuf.skip_remain = c->skip_remain;
	rebuild_addresses(sk, a, is_unix);

	if (a->iobuf && c->io_recv > c->io_done) {
		IOBuf *io = keeper_store_iobuf(&keeper_store, a->iobuf);

		io->done_pos = c->io_done;
		io->parse_pos = c->io_parse;
		io->recv_pos = c->io_recv;
		io->keeper_number = a->iobuf;
		sk->sbuf.io = io;
		keeper_iobuf_owner(a->iobuf, sk);
		a->iobuf = 0;
	}
	if (c->extra) {
		size_t len;
		const uint8_t *extra = keeper_store_read_blob(&keeper_store, c->extra, KEEPER_BLOB_EXTRA, &len);

		if (!mbuf_write(&sk->sbuf.extra_packets, extra + c->extra_done, len - c->extra_done))
			keeper_lose(slot, KEEPER_LOST_RESOURCES);
	}
	l->catalog.blob = keep(slot, record.catalog);
	l->scram = keep(slot, record.scram);
	l->packet = keep(slot, record.packet);
	if (a->lost || !keeper_read_vars(&unpack, record.n_vars, &sk->vars)
	    || !keeper_catalog_read(sk, record.catalog, record.catalog_used)
	    || !rebuild_scram(&sk->scram_state, record.scram) || !rebuild_packet(sk, &record, c->state == CL_LOGIN))
		keeper_lose(slot, KEEPER_LOST_DAMAGED);
	if (is_server && !rebuild_requests(sk, c))
		keeper_lose(slot, KEEPER_LOST_DAMAGED);
	if (record.id > last_pgsocket_id)
		last_pgsocket_id = record.id;

	l->object = sk;
	sk->keeper_flush_due = c->flags & KEEPER_F_FLUSH_DUE ? 1 : 0;
	l->packet_flag = record.packet_flag;
	l->packet_written = mbuf_written(&sk->packet_cb_state.pkt.data);
	/* its record says what would be written now: leave it */
	if (!a->lost && keeper_vars_recorded_alike()) {
		keeper_remember_record(sk, l);
		l->stale = false;
	}
	return sk;
}

void keeper_adopt_local(uint32_t slot)
{
	struct KeeperAdoptee *a = &keeper_adoptee[slot];
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
	if (a->handed) {
		if (keeper_store_keep_iobuf(&keeper_store, a->handed)) {
			((IOBuf *)keeper_store_iobuf(&keeper_store, a->handed))->keeper_number = 0;
			l->is_handed = true;
			l->handed = a->handed;
			l->handed_done = a->handed_done;
			l->handed_end = a->handed_end;
		} else {
			keeper_lose(slot, KEEPER_LOST_DAMAGED);
		}
	}
	if (c->io) {
		if (keeper_store_keep_iobuf(&keeper_store, c->io))
			a->iobuf = c->io;
		else
			keeper_lose(slot, KEEPER_LOST_DAMAGED);
	}
}

/* take apart what was rebuilt in vain */
void keeper_discard(PgSocket *sk)
{
	if (!is_server_socket(sk))
		keeper_statements_gone(sk);
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
