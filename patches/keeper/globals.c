/*
 * pgkeeper - what there is once: what the operator has done at the console, the
 * nonce of the mock authentication.  Written down, and read back at adoption.
 */
#include "bouncer.h"

#include <usual/err.h>

#include "keeper/internal.h"
#include "keeper/adopt.h"
#include "keeper/facts.h"

extern uint8_t mock_auth_nonce[32];
extern bool mock_auth_nonce_initialized;

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
 * Marks.
 */

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
 * Reading.
 */

bool keeper_read_global(const struct KeeperCopy *copy)
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
