/*
 * pgkeeper - from a PgSocket to its slot's copy and record.  rebuild.c is the way back.
 */
#include "bouncer.h"

#include "keeper/internal.h"

extern struct AATree pam_user_tree;

/*
 * What records are made of.
 */

enum KeeperCredentials keeper_credentials_kind(PgCredentials *credentials, PgDatabase *db)
{
	struct AANode *node;

	if (!credentials)
		return KEEPER_CRED_NONE;
	if (credentials->mock_auth || !credentials->global_user)
		return KEEPER_CRED_MOCK;
	if (credentials == &credentials->global_user->credentials)
		return KEEPER_CRED_GLOBAL;
	if (db && credentials == db->forced_user_credentials)
		return KEEPER_CRED_FORCED;
	if (db && db->user_tree.root) {
		node = aatree_search(&db->user_tree, (uintptr_t)credentials->name);
		if (node && container_of(node, PgCredentials, tree_node) == credentials)
			return KEEPER_CRED_DYNAMIC;
	}
	node = aatree_search(&pam_user_tree, (uintptr_t)credentials->name);
	if (node && container_of(node, PgCredentials, tree_node) == credentials)
		return KEEPER_CRED_PAM;
	return KEEPER_CRED_MOCK;
}

void keeper_pack_vars(struct KeeperPack *pack, struct PStr **vars)
{
	int i;

	for (i = 0; i < get_num_var_cached(); i++) {
		if (vars[i])
			keeper_pack_bytes(pack, vars[i]->str, strlen(vars[i]->str));
		else
			keeper_pack_bytes(pack, NULL, 0);
	}
}

/* swap in a new blob: the old one is freed once no true copy names it */
void keeper_replace_record(struct KeeperLocal *l, uint32_t unit)
{
	keeper_store_free_blob(&keeper_store, l->record);
	l->record = unit;
	if (!unit)
		l->full = true;
}

static uint32_t scram_blob(struct ScramState *scram)
{
	struct KeeperPack pack = { NULL, 0, 0, false };
	uint32_t unit;

	keeper_pack_string(&pack, scram->client_nonce);
	keeper_pack_string(&pack, scram->client_first_message_bare);
	keeper_pack_string(&pack, scram->client_final_message_without_proof);
	keeper_pack_string(&pack, scram->server_nonce);
	keeper_pack_string(&pack, scram->server_first_message);
	keeper_pack_string(&pack, scram->salt);
	keeper_pack(&pack, &scram->cbind_flag, sizeof(scram->cbind_flag));
	keeper_pack(&pack, &scram->adhoc, sizeof(scram->adhoc));
	keeper_pack(&pack, &scram->iterations, sizeof(scram->iterations));
	keeper_pack(&pack, scram->ClientKey, sizeof(scram->ClientKey));
	keeper_pack(&pack, scram->StoredKey, sizeof(scram->StoredKey));
	keeper_pack(&pack, scram->ServerKey, sizeof(scram->ServerKey));
	unit = keeper_pack_blob(&pack, KEEPER_BLOB_SCRAM);
	free(pack.data);
	return unit;
}

/* a packet that is being buffered whole: what has come since goes to the end of its blob */
static void update_packet(PgSocket *sk, struct KeeperLocal *l)
{
	struct CallbackState *state = &sk->packet_cb_state;
	struct MBuf *data = &state->pkt.data;
	unsigned written = mbuf_written(data);
	uint32_t head[2] = { state->pkt.type, state->pkt.len };
	uint8_t *mirror;

	if (state->flag == l->packet_flag && written == l->packet_written)
		return;
	l->stale = true;
	l->packet_flag = state->flag;
	if (l->packet && (written < l->packet_written || !written)) {
		keeper_store_free_blob(&keeper_store, l->packet);
		l->packet = 0;
		l->packet_written = 0;
	}
	if (written && !l->packet) {
		l->packet = keeper_store_new_blob(&keeper_store, KEEPER_BLOB_PACKET, sizeof(head) + state->pkt.len);
		l->packet_written = 0;
		/* no room for so large a packet: volatile until it is done */
		if (!l->packet)
			return;
		memcpy(keeper_blob_data(keeper_store_blob(&keeper_store, l->packet)), head, sizeof(head));
	}
	if (l->packet) {
		mirror = keeper_blob_data(keeper_store_blob(&keeper_store, l->packet)) + sizeof(head);
		memcpy(mirror + l->packet_written, data->data + l->packet_written, written - l->packet_written);
	}
	l->packet_written = written;
}

/*
 * Socket records are rewritten when one of the things they hold has changed.
 */

static bool vars_changed(PgSocket *sk, struct KeeperLocal *l)
{
	return !l->vars || memcmp(l->vars, sk->vars.var_list, get_num_var_cached() * sizeof(*l->vars)) != 0;
}

static void remember_vars(PgSocket *sk, struct KeeperLocal *l)
{
	int i;

	if (!l->vars) {
		l->vars = calloc(get_num_var_cached(), sizeof(*l->vars));
		if (!l->vars)
			die("keeper: out of memory");
	}
	for (i = 0; i < get_num_var_cached(); i++) {
		struct PStr *now = sk->vars.var_list[i];

		if (now)
			strpool_incref(now);
		if (l->vars[i])
			strpool_decref(l->vars[i]);
		l->vars[i] = now;
	}
}

