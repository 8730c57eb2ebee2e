/*
 * pgkeeper - what is no socket, read back at adoption: globals, users, pools,
 * in the order in which they need each other.
 */
#include "bouncer.h"

#include "keeper/internal.h"
#include "keeper/adopt.h"
#include "keeper/facts.h"

bool keeper_open_record(const struct KeeperCopy *copy, struct KeeperUnpack *unpack)
{
	unpack->failed = false;
	unpack->data = keeper_store_read_blob(&keeper_store, copy->record, KEEPER_BLOB_RECORD, &unpack->len);
	return unpack->data != NULL;
}

void keeper_read_facts(PgPool **changed_pool, unsigned *n_changed)
{
	uint32_t slot;
	bool changed;

	for (slot = 1; slot <= keeper_store.header->slots; slot++) {
		struct KeeperAdoptee *a = &keeper_adoptee[slot];

		if (a->lost || a->copy.kind != KEEPER_GLOBAL)
			continue;
		keeper_read_var_names(&a->copy);
		if (keeper_read_global(&a->copy))
			keeper_adopt_local(slot);
	}
	for (slot = 1; slot <= keeper_store.header->slots; slot++) {
		struct KeeperAdoptee *a = &keeper_adoptee[slot];
		PgDatabase *db = NULL;
		PgCredentials *credentials;

		if (a->lost || a->copy.kind != KEEPER_USER)
			continue;
		credentials = keeper_read_credentials(&a->copy, &db);
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
		pool = keeper_read_pool(&a->copy, &changed);
		if (!pool || pool->keeper_slot)
			continue;
		keeper_adopt_local(slot);
		keeper_local[slot].object = pool;
		pool->keeper_slot = slot;
		if (changed)
			changed_pool[(*n_changed)++] = pool;
	}
}
