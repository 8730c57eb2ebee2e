/*
 * pgkeeper - from PgBouncer's objects to the ledger's copies and records.
 */
#include "bouncer.h"

#include <usual/err.h>

#include "keeper/internal.h"

extern struct AATree pam_user_tree;
extern uint8_t mock_auth_nonce[32];
extern bool mock_auth_nonce_initialized;

/*
 * Packing.
 */

void keeper_pack(struct KeeperPack *pack, const void *data, size_t len)
{
	if (pack->len + len > pack->size) {
		size_t size = 2 * (pack->len + len) + 256;
		uint8_t *more = realloc(pack->data, size);

		if (!more)
			die("keeper: out of memory");
		pack->data = more;
		pack->size = size;
	}
	memcpy(pack->data + pack->len, data, len);
	pack->len += len;
}

void keeper_pack_bytes(struct KeeperPack *pack, const void *data, size_t len)
{
	uint16_t counted = data ? len : UINT16_MAX;

	if (data && len >= UINT16_MAX) {
		pack->too_long = true;
		return;
	}
	keeper_pack(pack, &counted, sizeof(counted));
	if (data)
		keeper_pack(pack, data, len);
}

void keeper_pack_string(struct KeeperPack *pack, const char *string)
{
	keeper_pack_bytes(pack, string, string ? strlen(string) : 0);
}

uint32_t keeper_pack_blob(struct KeeperPack *pack, enum KeeperBlobKind kind)
{
	uint32_t unit = pack->too_long ? 0 : keeper_store_new_blob(&keeper_store, kind, pack->len);

	pack->too_long = false;
	if (!unit)
		return 0;
	memcpy(keeper_blob_data(keeper_store_blob(&keeper_store, unit)), pack->data, pack->len);
	keeper_store_finish_blob(&keeper_store, unit, pack->len);
	return unit;
}

void keeper_unpack(struct KeeperUnpack *unpack, void *to, size_t len)
{
	if (unpack->failed || len > unpack->len) {
		unpack->failed = true;
		memset(to, 0, len);
		return;
	}
	memcpy(to, unpack->data, len);
	unpack->data += len;
	unpack->len -= len;
}

const uint8_t *keeper_unpack_bytes(struct KeeperUnpack *unpack, size_t *len_p)
{
	const uint8_t *bytes;
	uint16_t len;

	*len_p = 0;
	keeper_unpack(unpack, &len, sizeof(len));
	if (unpack->failed || len == UINT16_MAX)
		return NULL;
	if (len > unpack->len) {
		unpack->failed = true;
		return NULL;
	}
	bytes = unpack->data;
	unpack->data += len;
	unpack->len -= len;
	*len_p = len;
	return bytes;
}

bool keeper_unpack_string(struct KeeperUnpack *unpack, char *to, size_t size)
{
	size_t len;
	const uint8_t *bytes = keeper_unpack_bytes(unpack, &len);

	to[0] = 0;
	if (!bytes)
		return false;
	if (len >= size) {
		unpack->failed = true;
		return false;
	}
	memcpy(to, bytes, len);
	to[len] = 0;
	return true;
}

char *keeper_unpack_strdup(struct KeeperUnpack *unpack)
{
	size_t len;
	const uint8_t *bytes = keeper_unpack_bytes(unpack, &len);
	char *string;

	if (!bytes)
		return NULL;
	string = malloc(len + 1);
	if (!string) {
		unpack->failed = true;
		return NULL;
	}
	memcpy(string, bytes, len);
	string[len] = 0;
	return string;
}

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

/* what makes a server connection obsolete when it changes: see parse_database() */
char *keeper_fingerprint(PgDatabase *db, char *buf, size_t size)
{
	snprintf(buf, size, "%s\n%d\n%s\n%s\n%s\n%s\n%s\n%d",
		 db->host ? db->host : "", db->port, db->dbname ? db->dbname : "",
		 db->forced_user_credentials ? db->forced_user_credentials->name : "",
		 db->connect_query ? db->connect_query : "",
		 db->auth_dbname ? db->auth_dbname : "", db->auth_query ? db->auth_query : "",
		 (int)db->load_balance_hosts);
	return buf;
}