static bool record_changed(PgSocket *sk, struct KeeperLocal *l)
{
	PgDatabase *db = is_server_socket(sk) ? NULL : sk->db;

	if (sk->scram_state.server_nonce && !l->scram) {
		l->scram = scram_blob(&sk->scram_state);
		l->full |= !l->scram;
		l->stale = true;
	} else if (!sk->scram_state.server_nonce && l->scram) {
		keeper_store_free_blob(&keeper_store, l->scram);
		l->scram = 0;
		l->stale = true;
	}
	if (sk->packet_cb_state.flag != CB_NONE || l->packet_flag != CB_NONE)
		update_packet(sk, l);
	return l->stale || l->credentials != sk->login_user_credentials || l->db != db
	       || l->auth_type != sk->client_auth_type || l->replication != (int)sk->replication
	       || memcmp(l->cancel_key, sk->cancel_key, sizeof(l->cancel_key)) != 0 || vars_changed(sk, l);
}

static void write_record(PgSocket *sk, struct KeeperLocal *l)
{
	struct KeeperSocketRecord record;
	PgDatabase *db = is_server_socket(sk) ? NULL : sk->db;
	PgDatabase *credentials_db = db ? db : sk->pool ? sk->pool->db : NULL;
	static struct KeeperPack pack;

	memset(&record, 0, sizeof(record));
	record.id = sk->id;
	record.connect_time = sk->connect_time;
	memcpy(record.cancel_key, sk->cancel_key, sizeof(record.cancel_key));
	record.catalog = l->catalog.blob;
	record.catalog_used = l->catalog.used;
	record.packet = l->packet;
	record.packet_flag = l->packet_flag;
	record.packet_used = l->packet ? 2 * sizeof(uint32_t) + l->packet_written : 0;
	record.scram = l->scram;
	record.cred_kind = keeper_credentials_kind(sk->login_user_credentials, credentials_db);
	record.auth_type = sk->client_auth_type;
	record.replication = sk->replication;
	record.n_vars = get_num_var_cached();

	pack.len = 0;
	keeper_pack(&pack, &record, sizeof(record));
	keeper_pack_string(&pack, sk->login_user_credentials ? sk->login_user_credentials->name : NULL);
	keeper_pack_string(&pack, credentials_db && !credentials_db->fake ? credentials_db->name : NULL);
	keeper_pack_string(&pack, db && !db->fake ? db->name : NULL);
	keeper_pack_string(&pack, sk->startup_options);
	keeper_pack_vars(&pack, sk->vars.var_list);
	keeper_replace_record(l, keeper_pack_blob(&pack, KEEPER_BLOB_RECORD));

	l->stale = false;
	l->credentials = sk->login_user_credentials;
	l->db = db;
	l->auth_type = sk->client_auth_type;
	l->replication = sk->replication;
	memcpy(l->cancel_key, sk->cancel_key, sizeof(l->cancel_key));
	remember_vars(sk, l);
}

/*
 * Outstanding requests.
 */

