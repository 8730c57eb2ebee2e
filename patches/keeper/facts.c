/*
 * pgkeeper - users, pools and what else is no socket: written down, and read
 * back at adoption.
 */
#include "bouncer.h"
#include "scram.h"

#include <usual/endian.h>
#include <usual/err.h>

#include "keeper/internal.h"
#include "keeper/adopt.h"

extern uint8_t mock_auth_nonce[32];
extern bool mock_auth_nonce_initialized;

/* what makes a server connection obsolete when it changes: see parse_database() */
static char *fingerprint_of(PgDatabase *db, char *buf, size_t size)
{
	snprintf(buf, size, "%s\n%d\n%s\n%s\n%s\n%s\n%s\n%d",
		 db->host ? db->host : "", db->port, db->dbname ? db->dbname : "",
		 db->forced_user_credentials ? db->forced_user_credentials->name : "",
		 db->connect_query ? db->connect_query : "",
		 db->auth_dbname ? db->auth_dbname : "", db->auth_query ? db->auth_query : "",
		 (int)db->load_balance_hosts);
	return buf;
}

/*
 * Writing.
 */

_Static_assert(sizeof(((struct KeeperPoolRecord *)0)->stats) == sizeof(PgStats), "PgStats has changed");

void keeper_write_pool(PgPool *pool, struct KeeperLocal *l, struct KeeperCopy *copy)
{
	struct KeeperPoolRecord record;
	static struct KeeperPack pack;
	char fingerprint[4096];
	PgDatabase *db = pool->db;

	memset(&record, 0, sizeof(record));
	record.peer_id = db->peer_id;
	record.cred_kind = keeper_credentials_kind(pool->user_credentials, db);
	record.welcome_ready = pool->welcome_msg_ready;
	record.n_vars = get_num_var_cached();
	record.last_lifetime_disconnect = pool->last_lifetime_disconnect;
	memcpy(record.stats, &pool->stats, sizeof(record.stats));

	pack.len = 0;
	keeper_pack(&pack, &record, sizeof(record));
	keeper_pack_string(&pack, db->name);
	keeper_pack_string(&pack, pool->user_credentials ? pool->user_credentials->name : NULL);
	keeper_pack_string(&pack, db->name);
	keeper_pack_string(&pack, fingerprint_of(db, fingerprint, sizeof(fingerprint)));
	keeper_pack_vars(&pack, pool->orig_vars.var_list);
	if (pool->welcome_msg_ready)
		keeper_pack_bytes(&pack, pool->welcome_msg->buf, pool->welcome_msg->write_pos);
	else
		keeper_pack_bytes(&pack, NULL, 0);
	keeper_replace_record(l, keeper_pack_blob(&pack, KEEPER_BLOB_RECORD));
	copy->record = l->record;
}

void keeper_write_credentials(PgCredentials *credentials, struct KeeperLocal *l, struct KeeperCopy *copy)
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
	keeper_replace_record(l, keeper_pack_blob(&pack, KEEPER_BLOB_RECORD));
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

/*
 * Databases that the operator has paused or disabled, or waits for: they need no pool for it.
 */

static const char *const set_aside[] = {
	NULL, "paused", "disabled", "paused disabled",
	"awaited", "paused awaited", "disabled awaited", "paused disabled awaited"
};

static const char *state_of(const PgDatabase *db)
{
	return set_aside[(db->db_paused ? 1 : 0) + (db->db_disabled ? 2 : 0) + (db->db_wait_close ? 4 : 0)];
}

static void pack_databases(struct KeeperPack *pack, struct StatList *list, uint32_t *count_p)
{
	struct List *item;

	statlist_for_each(item, list) {
		PgDatabase *db = container_of(item, PgDatabase, head);

		if (!state_of(db))
			continue;
		keeper_pack_string(pack, db->name);
		keeper_pack_string(pack, state_of(db));
		(*count_p)++;
	}
}

