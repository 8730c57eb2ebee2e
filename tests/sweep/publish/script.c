/*
 * A writer that does what pgbouncer does to its ledger, by dice.
 */
#include <stdlib.h>
#include <string.h>

#include "publish.h"

#define CL_ACTIVE	5
#define SV_ACTIVE	13
#define SERVER_TOKEN	(1ULL << 63)

struct Socket {
	struct KeeperCopy copy;		/* what serialize() says; kind KEEPER_FREE: no socket */
	uint32_t catalog, catalog_used;
};

static struct KeeperStore store;
static struct Socket socket_of[SLOTS + 1];
static uint32_t statement;
static uint64_t dice, last_token;
void (*script_before_commit)(void);

static unsigned roll(unsigned sides)
{
	dice ^= dice << 13;
	dice ^= dice >> 7;
	dice ^= dice << 17;
	return dice % sides;
}

static uint64_t serialize(unsigned slot, struct KeeperCopy *copy, unsigned which)
{
	const struct KeeperCopy *from = &socket_of[slot].copy;

	(void)which;
	memcpy(&copy->rx, &from->rx, offsetof(struct KeeperCopy, check) - offsetof(struct KeeperCopy, rx));
	memcpy(&copy->token, &from->token, sizeof(*copy) - offsetof(struct KeeperCopy, token));
	return keeper_check_hot(copy) + keeper_check_cold(copy);
}

static void scribble(uint8_t *to, size_t length)
{
	while (length--)
		*to++ = roll(256);
}

static uint32_t immutable_blob(enum KeeperBlobKind kind, const void *data, size_t length)
{
	uint32_t unit = keeper_store_new_blob(&store, kind, length);

	if (!unit)
		abort();
	memcpy(keeper_blob_data(keeper_store_blob(&store, unit)), data, length);
	keeper_store_finish_blob(&store, unit, length);
	return unit;
}

static void replace(uint32_t *unit_p, uint32_t unit)
{
	keeper_store_free_blob(&store, *unit_p);
	*unit_p = unit;
}

/* append-only: behind what is committed, or into a bigger blob */
static uint32_t append(enum KeeperBlobKind kind, uint32_t unit, uint32_t used, const void *data, size_t length)
{
	struct KeeperBlob *blob = unit ? keeper_store_blob(&store, unit) : NULL;

	if (!blob || used + length > keeper_blob_capacity(blob)) {
		uint32_t bigger = keeper_store_new_blob(&store, kind, used + length);

		if (!bigger)
			abort();
		if (blob)
			memcpy(keeper_blob_data(keeper_store_blob(&store, bigger)), keeper_blob_data(blob), used);
		keeper_store_free_blob(&store, unit);
		unit = bigger;
		blob = keeper_store_blob(&store, unit);
	}
	memcpy(keeper_blob_data(blob) + used, data, length);
	return unit;
}

static void change_record(uint32_t slot)
{
	struct Socket *s = &socket_of[slot];
	struct {
		struct KeeperSocketRecord fixed;
		uint16_t string[4];
	} record;
	struct {
		struct KeeperCatalogEntry entry;
		char name[12];
	} added;

	if (s->catalog_used < 4 * sizeof(added) && roll(2)) {
		memset(&added, 0, sizeof(added));
		added.entry.query_id = roll(1000);
		added.entry.statement = statement;
		added.entry.name_length = sizeof(added.name);
		scribble((uint8_t *)added.name, sizeof(added.name));
		added.entry.check = keeper_entry_check(&added.entry, added.name);
		s->catalog = append(KEEPER_BLOB_CATALOG, s->catalog, s->catalog_used, &added,
				    sizeof(added.entry) + sizeof(added.name));
		s->catalog_used += sizeof(added.entry) + sizeof(added.name);
	}
	memset(&record, 0, sizeof(record));
	memset(record.string, 0xff, sizeof(record.string));
	record.fixed.id = roll(1000000);
	record.fixed.catalog = s->catalog;
	record.fixed.catalog_used = s->catalog_used;
	replace(&s->copy.record, immutable_blob(KEEPER_BLOB_RECORD, &record, sizeof(record)));
	keeper_store_mark(&store, slot);
}

static void change_outbox(uint32_t slot)
{
	struct KeeperCopy *c = &socket_of[slot].copy;
	uint8_t data[20];

	if (c->outbox_len < 100) {
		scribble(data, sizeof(data));
		c->outbox = append(KEEPER_BLOB_OUTBOX, c->outbox, c->outbox_len, data, sizeof(data));
		c->outbox_len += sizeof(data);
	} else {
		replace(&c->outbox, 0);
		c->outbox_len = 0;
	}
	keeper_store_mark(&store, slot);
}

