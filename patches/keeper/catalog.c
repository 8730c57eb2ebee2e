/*
 * pgkeeper - catalogs of prepared statements.
 *
 * A client's catalog maps its names to query ids, a server's is the set of ids
 * it has prepared, least recently used first.  Each is one append-only blob; a
 * statement's text is a blob of its own, shared as prepare.c shares it.
 *
 * A client's catalog that catalog_read.c has read back stays folded: it has been
 * checked, its statements are counted, but they are looked up in the blob.  Adoption
 * would else spend most of its time on building hash tables for clients at rest.
 */
#include "bouncer.h"

#include <usual/slab.h>
#include <usual/hashtab-impl.h>

#include "keeper/internal.h"

/* the hash function of prepare.c, whose tables these are */
#undef HASH_FUNCTION
#define HASH_FUNCTION HASH_BER

/* so often is a statement looked up in a folded catalog: then a hash table pays */
#define FOLDED_LOOKUPS	8

void keeper_statement_added(PgSocket *sk)
{
	if (sk->keeper_slot) {
		keeper_local[sk->keeper_slot].catalog.added++;
		keeper_local[sk->keeper_slot].calm = false;
	}
}

void keeper_statement_removed(PgSocket *sk)
{
	if (sk->keeper_slot) {
		keeper_local[sk->keeper_slot].catalog.rewrite = true;
		keeper_local[sk->keeper_slot].calm = false;
	}
}

void keeper_statement_freed(PgPreparedStatement *ps)
{
	if (keeper_on)
		keeper_store_free_blob(&keeper_store, ps->keeper_blob);
	ps->keeper_blob = 0;
}

uint32_t keeper_statement_blob(PgPreparedStatement *ps)
{
	uint8_t *data;
	size_t len = sizeof(ps->query_id) + ps->query_and_parameters_len;

	if (ps->keeper_blob)
		return ps->keeper_blob;
	ps->keeper_blob = keeper_store_new_blob(&keeper_store, KEEPER_BLOB_STATEMENT, len);
	if (!ps->keeper_blob)
		return 0;
	data = keeper_blob_data(keeper_store_blob(&keeper_store, ps->keeper_blob));
	memcpy(data, &ps->query_id, sizeof(ps->query_id));
	memcpy(data + sizeof(ps->query_id), ps->query_and_parameters, ps->query_and_parameters_len);
	keeper_store_finish_blob(&keeper_store, ps->keeper_blob, len);
	return ps->keeper_blob;
}

/*
 * Writing.
 */

static bool append_entry(struct KeeperCatalog *catalog, PgPreparedStatement *ps, const char *name)
{
	struct KeeperBlob *blob = catalog->blob ? keeper_store_blob(&keeper_store, catalog->blob) : NULL;
	struct KeeperCatalogEntry entry;
	size_t name_length = strlen(name);

	if (name_length >= UINT16_MAX)
		return false;
	memset(&entry, 0, sizeof(entry));
	entry.query_id = ps->query_id;
	entry.name_length = name_length;
	entry.statement = keeper_statement_blob(ps);
	if (!entry.statement)
		return false;
	entry.check = keeper_entry_check(&entry, name);

	if (!blob || catalog->used + sizeof(entry) + name_length > keeper_blob_capacity(blob)) {
		/* blocks are powers of two: what no longer fits gets one twice as large */
		uint32_t unit = keeper_store_new_blob(&keeper_store, KEEPER_BLOB_CATALOG,
						      catalog->used + sizeof(entry) + name_length);
		struct KeeperBlob *bigger;

		if (!unit)
			return false;
		bigger = keeper_store_blob(&keeper_store, unit);
		if (blob) {
			memcpy(keeper_blob_data(bigger), keeper_blob_data(blob), catalog->used);
			keeper_store_free_blob(&keeper_store, catalog->blob);
		}
		catalog->blob = unit;
		blob = bigger;
	}
	/* beyond what a committed record counts: nobody reads it yet */
	memcpy(keeper_blob_data(blob) + catalog->used, &entry, sizeof(entry));
	memcpy(keeper_blob_data(blob) + catalog->used + sizeof(entry), name, name_length);
	catalog->used += sizeof(entry) + name_length;
	return true;
}

static bool append_client(PgSocket *client, struct KeeperCatalog *catalog, uint32_t skip)
{
	PgClientPreparedStatement *client_ps, *tmp;

	HASH_ITER(hh, client->client_prepared_statements, client_ps, tmp) {
		if (skip > 0)
			skip--;
		else if (!append_entry(catalog, client_ps->ps, client_ps->stmt_name))
			return false;
	}
	return true;
}

/*
 * A statement whose text had no room is left out: the server then has one that
 * nobody will use again, because ids never come twice.  Clients that have it
 * are volatile.
 */