static void pack_vars(struct KeeperPack *pack, struct PStr **vars)
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
static void replace(struct KeeperLocal *l, uint32_t *unit_p, uint32_t unit)
{
	keeper_store_free_blob(&keeper_store, *unit_p);
	*unit_p = unit;
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
	pack_vars(&pack, sk->vars.var_list);
	replace(l, &l->record, keeper_pack_blob(&pack, KEEPER_BLOB_RECORD));

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
 * Slots.
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

_Static_assert(sizeof(((struct KeeperPoolRecord *)0)->stats) == sizeof(PgStats), "PgStats has changed");

static void serialize_pool(PgPool *pool, struct KeeperLocal *l, struct KeeperCopy *copy)
{
	struct KeeperPoolRecord record;
	static struct KeeperPack pack;
	char fingerprint[4096];
	PgDatabase *db = pool->db;

	memset(&record, 0, sizeof(record));
	record.peer_id = db->peer_id;
	record.cred_kind = keeper_credentials_kind(pool->user_credentials, db);
	record.welcome_ready = pool->welcome_msg_ready;
	record.db_paused = db->db_paused;
	record.db_disabled = db->db_disabled;
	record.n_vars = get_num_var_cached();
	record.last_lifetime_disconnect = pool->last_lifetime_disconnect;
	memcpy(record.stats, &pool->stats, sizeof(record.stats));

	pack.len = 0;
	keeper_pack(&pack, &record, sizeof(record));
	keeper_pack_string(&pack, db->name);
	keeper_pack_string(&pack, pool->user_credentials ? pool->user_credentials->name : NULL);
	keeper_pack_string(&pack, db->name);
	keeper_pack_string(&pack, keeper_fingerprint(db, fingerprint, sizeof(fingerprint)));
	pack_vars(&pack, pool->orig_vars.var_list);
	if (pool->welcome_msg_ready)
		keeper_pack_bytes(&pack, pool->welcome_msg->buf, pool->welcome_msg->write_pos);
	else
		keeper_pack_bytes(&pack, NULL, 0);
	replace(l, &l->record, keeper_pack_blob(&pack, KEEPER_BLOB_RECORD));
	copy->record = l->record;
}

static void serialize_credentials(PgCredentials *credentials, struct KeeperLocal *l, struct KeeperCopy *copy)
{
	struct KeeperUserRecord record;
	static struct KeeperPack pack;
	enum KeeperCredentials kind = keeper_credentials_kind(credentials, l->user_db);

	memset(&record, 0, sizeof(record));
	record.cred_kind = kind;
	record.has_scram_keys = credentials->has_scram_keys;
	memcpy(record.client_key, credentials->scram_ClientKey, sizeof(record.client_key));
	memcpy(record.server_key, credentials->scram_ServerKey, sizeof(record.server_key));
	pack.len = 0;
	keeper_pack(&pack, &record, sizeof(record));
	keeper_pack_string(&pack, credentials->name);
	keeper_pack_string(&pack, l->user_db ? l->user_db->name : NULL);
	/* others come from the configuration, where they may have changed */
	keeper_pack_string(&pack, kind == KEEPER_CRED_DYNAMIC || kind == KEEPER_CRED_PAM ? credentials->passwd : NULL);
	replace(l, &l->record, keeper_pack_blob(&pack, KEEPER_BLOB_RECORD));
	copy->record = l->record;
}

/*
 * Console SETs in force: a successor starts from the ini, which knows nothing
 * of them.
 */
static struct Setting {
	struct Setting *next;
	char *key, *value;
} *settings;

void keeper_setting(const char *key, const char *value)
{
	struct Setting *setting;

	if (!keeper_on)
		return;
	for (setting = settings; setting; setting = setting->next) {
		if (strcasecmp(setting->key, key) == 0)
			break;
	}
	if (!setting) {
		setting = calloc(1, sizeof(*setting));
		if (!setting)
			return;
		setting->key = xstrdup(key);
		setting->next = settings;
		settings = setting;
	}
	free(setting->value);
	setting->value = xstrdup(value);
	keeper_mark_global();
}

void keeper_settings_reloaded(void)
{
	while (settings) {
		struct Setting *setting = settings;

		settings = setting->next;
		free(setting->key);
		free(setting->value);
		free(setting);
	}
	keeper_mark_global();
}

static void serialize_global(struct KeeperLocal *l, struct KeeperCopy *copy)
{
	struct KeeperGlobalRecord record;
	static struct KeeperPack pack;
	struct Setting *setting;
	int i;

	memset(&record, 0, sizeof(record));
	for (setting = settings; setting; setting = setting->next)
		record.n_settings++;
	memcpy(record.mock_nonce, mock_auth_nonce, sizeof(record.mock_nonce));
	record.mock_nonce_set = mock_auth_nonce_initialized;
	record.pause_mode = cf_pause_mode;
	record.shutdown = cf_shutdown;
	record.peer_id = cf_peer_id;
	record.n_vars = get_num_var_cached();
	pack.len = 0;
	keeper_pack(&pack, &record, sizeof(record));
	for (i = 0; i < get_num_var_cached(); i++)
		keeper_pack_string(&pack, varcache_name(i));
	for (setting = settings; setting; setting = setting->next) {
		keeper_pack_string(&pack, setting->key);
		keeper_pack_string(&pack, setting->value);
	}
	replace(l, &l->record, keeper_pack_blob(&pack, KEEPER_BLOB_RECORD));
	copy->record = l->record;
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
		serialize_pool(l->object, l, copy);
		break;
	case KEEPER_USER:
		serialize_credentials(l->object, l, copy);
		break;
	case KEEPER_GLOBAL:
		serialize_global(l, copy);
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

/*
 * Marks for what is no socket.
 */

void keeper_mark_pool(PgPool *pool)
{
	if (keeper_on && pool->keeper_slot)
		keeper_store_mark(&keeper_store, pool->keeper_slot);
}

void keeper_mark_credentials(PgCredentials *credentials, PgDatabase *db)
{
	if (!keeper_on || !credentials || !keeper_store.header)
		return;
	if (!credentials->keeper_slot) {
		credentials->keeper_slot = keeper_new_slot(credentials, KEEPER_USER);
		if (!credentials->keeper_slot)
			return;
		keeper_local[credentials->keeper_slot].user_db = db;
	}
	keeper_store_mark(&keeper_store, credentials->keeper_slot);
}

void keeper_mark_global(void)
{
	uint32_t slot;

	if (!keeper_on || !keeper_store.header)
		return;
	for (slot = 1; slot <= keeper_store.header->slots; slot++) {
		if (keeper_local[slot].kind == KEEPER_GLOBAL) {
			keeper_store_mark(&keeper_store, slot);
			return;
		}
	}
	keeper_new_slot(NULL, KEEPER_GLOBAL);
}

void keeper_mark_pools(void)
{
	struct List *item;

	statlist_for_each(item, &pool_list) {
		keeper_mark_pool(container_of(item, PgPool, head));
	}
}

void keeper_mark_operator(void)
{
	if (!keeper_on)
		return;
	keeper_mark_global();
	keeper_mark_pools();
}