static void change_extra(uint32_t slot)
{
	uint8_t data[100];

	scribble(data, sizeof(data));
	replace(&socket_of[slot].copy.extra, immutable_blob(KEEPER_BLOB_EXTRA, data, 1 + roll(sizeof(data))));
	keeper_store_mark(&store, slot);
}

static void drop_iobuf(struct KeeperCopy *c)
{
	if (c->io)
		keeper_store_free_iobuf(&store, c->io);
	c->io = c->io_done = c->io_parse = c->io_recv = 0;
}

static void change_iobuf(uint32_t slot)
{
	struct KeeperCopy *c = &socket_of[slot].copy;
	uint8_t *data;

	if (c->io && c->io_recv > PKT_BUF / 2) {
		drop_iobuf(c);
	} else if (c->io || (c->io = keeper_store_new_iobuf(&store))) {
		data = (uint8_t *)keeper_store_iobuf(&store, c->io) + KEEPER_IOBUF_HEAD;
		scribble(data + c->io_recv, 40);
		c->io_done = c->io_parse;
		c->io_parse = c->io_recv;
		c->io_recv += 40;
	}
	c->rx += 40;
	keeper_store_mark(&store, slot);
}

static void unlink_slot(uint32_t slot)
{
	uint32_t other = socket_of[slot].copy.link;

	if (other) {
		socket_of[other].copy.link = socket_of[slot].copy.link = 0;
		keeper_store_mark(&store, other);
	}
	keeper_store_mark(&store, slot);
}

static void link_slot(uint32_t slot)
{
	uint32_t other;

	unlink_slot(slot);
	for (other = 1; other <= SLOTS; other++) {
		struct KeeperCopy *c = &socket_of[other].copy;

		if (c->kind != KEEPER_FREE && c->kind != socket_of[slot].copy.kind && !c->link) {
			c->link = slot;
			socket_of[slot].copy.link = other;
			keeper_store_mark(&store, other);
			return;
		}
	}
}

static void new_socket(void)
{
	uint32_t slot = keeper_store_new_slot(&store);
	struct Socket *s = &socket_of[slot];

	if (!slot)
		return;
	memset(s, 0, sizeof(*s));
	s->copy.token = ++last_token;
	if (roll(2)) {
		s->copy.kind = KEEPER_SERVER;
		s->copy.state = SV_ACTIVE;
		s->copy.token |= SERVER_TOKEN;
	} else {
		s->copy.kind = KEEPER_CLIENT;
		s->copy.state = CL_ACTIVE;
		store.watermark = last_token;
	}
	change_record(slot);
	change_iobuf(slot);
}

static void free_socket(uint32_t slot)
{
	struct Socket *s = &socket_of[slot];

	unlink_slot(slot);
	drop_iobuf(&s->copy);
	keeper_store_free_blob(&store, s->copy.record);
	keeper_store_free_blob(&store, s->copy.outbox);
	keeper_store_free_blob(&store, s->copy.extra);
	keeper_store_free_blob(&store, s->catalog);
	memset(s, 0, sizeof(*s));
	keeper_store_free_slot(&store, slot);
}

static void change_something(void)
{
	uint32_t slot = 1 + roll(SLOTS);

	if (socket_of[slot].copy.kind == KEEPER_FREE) {
		new_socket();
		return;
	}
	switch (roll(8)) {
	case 0:
		free_socket(slot);
		break;
	case 1:
	case 2:
		change_record(slot);
		break;
	case 3:
		change_outbox(slot);
		break;
	case 4:
		change_extra(slot);
		break;
	case 5:
		link_slot(slot);
		break;
	default:
		change_iobuf(slot);
	}
}

static void commit(void)
{
	uint32_t slot = 1 + roll(SLOTS);
	bool in_use = socket_of[slot].copy.kind != KEEPER_FREE;

	if (script_before_commit)
		script_before_commit();
	if (!keeper_store_commit(&store, serialize, in_use ? KEEPER_ACT_RECV : KEEPER_ACT_NONE, in_use ? slot : 0, 0))
		abort();
}

void script_start(void *base, size_t size, unsigned seed)
{
	unsigned i;

	if (store.header)
		keeper_store_detach(&store);
	memset(socket_of, 0, sizeof(socket_of));
	last_token = 0;
	dice = 88172645463325252ULL + seed;
	keeper_store_format(base, SLOTS, IOBUFS, PKT_BUF, UNITS);
	((struct KeeperHeader *)base)->incarnation = 1;
	if (keeper_store_attach(&store, base, size))
		abort();
	store.incarnation = 1;
	keeper_store_recover(&store);
	keeper_store_recovered(&store);
	statement = immutable_blob(KEEPER_BLOB_STATEMENT, "12345678select 1", 16);
	for (i = 0; i < 4; i++)
		new_socket();
	commit();
}

void script_step(void)
{
	unsigned changes = 2 + roll(5);

	while (changes--)
		change_something();
	commit();
}