static bool append_server(PgSocket *server, struct KeeperCatalog *catalog)
{
	PgServerPreparedStatement *server_ps, *tmp;

	HASH_ITER(hh, server->server_prepared_statements, server_ps, tmp) {
		if (keeper_statement_blob(server_ps->ps) && !append_entry(catalog, server_ps->ps, ""))
			return false;
	}
	return true;
}

bool keeper_catalog_write(PgSocket *sk, struct KeeperCatalog *catalog)
{
	bool is_server = is_server_socket(sk);
	uint32_t known = 0;

	/*
	 * A server's order changes with every use, so what was added need not
	 * be at its end; it holds max_prepared_statements at most: write it anew.
	 */
	if (is_server || catalog->rewrite || catalog->lost) {
		keeper_store_free_blob(&keeper_store, catalog->blob);
		catalog->blob = catalog->used = 0;
	} else {
		known = HASH_COUNT(sk->client_prepared_statements) - catalog->added;
	}
	catalog->added = 0;
	catalog->rewrite = false;
	return is_server ? append_server(sk, catalog) : append_client(sk, catalog, known);
}

/*
 * Folded catalogs.
 */

static struct KeeperEntries folded_entries(const struct KeeperCatalog *catalog)
{
	struct KeeperEntries cursor = { NULL };

	if (catalog->folded) {
		cursor.data = keeper_blob_data(keeper_store_blob(&keeper_store, catalog->blob));
		cursor.end = cursor.data + catalog->used;
	}
	return cursor;
}

/*
 * Whose entry is this?  Its text was read when the catalog was; since then
 * nobody should have written here, and if somebody has, that statement is gone.
 */
static PgPreparedStatement *statement_of(const struct KeeperEntries *at)
{
	uint32_t unit = at->entry.statement;
	PgPreparedStatement *ps = NULL;
	size_t len;
	const uint8_t *data = keeper_store_read_blob(&keeper_store, unit, KEEPER_BLOB_STATEMENT, &len);

	if (!data || at->entry.check != keeper_entry_check(&at->entry, at->name))
		return NULL;
	data += sizeof(ps->query_id);
	len -= sizeof(ps->query_id);
	HASH_FIND(hh, prepared_statements, data, len, ps);
	return ps && ps->keeper_blob == unit && ps->query_id == at->entry.query_id ? ps : NULL;
}

static void add_client_statement(PgSocket *client, PgPreparedStatement *ps, const struct KeeperEntries *at)
{
	size_t len = at->entry.name_length;
	PgClientPreparedStatement *client_ps = malloc(sizeof(*client_ps) + len + 1);

	if (!client_ps)
		die("keeper: out of memory");
	memcpy(client_ps->stmt_name, at->name, len);
	client_ps->stmt_name[len] = 0;
	client_ps->ps = ps;
	HASH_ADD_STR(client->client_prepared_statements, stmt_name, client_ps);
}

void keeper_unfold_catalog(PgSocket *client)
{
	struct KeeperCatalog *catalog = &keeper_local[client->keeper_slot].catalog;
	struct KeeperEntries cursor = folded_entries(catalog);

	while (keeper_next_entry(&cursor)) {
		PgPreparedStatement *ps = statement_of(&cursor);

		if (ps)
			add_client_statement(client, ps, &cursor);
	}
	catalog->folded = 0;
}

PgClientPreparedStatement *keeper_look_up_folded(PgSocket *client, const char *name)
{
	/* it is asked for ps alone */
	static PgClientPreparedStatement found;
	PgClientPreparedStatement *client_ps;
	struct KeeperCatalog *catalog = &keeper_local[client->keeper_slot].catalog;
	struct KeeperEntries cursor = folded_entries(catalog);
	size_t len = strlen(name);

	if (catalog->folded && catalog->lookups++ == FOLDED_LOOKUPS) {
		keeper_unfold_catalog(client);
		HASH_FIND_STR(client->client_prepared_statements, name, client_ps);
		return client_ps;
	}
	while (keeper_next_entry(&cursor)) {
		if (cursor.entry.name_length != len || memcmp(cursor.name, name, len) != 0)
			continue;
		found.ps = statement_of(&cursor);
		return found.ps ? &found : NULL;
	}
	return NULL;
}

void keeper_drop_folded(PgSocket *client)
{
	struct KeeperCatalog *catalog = &keeper_local[client->keeper_slot].catalog;
	struct KeeperEntries cursor = folded_entries(catalog);

	if (!catalog->folded)
		return;
	while (keeper_next_entry(&cursor)) {
		PgPreparedStatement *ps = statement_of(&cursor);

		if (ps && --ps->use_count == 0) {
			keeper_statement_freed(ps);
			HASH_DEL(prepared_statements, ps);
			free(ps);
		}
	}
	catalog->folded = 0;
	keeper_statement_removed(client);
}

unsigned keeper_folded_statements(const PgSocket *sk)
{
	return sk->keeper_slot ? keeper_local[sk->keeper_slot].catalog.folded : 0;
}
