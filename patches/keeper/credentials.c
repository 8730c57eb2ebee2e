/*
 * pgkeeper - credentials that no configuration file has: users learnt by
 * auth_query or PAM, SCRAM keys of all users.  Written down, and read back at
 * adoption.
 */
#include "bouncer.h"
#include "scram.h"

#include "keeper/internal.h"
#include "keeper/adopt.h"
#include "keeper/facts.h"

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
 * Marks.
 */

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

/*
 * Reading.
 */

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

/* the configuration has the password itself by now: keys learnt before may be of another one */
static bool needs_no_keys(const PgCredentials *credentials)
{
	return credentials->passwd[0] && get_password_type(credentials->passwd) == PASSWORD_TYPE_PLAINTEXT;
}

PgCredentials *keeper_read_credentials(const struct KeeperCopy *copy, PgDatabase **db_p)
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
