/*
 * What a ledger says, read by the rules of docs/ledger-format.md alone.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "publish.h"

static char wrong[200];

static const struct KeeperCopy *true_copy(const struct KeeperHeader *header, const struct KeeperSlot *slot)
{
	const struct KeeperCopy *best = NULL;
	int i;

	for (i = 0; i < 2; i++) {
		const struct KeeperCopy *copy = &slot->copy[i];

		if (copy->epoch && copy->epoch <= header->commit && (!best || copy->epoch > best->epoch))
			best = copy;
	}
	return best;
}

static uint64_t hash_bytes(uint64_t hash, const uint8_t *data, size_t length)
{
	while (length--)
		hash = (hash ^ *data++) * 0x100000001b3ULL;
	return hash;
}

struct Reading {
	const struct KeeperHeader *header;
	const uint8_t *base;
	uint64_t hash;
	unsigned slot;
	bool torn;
};

static const uint8_t *blob(struct Reading *r, uint32_t unit, uint32_t kind, size_t used)
{
	const struct KeeperBlob *b = (const struct KeeperBlob *)
				     (r->base + r->header->heap_offset + (size_t)(unit - 1) * KEEPER_UNIT);
	const uint8_t *data = (const uint8_t *)(b + 1);
	bool grows = kind == KEEPER_BLOB_OUTBOX || kind == KEEPER_BLOB_CATALOG;

	if (unit < 1 || unit > UNITS || b->kind != kind || !b->units || b->units > UNITS - unit + 1) {
		snprintf(wrong, sizeof(wrong), "slot %u: no blob of kind %u at unit %u", r->slot, kind, unit);
		r->torn = true;
		return NULL;
	}
	if (!grows)
		used = b->length;
	if (used > (size_t)b->units * KEEPER_UNIT - sizeof(*b) || (!grows && b->check != keeper_blob_check(data, used))) {
		snprintf(wrong, sizeof(wrong), "slot %u: its blob of kind %u is torn", r->slot, kind);
		r->torn = true;
		return NULL;
	}
	r->hash = hash_bytes(r->hash, data, used);
	return data;
}

static void read_catalog(struct Reading *r, const struct KeeperSocketRecord *record)
{
	const uint8_t *at = blob(r, record->catalog, KEEPER_BLOB_CATALOG, record->catalog_used);
	const uint8_t *end = at + record->catalog_used;

	while (!r->torn && at < end) {
		struct KeeperCatalogEntry entry;

		memcpy(&entry, at, sizeof(entry));
		at += sizeof(entry);
		if (entry.name_length > end - at || entry.check != keeper_entry_check(&entry, (const char *)at)) {
			snprintf(wrong, sizeof(wrong), "slot %u: an entry of its catalog is torn", r->slot);
			r->torn = true;
			return;
		}
		at += entry.name_length;
		blob(r, entry.statement, KEEPER_BLOB_STATEMENT, 0);
	}
}

static void read_contents(struct Reading *r, const struct KeeperCopy *c)
{
	struct KeeperSocketRecord record;
	const uint8_t *data;

	if (c->outbox)
		blob(r, c->outbox, KEEPER_BLOB_OUTBOX, c->outbox_len);
	if (c->extra)
		blob(r, c->extra, KEEPER_BLOB_EXTRA, 0);
	if (c->io)
		r->hash = hash_bytes(r->hash, r->base + r->header->iobuf_offset
				     + (size_t)(c->io - 1) * r->header->iobuf_size + KEEPER_IOBUF_HEAD, c->io_recv);
	data = blob(r, c->record, KEEPER_BLOB_RECORD, 0);
	if (!data)
		return;
	memcpy(&record, data, sizeof(record));
	if (record.catalog)
		read_catalog(r, &record);
}

const char *read_state(const void *base, struct State *state)
{
	struct Reading r = { base, base, 0, 0, false };

	memset(state, 0, sizeof(*state));
	state->commit = r.header->commit;
	state->act = r.header->act[state->commit & 1];
	if (state->act.epoch != state->commit)
		return "the act record is not the commit word's";
	for (r.slot = 1; r.slot <= SLOTS && !r.torn; r.slot++) {
		const struct KeeperSlot *slot = (const struct KeeperSlot *)(r.base + r.header->slot_offset) + r.slot - 1;
		const struct KeeperCopy *copy = true_copy(r.header, slot);

		if (!copy)
			continue;
		if (copy->check != keeper_check(copy, r.slot)) {
			snprintf(wrong, sizeof(wrong), "slot %u: the check of its copy fails", r.slot);
			return wrong;
		}
		state->copy[r.slot] = *copy;
		r.hash = 0xcbf29ce484222325ULL;
		if (copy->kind == KEEPER_CLIENT || copy->kind == KEEPER_SERVER)
			read_contents(&r, copy);
		state->contents[r.slot] = r.hash;
	}
	return r.torn ? wrong : NULL;
}

/*
 * Adoption, as far as the store is concerned.
 */