static void write_requests(PgSocket *sk, struct KeeperLocal *l, struct KeeperCopy *copy)
{
	static struct KeeperPack pack;
	struct List *el;
	bool simple = true;
	unsigned n = 0;

	if (l->requests)
		keeper_store_free_blob(&keeper_store, l->requests);
	l->requests = 0;
	statlist_for_each(el, &sk->outstanding_requests) {
		OutstandingRequest *request = container_of(el, OutstandingRequest, node);

		if (n == sizeof(copy->request) || request->server_ps || request->server_ps_query_id) {
			simple = false;
			break;
		}
		copy->request[n++] = request->action << 6 | (request->type - 0x40);
	}
	if (simple) {
		copy->n_requests = n;
		return;
	}

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
	copy->requests = l->requests;
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

static uint32_t slot_of(PgSocket *sk)
{
	return sk ? sk->keeper_slot : 0;
}

static uint32_t socket_flags(PgSocket *sk, const struct KeeperLocal *l)
{
	bool is_server = is_server_socket(sk);
	uint32_t flags = 0;

#define FLAG(condition, flag)	flags |= (condition) ? (flag) : 0
	FLAG(sk->ready, KEEPER_F_READY);
	FLAG(sk->idle_tx, KEEPER_F_IDLE_TX);
	FLAG(sk->close_needed, KEEPER_F_CLOSE_NEEDED);
	FLAG(sk->setting_vars, KEEPER_F_SETTING_VARS);
	FLAG(sk->resetting, KEEPER_F_RESETTING);
	FLAG(sk->copy_mode, KEEPER_F_COPY_MODE);
	FLAG(sk->query_failed, KEEPER_F_QUERY_FAILED);
	FLAG(sk->wait_for_welcome, KEEPER_F_WAIT_FOR_WELCOME);
	FLAG(sk->wait_for_user_conn, KEEPER_F_WAIT_FOR_USER_CONN);
	FLAG(sk->wait_for_user, KEEPER_F_WAIT_FOR_USER);
	FLAG(sk->contributes_db_client_count, KEEPER_F_DB_COUNTED);
	FLAG(sk->user_connection_counted, KEEPER_F_USER_COUNTED);
	FLAG(sk->admin_user, KEEPER_F_ADMIN_USER);
	FLAG(sk->own_user, KEEPER_F_OWN_USER);
	FLAG(sk->sbuf.extra_packet_queue_after, KEEPER_F_QUEUE_AFTER);
	FLAG(l->flush_due, KEEPER_F_FLUSH_DUE);
	FLAG(l->doomed, KEEPER_F_DOOMED);
	FLAG(l->doom_notify, KEEPER_F_DOOM_NOTIFY);
	FLAG(l->is_unix, KEEPER_F_UNIX);
	FLAG(!is_server && sk->pool && sk->pool->db->admin, KEEPER_F_CONSOLE);
	FLAG(l->full || l->bypass || (sk->link && !sk->link->keeper_slot)
	     || (!l->packet && mbuf_written(&sk->packet_cb_state.pkt.data)), KEEPER_F_VOLATILE);
#undef FLAG
	return flags;
}

static void serialize_socket(PgSocket *sk, struct KeeperLocal *l, struct KeeperCopy *copy)
{
	SBuf *sbuf = &sk->sbuf;
	IOBuf *io = sbuf->io;

	l->full = false;
	copy->state = sk->state;
	copy->wait_type = sbuf->wait_type;
	copy->pkt_action = sbuf->pkt_action;
	copy->link = slot_of(sk->link);
	copy->dst = sbuf->dst ? slot_of(container_of(sbuf->dst, PgSocket, sbuf)) : 0;
	copy->pkt_remain = sbuf->pkt_remain;
	copy->skip_remain = sbuf->skip_remain;
	copy->query_start = sk->query_start;
	copy->xact_start = sk->xact_start;
	copy->request_time = sk->request_time;
	copy->wait_start = sk->wait_start;
	copy->pool = pool_slot(sk->pool);
	copy->canceled_server = slot_of(sk->canceled_server);
	copy->doom = l->doom;

	if (io && !iobuf_empty(io)) {
		copy->io = keeper_store_iobuf_of(&keeper_store, io);
		copy->io_done = io->done_pos;
		copy->io_parse = io->parse_pos;
		copy->io_recv = io->recv_pos;
		l->full |= !copy->io;
	} else if (io) {
		/* empty, but the next recv may fill it from where it stands */
		copy->io = keeper_store_iobuf_of(&keeper_store, io);
		copy->io_done = copy->io_parse = copy->io_recv = io->recv_pos;
		l->full |= !copy->io;
	} else {
		copy->io = copy->io_done = copy->io_parse = copy->io_recv = 0;
	}
	if (l->extra || mbuf_avail_for_read(&sbuf->extra_packets))
		write_extra(sk, l);
	copy->extra = l->extra;
	copy->extra_done = l->extra_done;
	copy->requests = 0;
	copy->n_requests = 0;
	if (is_server_socket(sk))
		write_requests(sk, l, copy);
	if (l->catalog.added || l->catalog.rewrite) {
		l->catalog.lost = !keeper_catalog_write(sk, &l->catalog);
		l->stale = true;
	}
	if (record_changed(sk, l))
		write_record(sk, l);
	copy->record = l->record;
	l->full |= !l->record || !copy->pool != !sk->pool || l->catalog.lost;
	copy->flags = socket_flags(sk, l);
}

void keeper_serialize(unsigned slot, struct KeeperCopy *copy)
{
	struct KeeperLocal *l = &keeper_local[slot];

	/* a socket's copy is filled in whole */
	if (l->kind != KEEPER_CLIENT && l->kind != KEEPER_SERVER)
		memset(&copy->token, 0, sizeof(*copy) - offsetof(struct KeeperCopy, token));
	copy->kind = l->kind;
	copy->token = l->token;
	copy->rx = l->rx;
	copy->tx = l->tx;
	copy->outbox = l->outbox;
	copy->outbox_done = l->outbox_done;
	copy->outbox_len = l->outbox_len;
	switch (l->kind) {
	case KEEPER_CLIENT:
	case KEEPER_SERVER:
		serialize_socket(l->object, l, copy);
		break;
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
		copy->flags = l->is_unix ? KEEPER_F_UNIX : 0;
		break;
	case KEEPER_FREE:
		break;
	}
}

void keeper_forget(struct KeeperLocal *l)
{
	const uint32_t blobs[] = {
		l->outbox, l->extra, l->requests, l->record, l->doom, l->scram, l->packet, l->catalog.blob
	};
	unsigned i;

	for (i = 0; i < ARRAY_NELEM(blobs); i++)
		keeper_store_free_blob(&keeper_store, blobs[i]);
	if (l->vars) {
		for (i = 0; i < (unsigned)get_num_var_cached(); i++) {
			if (l->vars[i])
				strpool_decref(l->vars[i]);
		}
		free(l->vars);
	}
	memset(l, 0, sizeof(*l));
}
