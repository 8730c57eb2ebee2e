/*
 * pgkeeper - catalogs of prepared statements.
 *
 * A client's catalog maps its names to query ids, a server's is the set of ids
 * it has prepared, least recently used first.  Each is one append-only blob; a
 * statement's text is a blob of its own, shared as prepare.c shares it.
 */
#include "bouncer.h"

#include <usual/slab.h>
#include <usual/hashtab-impl.h>

#include "keeper/internal.h"

/* the hash function of prepare.c, whose tables these are */
#undef HASH_FUNCTION
#define HASH_FUNCTION HASH_BER

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
		uint32_t unit = keeper_store_new_blob(&keeper_store, KEEPER_BLOB_CATALOG,
						      2 * (catalog->used + sizeof(entry) + name_length));
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
 * Reading back.
 */

/* the statement with this blob, made if this is its first mention */
static PgPreparedStatement *statement_of(uint32_t unit)
{
	size_t len;
	const uint8_t *data = keeper_store_read_blob(&keeper_store, unit, KEEPER_BLOB_STATEMENT, &len);
	PgPreparedStatement *ps = NULL;
	uint64_t query_id;

	if (!data || len < sizeof(query_id))
		return NULL;
	memcpy(&query_id, data, sizeof(query_id));
	data += sizeof(query_id);
	len -= sizeof(query_id);
	/* a text with its final zero, and an id from which one can count on */
	if (!memchr(data, 0, len) || !query_id || query_id > INT64_MAX)
		return NULL;

	HASH_FIND(hh, prepared_statements, data, len, ps);
	if (ps)
		return ps->query_id == query_id ? ps : NULL;
	if (!keeper_store_keep_blob(&keeper_store, unit))
		return NULL;
	ps = calloc(1, sizeof(*ps) + len);
	if (!ps)
		return NULL;
	ps->query_id = query_id;
	ps->query_and_parameters_len = len;
	memcpy(ps->query_and_parameters, data, len);
	ps->stmt_name_len = snprintf(ps->stmt_name, sizeof(ps->stmt_name), PREPARED_STMT_NAME_FORMAT, query_id);
	ps->keeper_blob = unit;
	HASH_ADD(hh, prepared_statements, query_and_parameters, ps->query_and_parameters_len, ps);
	if (query_id > next_unique_query_id)
		next_unique_query_id = query_id;
	return ps;
}

static PgServerPreparedStatement *new_server_statement(PgPreparedStatement *ps)
{
	PgServerPreparedStatement *server_ps = slab_alloc(server_prepared_statement_cache);

	if (!server_ps)
		return NULL;
	server_ps->ps = ps;
	server_ps->query_id = ps->query_id;
	ps->use_count++;
	return server_ps;
}

PgServerPreparedStatement *keeper_closing_statement(uint32_t blob)
{
	PgPreparedStatement *ps = statement_of(blob);

	return ps ? new_server_statement(ps) : NULL;
}

static bool read_server_entry(PgSocket *server, PgPreparedStatement *ps)
{
	PgServerPreparedStatement *server_ps;

	HASH_FIND(hh, server->server_prepared_statements, &ps->query_id, sizeof(ps->query_id), server_ps);
	if (server_ps)
		return false;
	server_ps = new_server_statement(ps);
	return server_ps && add_prepared_statement(server, server_ps);
}

static bool read_client_entry(PgSocket *client, PgPreparedStatement *ps, const char *name, size_t len)
{
	PgClientPreparedStatement *known, *client_ps;

	HASH_FIND(hh, client->client_prepared_statements, name, len, known);
	if (known || memchr(name, 0, len))
		return false;
	client_ps = malloc(sizeof(*client_ps) + len + 1);
	if (!client_ps)
		return false;
	memcpy(client_ps->stmt_name, name, len);
	client_ps->stmt_name[len] = 0;
	client_ps->ps = ps;
	ps->use_count++;
	HASH_ADD_STR(client->client_prepared_statements, stmt_name, client_ps);
	return true;
}

bool keeper_catalog_read(PgSocket *sk, uint32_t unit, uint32_t used)
{
	size_t len;
	const uint8_t *data, *end;

	if (!unit)
		return used == 0;
	data = keeper_store_read_blob(&keeper_store, unit, KEEPER_BLOB_CATALOG, &len);
	if (!data || used > keeper_blob_capacity(keeper_store_blob(&keeper_store, unit)))
		return false;
	for (end = data + used; data < end; ) {
		struct KeeperCatalogEntry entry;
		const char *name = (const char *)data + sizeof(entry);
		PgPreparedStatement *ps;

		if ((size_t)(end - data) < sizeof(entry))
			return false;
		memcpy(&entry, data, sizeof(entry));
		if (entry.name_length > end - data - sizeof(entry) || entry.check != keeper_entry_check(&entry, name))
			return false;
		ps = statement_of(entry.statement);
		if (!ps || ps->query_id != entry.query_id)
			return false;
		if (is_server_socket(sk) ? !read_server_entry(sk, ps)
		    : !read_client_entry(sk, ps, name, entry.name_length))
			return false;
		data += sizeof(entry) + entry.name_length;
	}
	return true;
}