static void read_database(const char *name, const char *state)
{
	PgDatabase *db = find_or_register_database(NULL, name);

	/* the configuration may no longer have it */
	if (!db)
		return;
	db->db_paused = strstr(state, set_aside[1]) != NULL;
	db->db_disabled = strstr(state, set_aside[2]) != NULL;
	db->db_wait_close = strstr(state, set_aside[4]) != NULL;
}

void keeper_write_global(struct KeeperLocal *l, struct KeeperCopy *copy)
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
	pack_databases(&pack, &database_list, &record.n_databases);
	pack_databases(&pack, &autodatabase_idle_list, &record.n_databases);
	memcpy(pack.data, &record, sizeof(record));
	keeper_replace_record(l, keeper_pack_blob(&pack, KEEPER_BLOB_RECORD));
	copy->record = l->record;
}

/*
 * Marks for what is no socket.
 */

void keeper_mark_pool(PgPool *pool)
{
	if (keeper_on && pool->keeper_slot)
		keeper_store_mark(&keeper_store, pool->keeper_slot);
}

void keeper_pool_gone(PgPool *pool)
{
	if (pool->keeper_slot)
		keeper_drop_slot(pool->keeper_slot);
	pool->keeper_slot = 0;
}

void keeper_database_gone(PgDatabase *db)
{
	uint32_t slot;

	if (!keeper_on || !keeper_store.header)
		return;
	for (slot = 1; slot <= keeper_store.header->slots; slot++) {
		struct KeeperLocal *l = &keeper_local[slot];

		if (l->kind == KEEPER_USER && l->user_db == db) {
			((PgCredentials *)l->object)->keeper_slot = 0;
			keeper_drop_slot(slot);
		}
	}
}

