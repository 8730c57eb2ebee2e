/*
 * pgkeeper - adoption: catalogs of prepared statements, read back and checked.
 *
 * Catalogs may hold a million entries, and all clients wait meanwhile: here
 * nothing is allocated for an entry of a client.
 */
#include "bouncer.h"

#include <usual/slab.h>
#include <usual/hashtab-impl.h>

#include "keeper/internal.h"
#include "keeper/adopt.h"

/* the hash function of prepare.c, whose tables these are */
#undef HASH_FUNCTION
#define HASH_FUNCTION HASH_BER

/* by unit of its text, while catalogs are read */
static PgPreparedStatement **read_statement;

/* names seen in the catalog that is being read, by their hash */
static struct {
	struct {
		uint32_t catalog;	/* number of the catalog that it belongs to */
		uint32_t hash;
		uint32_t offset;	/* of its entry */
	} *place;
	uint32_t size;			/* 2 to the power of (32 - shift) */
	unsigned shift;
	uint32_t catalog;
} names;

void keeper_catalogs_begin(void)
{
	read_statement = calloc(keeper_store.header->units + 1, sizeof(*read_statement));
	if (!read_statement)
		die("keeper: out of memory");
}

void keeper_catalogs_end(void)
{
	free(read_statement);
	free(names.place);
	read_statement = NULL;
	memset(&names, 0, sizeof(names));
}

static PgPreparedStatement *read_text(uint32_t unit)
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

	/* each text has one blob */
	HASH_FIND(hh, prepared_statements, data, len, ps);
	if (ps || !keeper_store_keep_blob(&keeper_store, unit))
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

/* the statement with this blob, made if this is its first mention */
static PgPreparedStatement *statement_of(uint32_t unit)
{
	if (!unit || unit > keeper_store.header->units)
		return NULL;
	if (!read_statement[unit])
		read_statement[unit] = read_text(unit);
	return read_statement[unit];
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

/* memchr() for names, most of which are too short for it */
static bool has_zero(const char *name, size_t len)
{
	const uint64_t ones = UINT64_MAX / 255;
	const uint8_t *p = (const uint8_t *)name;
	uint64_t word;

	for (; len >= sizeof(word); len -= sizeof(word), p += sizeof(word)) {
		memcpy(&word, p, sizeof(word));
		if ((word - ones) & ~word & ones << 7)
			return true;
	}
	for (; len > 0; len--, p++) {
		if (!*p)
			return true;
	}
	return false;
}

/* room for the names of a catalog of so many bytes; none is seen yet */
static bool forget_names(uint32_t used)
{
	uint32_t most = used / sizeof(struct KeeperCatalogEntry);

	if (2 * most > names.size) {
		unsigned shift = 24;
		uint32_t size;

		while (1ULL << (32 - shift) < 2 * most)
			shift--;
		size = 1U << (32 - shift);
		free(names.place);
		names.size = 0;
		names.place = calloc(size, sizeof(*names.place));
		if (!names.place)
			return false;
		names.size = size;
		names.shift = shift;
		names.catalog = 0;
	}
	names.catalog++;
	return true;
}

/* false: this catalog has that name already */
static bool see_name(const uint8_t *start, const struct KeeperEntries *at, uint32_t hash)
{
	size_t len = at->entry.name_length;
	uint32_t mask = names.size - 1;
	/* the low bits of a check are much alike where names are */
	uint32_t i = (hash * 0x9e3779b1U) >> names.shift;

	for (; names.place[i].catalog == names.catalog; i = (i + 1) & mask) {
		struct KeeperCatalogEntry other;
		const uint8_t *entry = start + names.place[i].offset;

		if (names.place[i].hash != hash)
			continue;
		memcpy(&other, entry, sizeof(other));
		if (other.name_length == len && memcmp(entry + sizeof(other), at->name, len) == 0)
			return false;
	}
	names.place[i].catalog = names.catalog;
	names.place[i].hash = hash;
	names.place[i].offset = (const uint8_t *)at->name - sizeof(at->entry) - start;
	return true;
}

bool keeper_catalog_read(PgSocket *sk, uint32_t unit, uint32_t used)
{
	struct KeeperCatalog *catalog = &keeper_local[sk->keeper_slot].catalog;
	bool is_server = is_server_socket(sk);
	size_t len;
	const uint8_t *start;
	struct KeeperEntries cursor;

	if (!unit)
		return used == 0;
	start = keeper_store_read_blob(&keeper_store, unit, KEEPER_BLOB_CATALOG, &len);
	if (!start || used > keeper_blob_capacity(keeper_store_blob(&keeper_store, unit)) || !forget_names(used))
		return false;
	cursor.data = start;
	cursor.end = start + used;
	/* what is counted in vain is given back with the socket */
	for (catalog->used = 0; keeper_next_entry(&cursor); catalog->used = cursor.data - start) {
		uint32_t hash = keeper_blob_check(cursor.name, cursor.entry.name_length);
		PgPreparedStatement *ps;

		if (cursor.entry.check != keeper_named_entry_check(&cursor.entry, hash))
			return false;
		ps = statement_of(cursor.entry.statement);
		if (!ps || ps->query_id != cursor.entry.query_id)
			return false;
		if (is_server) {
			if (!read_server_entry(sk, ps))
				return false;
			continue;
		}
		if (has_zero(cursor.name, cursor.entry.name_length) || !see_name(start, &cursor, hash))
			return false;
		ps->use_count++;
		catalog->folded++;
	}
	return catalog->used == used;
}