static uint64_t fill(unsigned slot, struct KeeperCopy *copy, unsigned which)
{
	(void)slot;
	(void)which;
	memset(&copy->rx, 0, sizeof(*copy) - offsetof(struct KeeperCopy, rx));
	copy->kind = KEEPER_POOL;
	return keeper_check_hot(copy) + keeper_check_cold(copy);
}

static const char *keep(struct KeeperStore *store, const struct KeeperCopy *c)
{
	struct KeeperSocketRecord record;
	size_t length;
	const uint8_t *data = keeper_store_read_blob(store, c->record, KEEPER_BLOB_RECORD, &length);

	if (!data)
		return "adoption cannot read a record";
	memcpy(&record, data, sizeof(record));
	if ((c->io && !keeper_store_keep_iobuf(store, c->io)) || !keeper_store_keep_blob(store, c->record)
	    || (c->outbox && !keeper_store_keep_blob(store, c->outbox))
	    || (c->extra && !keeper_store_keep_blob(store, c->extra))
	    || (record.catalog && !keeper_store_keep_blob(store, record.catalog)))
		return "adoption finds something owned twice";
	if (record.catalog) {
		struct KeeperCatalogEntry entry;

		memcpy(&entry, keeper_blob_data(keeper_store_blob(store, record.catalog)), sizeof(entry));
		/* shared: kept already is as good */
		(void)keeper_store_keep_blob(store, entry.statement);
	}
	return NULL;
}

/* take all that is free, overwrite it, and commit */
static const char *commit_something_else(struct KeeperStore *store, uint32_t *slot_p)
{
	uint32_t number;

	while ((number = keeper_store_new_iobuf(store)) != 0)
		memset(keeper_store_iobuf(store, number), 0xee, store->header->iobuf_size);
	while ((number = keeper_store_new_blob(store, KEEPER_BLOB_DOOM, 1)) != 0)
		memset(keeper_store_blob(store, number), 0xee, KEEPER_UNIT);
	*slot_p = keeper_store_new_slot(store);
	if (*slot_p)
		keeper_store_mark(store, *slot_p);
	return keeper_store_commit(store, fill, KEEPER_ACT_NONE, 0, 0) ? NULL : "adoption cannot commit";
}

const char *survives_adoption(const void *base, size_t size, const struct State *expected)
{
	static void *memory;
	static struct State after;
	struct KeeperStore store;
	const char *bad;
	uint32_t slot, added = 0;

	if (!memory)
		memory = aligned_alloc(4096, size);
	memcpy(memory, base, size);
	bad = keeper_store_attach(&store, memory, size);
	if (bad)
		return bad;
	store.incarnation = store.header->incarnation;
	keeper_store_recover(&store);
	for (slot = 1; slot <= SLOTS && !bad; slot++) {
		const struct KeeperCopy *copy = keeper_store_copy(&store, slot);

		if (copy->epoch && copy->kind != KEEPER_FREE)
			bad = keep(&store, copy);
	}
	if (!bad) {
		keeper_store_recovered(&store);
		bad = commit_something_else(&store, &added);
	}
	keeper_store_detach(&store);
	if (!bad)
		bad = read_state(memory, &after);
	for (slot = 1; slot <= SLOTS && !bad; slot++) {
		if (slot == added) {
			if (expected->copy[slot].kind != KEEPER_FREE)
				bad = "adoption gave out a slot that is in use";
		} else if (memcmp(&after.copy[slot], &expected->copy[slot], sizeof(after.copy[slot])) != 0
			   || after.contents[slot] != expected->contents[slot]) {
			snprintf(wrong, sizeof(wrong), "slot %u: adoption's first commit changed it", slot);
			bad = wrong;
		}
	}
	return bad;
}