void keeper_mark_credentials(PgCredentials *credentials, PgDatabase *db)
{
	if (!keeper_on || !credentials || !keeper_store.header)
		return;
	if (!credentials->keeper_slot) {
		credentials->keeper_slot = keeper_new_slot(credentials, KEEPER_USER);
		if (!credentials->keeper_slot)
			return;
		/* others are found without */
		if (keeper_credentials_kind(credentials, db) != KEEPER_CRED_GLOBAL)
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

/* no commit before it is done: it is begun again.  One that falls into it tells. */
void keeper_command_begins(PgSocket *admin)
{
	if (admin->keeper_slot)
		keeper_local[admin->keeper_slot].in_command = true;
}

void keeper_command_done(PgSocket *admin)
{
	if (!keeper_on)
		return;
	if (admin->keeper_slot)
		keeper_local[admin->keeper_slot].in_command = false;
	keeper_mark_global();
	keeper_mark_pools();
}

/*
 * Reading records.  Each returns false where the record is damaged or speaks
 * of something the configuration no longer has.
 */

bool keeper_open_record(const struct KeeperCopy *copy, struct KeeperUnpack *unpack)
{
	unpack->failed = false;
	unpack->data = keeper_store_read_blob(&keeper_store, copy->record, KEEPER_BLOB_RECORD, &unpack->len);
	return unpack->data != NULL;
}

PgCredentials *keeper_find_credentials(enum KeeperCredentials kind, const char *name, PgDatabase *db)
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
	char key[128], value[1024];
	bool tls_changed = false;
	size_t len;
	uint32_t i;

	if (!keeper_open_record(copy, &unpack))
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
	if (record.shutdown == SHUTDOWN_WAIT_FOR_SERVERS || record.shutdown == SHUTDOWN_WAIT_FOR_CLIENTS)
		cf_shutdown = record.shutdown;
	for (i = 0; i < record.n_vars; i++)
		keeper_unpack_bytes(&unpack, &len);
	for (i = 0; i < record.n_settings && !unpack.failed; i++) {
		if (!keeper_unpack_string(&unpack, key, sizeof(key)) || !keeper_unpack_string(&unpack, value, sizeof(value)))
			continue;
		if (!set_config_param(key, value))
			continue;
		keeper_setting(key, value);
		tls_changed |= strstr(key, "_tls_") != NULL;
	}
	if (tls_changed && !sbuf_tls_setup())
		log_warning("keeper: TLS settings of the console could not be applied");
	for (i = 0; i < record.n_databases && !unpack.failed; i++) {
		if (keeper_unpack_string(&unpack, key, sizeof(key)) && keeper_unpack_string(&unpack, value, sizeof(value)))
			read_database(key, value);
	}
	return true;
}

/* tracked parameters were recorded by position: their names at that time */
static char recorded_var[UINT8_MAX][128];
static unsigned n_recorded_vars;
static bool recorded_alike;
/* the values of the socket that was read last: mostly those of the next one as well */
static struct PStr *last_value[UINT8_MAX];

static void read_var_names(const struct KeeperCopy *copy)
{
	struct KeeperUnpack unpack;
	struct KeeperGlobalRecord record;
	unsigned i;

	n_recorded_vars = 0;
	recorded_alike = false;
	if (!keeper_open_record(copy, &unpack))
		return;
	keeper_unpack(&unpack, &record, sizeof(record));
	while (n_recorded_vars < record.n_vars && !unpack.failed) {
		keeper_unpack_string(&unpack, recorded_var[n_recorded_vars], sizeof(recorded_var[0]));
		n_recorded_vars++;
	}
	if (unpack.failed)
		n_recorded_vars = 0;
	recorded_alike = n_recorded_vars == (unsigned)get_num_var_cached();
	for (i = 0; recorded_alike && i < n_recorded_vars; i++)
		recorded_alike = strcmp(recorded_var[i], varcache_name(i)) == 0;
}

bool keeper_vars_recorded_alike(void)
{
	return recorded_alike;
}

/* true: it was the same as last time */
static bool set_last_value(VarCache *cache, unsigned i, const uint8_t *value, size_t len)
{
	struct PStr *last = last_value[i];

	if (!recorded_alike || !last || cache->var_list[i]
	    || last->len != len || memcmp(last->str, value, len) != 0)
		return false;
	strpool_incref(last);
	cache->var_list[i] = last;
	return true;
}

/* false: damaged; cache may be NULL, only to check */
bool keeper_read_vars(struct KeeperUnpack *unpack, unsigned n, VarCache *cache)
{
	unsigned i;

	if (n > n_recorded_vars)
		return false;
	for (i = 0; i < n; i++) {
		size_t len;
		const uint8_t *bytes = keeper_unpack_bytes(unpack, &len);
		char *value;

		if (!bytes || !cache || set_last_value(cache, i, bytes, len))
			continue;
		value = strndup((const char *)bytes, len);
		if (!value)
			return false;
		varcache_set(cache, recorded_var[i], value);
		if (recorded_alike)
			last_value[i] = cache->var_list[i];
		free(value);
	}
	return !unpack->failed;
}

/* the configuration has the password itself by now: keys learnt before may be of another one */
static bool needs_no_keys(const PgCredentials *credentials)
{
	return credentials->passwd[0] && get_password_type(credentials->passwd) == PASSWORD_TYPE_PLAINTEXT;
}

static PgCredentials *read_user(const struct KeeperCopy *copy, PgDatabase **db_p)
{
	struct KeeperUnpack unpack;
	struct KeeperUserRecord record;
	char name[MAX_USERNAME], db_name[MAX_DBNAME], passwd[MAX_PASSWORD];
	PgCredentials *credentials;
	bool has_passwd;

	if (!keeper_open_record(copy, &unpack))
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
		credentials = keeper_find_credentials(record.cred_kind, name, *db_p);
	memset(passwd, 0, sizeof(passwd));
	if (!credentials)
		return NULL;
	if (record.has_scram_keys && !needs_no_keys(credentials)) {
		memcpy(credentials->scram_ClientKey, record.client_key, sizeof(record.client_key));
		memcpy(credentials->scram_ServerKey, record.server_key, sizeof(record.server_key));
		credentials->has_scram_keys = true;
	}
	return credentials;
}

/*
 * Is this what add_welcome_parameter() makes?  Each client that logs in would
 * get it: one whose driver is confused by it has no other way to notice.
 */
static bool welcome_ok(const uint8_t *welcome, size_t size)
{
	static const uint8_t authentication_ok[] = { PqMsg_AuthenticationRequest, 0, 0, 0, 8, 0, 0, 0, 0 };
	const uint8_t *pos = welcome + sizeof(authentication_ok);
	const uint8_t *end = welcome + size;

	if (size < sizeof(authentication_ok) || memcmp(welcome, authentication_ok, sizeof(authentication_ok)) != 0)
		return false;
	while (pos < end) {
		const uint8_t *name, *value;
		uint32_t len;

		if (end - pos < NEW_HEADER_LEN || *pos != PqMsg_ParameterStatus)
			return false;
		len = be32dec(pos + 1);
		name = pos + NEW_HEADER_LEN;
		if (len < 4 || len >= (size_t) (end - pos))
			return false;
		pos += 1 + len;
		value = memchr(name, 0, pos - name);
		if (!value || memchr(value + 1, 0, pos - (value + 1)) != pos - 1)
			return false;
	}
	return true;
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

	if (!keeper_open_record(copy, &unpack))
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
	pool = get_pool(db, keeper_find_credentials(record.cred_kind, user, db));
	if (!pool)
		return NULL;

	recorded = keeper_unpack_strdup(&unpack);
	*changed_p = !recorded || strcmp(recorded, fingerprint_of(db, fingerprint, sizeof(fingerprint))) != 0;
	free(recorded);
	if (!keeper_read_vars(&unpack, record.n_vars, &pool->orig_vars))
		return NULL;
	welcome = keeper_unpack_bytes(&unpack, &len);
	if (record.welcome_ready && welcome && !pool->welcome_msg && welcome_ok(welcome, len)) {
		pool->welcome_msg = pktbuf_dynamic(len + 1);
		if (!pool->welcome_msg)
			return NULL;
		pktbuf_put_bytes(pool->welcome_msg, welcome, len);
		pool->welcome_msg_ready = true;
	}
	pool->last_lifetime_disconnect = record.last_lifetime_disconnect;
	memcpy(&pool->stats, record.stats, sizeof(pool->stats));
	pool->newer_stats = pool->older_stats = pool->stats;
	return pool;
}

void keeper_read_facts(PgPool **changed_pool, unsigned *n_changed)
{
	uint32_t slot;
	bool changed;

	for (slot = 1; slot <= keeper_store.header->slots; slot++) {
		struct KeeperAdoptee *a = &keeper_adoptee[slot];

		if (a->lost || a->copy.kind != KEEPER_GLOBAL)
			continue;
		read_var_names(&a->copy);
		if (read_global(&a->copy))
			keeper_adopt_local(slot);
	}
	for (slot = 1; slot <= keeper_store.header->slots; slot++) {
		struct KeeperAdoptee *a = &keeper_adoptee[slot];
		PgDatabase *db = NULL;
		PgCredentials *credentials;

		if (a->lost || a->copy.kind != KEEPER_USER)
			continue;
		credentials = read_user(&a->copy, &db);
		if (!credentials || credentials->keeper_slot)
			continue;
		keeper_adopt_local(slot);
		keeper_local[slot].object = credentials;
		keeper_local[slot].user_db = db;
		credentials->keeper_slot = slot;
	}
	for (slot = 1; slot <= keeper_store.header->slots; slot++) {
		struct KeeperAdoptee *a = &keeper_adoptee[slot];
		PgPool *pool;

		if (a->lost || a->copy.kind != KEEPER_POOL)
			continue;
		changed = false;
		pool = read_pool(&a->copy, &changed);
		if (!pool || pool->keeper_slot)
			continue;
		keeper_adopt_local(slot);
		keeper_local[slot].object = pool;
		pool->keeper_slot = slot;
		if (changed)
			changed_pool[(*n_changed)++] = pool;
	}
}
