/*
 * pgkeeper - pools: written down with what a client is welcomed with, and read
 * back at adoption.
 */
#include "bouncer.h"

#include <usual/endian.h>

#include "keeper/internal.h"
#include "keeper/adopt.h"
#include "keeper/facts.h"

_Static_assert(sizeof(((struct KeeperPoolRecord *)0)->stats) == sizeof(PgStats), "PgStats has changed");

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

/*
 * Marks.
 */

void keeper_mark_pool(PgPool *pool)
{
	if (keeper_on && pool->keeper_slot)
		keeper_store_mark(&keeper_store, pool->keeper_slot);
}

void keeper_mark_pools(void)
{
	struct List *item;

	statlist_for_each(item, &pool_list) {
		keeper_mark_pool(container_of(item, PgPool, head));
	}
}

void keeper_pool_gone(PgPool *pool)
{
	if (pool->keeper_slot)
		keeper_drop_slot(pool->keeper_slot);
	pool->keeper_slot = 0;
}

/*
 * Reading.
 */

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

PgPool *keeper_read_pool(const struct KeeperCopy *copy, bool *changed_p)
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
