/*
 * pgkeeper - the ledger as a store.  See store.h.
 */
#include <stdlib.h>
#include <string.h>

#include "keeper/store.h"
#include "keeper/signature.h"

#define KEEPER_TAKEN	0xff
#define KEEPER_KEPT	0xfe	/* only while recovering */
#define PAGE		4096
#define LARGE_BLOB	64	/* units: 4 kB */

static size_t round_up(size_t value, size_t to)
{
	return (value + to - 1) / to * to;
}

static size_t iobuf_size(uint32_t pkt_buf)
{
	return round_up(KEEPER_IOBUF_HEAD + pkt_buf, 64);
}

static size_t iobuf_offset(uint32_t slots)
{
	return round_up(KEEPER_HEADER_SIZE + (size_t)slots * sizeof(struct KeeperSlot), PAGE);
}

static size_t heap_offset(uint32_t slots, uint32_t iobufs, uint32_t pkt_buf)
{
	return round_up(iobuf_offset(slots) + (size_t)iobufs * iobuf_size(pkt_buf), PAGE);
}

size_t keeper_store_size(uint32_t slots, uint32_t iobufs, uint32_t pkt_buf, uint32_t units)
{
	return round_up(heap_offset(slots, iobufs, pkt_buf) + (size_t)units * KEEPER_UNIT, PAGE);
}

void keeper_store_format(void *base, uint32_t slots, uint32_t iobufs, uint32_t pkt_buf, uint32_t units)
{
	struct KeeperHeader *header = base;

	header->version = KEEPER_FORMAT_VERSION;
	header->layout = KEEPER_FORMAT_LAYOUT;
	header->header_size = KEEPER_HEADER_SIZE;
	header->signature = KEEPER_SIGNATURE;
	header->size = keeper_store_size(slots, iobufs, pkt_buf, units);
	header->slots = slots;
	header->iobufs = iobufs;
	header->iobuf_size = iobuf_size(pkt_buf);
	header->pkt_buf = pkt_buf;
	header->units = units;
	header->slot_offset = KEEPER_HEADER_SIZE;
	header->iobuf_offset = iobuf_offset(slots);
	header->heap_offset = heap_offset(slots, iobufs, pkt_buf);
	__atomic_store_n(&header->magic, KEEPER_MAGIC, __ATOMIC_RELEASE);
}

static const char *check_header(const struct KeeperHeader *h, size_t size)
{
	if (size < KEEPER_HEADER_SIZE || h->magic != KEEPER_MAGIC)
		return "not a ledger";
	/* who knows a newer format has other names for what is spare to us */
	if (h->layout != KEEPER_FORMAT_LAYOUT || (h->version == KEEPER_FORMAT_VERSION && h->signature != KEEPER_SIGNATURE))
		return "a ledger of another format";
	if (h->size > size || h->size != keeper_store_size(h->slots, h->iobufs, h->pkt_buf, h->units))
		return "a ledger of the wrong size";
	if (h->slot_offset != KEEPER_HEADER_SIZE || h->iobuf_offset != iobuf_offset(h->slots)
	    || h->heap_offset != heap_offset(h->slots, h->iobufs, h->pkt_buf)
	    || h->iobuf_size != iobuf_size(h->pkt_buf))
		return "a ledger with wrong offsets";
	return NULL;
}

const char *keeper_store_attach(struct KeeperStore *store, void *base, size_t size)
{
	struct KeeperHeader *h = base;
	const char *wrong = check_header(h, size);

	if (wrong)
		return wrong;
	memset(store, 0, sizeof(*store));
	store->header = h;
	store->size = size;
	store->format = KEEPER_FORMAT_VERSION;
	store->slot = (struct KeeperSlot *)((uint8_t *)base + h->slot_offset) - 1;
	store->iobuf = (uint8_t *)base + h->iobuf_offset;
	store->iobuf_size = h->iobuf_size;
	store->iobufs = h->iobufs;
	store->heap = (uint8_t *)base + h->heap_offset;

	store->place = calloc(h->slots + 1, sizeof(*store->place));
	store->dirty = calloc(h->slots + 1, sizeof(*store->dirty));
	store->free_slot = calloc(h->slots + 1, sizeof(*store->free_slot));
	store->freed_slot = calloc(h->slots + 1, sizeof(*store->freed_slot));
	store->free_iobuf = calloc(h->iobufs + 1, sizeof(*store->free_iobuf));
	store->freed_iobuf = calloc(h->iobufs + 1, sizeof(*store->freed_iobuf));
	store->order = calloc(h->units + 2, sizeof(*store->order));
	store->next = calloc(h->units + 2, sizeof(*store->next));
	store->prev = calloc(h->units + 2, sizeof(*store->prev));
	store->max_freed_blob = 1024;
	store->freed_blob = calloc(store->max_freed_blob, sizeof(*store->freed_blob));
	if (!store->place || !store->dirty || !store->free_slot || !store->freed_slot || !store->free_iobuf
	    || !store->freed_iobuf || !store->order || !store->next || !store->prev || !store->freed_blob) {
		keeper_store_detach(store);
		return "no memory for the ledger's lists";
	}
	/* who has no slot is marked already */
	store->place[0] = KEEPER_MARKED;
	memset(store->order, KEEPER_TAKEN, h->units + 2);
	return NULL;
}

void keeper_store_detach(struct KeeperStore *store)
{
	free(store->place);
	free(store->dirty);
	free(store->free_slot);
	free(store->freed_slot);
	free(store->free_iobuf);
	free(store->freed_iobuf);
	free(store->order);
	free(store->next);
	free(store->prev);
	free(store->freed_blob);
	memset(store, 0, sizeof(*store));
}

/*
 * Heap: a buddy allocator.  Blocks are 2^order units, aligned to their size
 * when counted from 0; unit numbers start at 1.
 */

static void push_block(struct KeeperStore *store, uint32_t unit, unsigned order)
{
	uint32_t head = store->free_block[order];

	store->order[unit] = order;
	store->next[unit] = head;
	store->prev[unit] = 0;
	if (head)
		store->prev[head] = unit;
	store->free_block[order] = unit;
}

static void remove_block(struct KeeperStore *store, uint32_t unit)
{
	unsigned order = store->order[unit];

	if (store->prev[unit])
		store->next[store->prev[unit]] = store->next[unit];
	else
		store->free_block[order] = store->next[unit];
	if (store->next[unit])
		store->prev[store->next[unit]] = store->prev[unit];
	store->order[unit] = KEEPER_TAKEN;
}

static void release_block(struct KeeperStore *store, uint32_t unit, unsigned order)
{
	store->free_units += 1U << order;
	for (; order < 31; order++) {
		uint32_t buddy = ((unit - 1) ^ (1U << order)) + 1;

		if (buddy + (1ULL << order) - 1 > store->header->units || store->order[buddy] != order)
			break;
		remove_block(store, buddy);
		if (buddy < unit)
			unit = buddy;
	}
	push_block(store, unit, order);
}

/* free units start..end-1, in the largest aligned blocks they hold */
static void release_run(struct KeeperStore *store, uint32_t start, uint32_t end)
{
	while (start < end) {
		unsigned order = 31 - __builtin_clz(end - start);

		if (start > 1 && (unsigned)__builtin_ctz(start - 1) < order)
			order = __builtin_ctz(start - 1);
		store->free_units += 1U << order;
		push_block(store, start, order);
		start += 1U << order;
	}
}

static unsigned order_for(uint32_t units)
{
	return units <= 1 ? 0 : 32 - __builtin_clz(units - 1);
}

static size_t units_for(size_t length)
{
	return (length + sizeof(struct KeeperBlob) + KEEPER_UNIT - 1) / KEEPER_UNIT;
}

static bool is_append_only(uint32_t kind)
{
	return kind == KEEPER_BLOB_OUTBOX || kind == KEEPER_BLOB_CATALOG || kind == KEEPER_BLOB_PACKET;
}

static bool is_unbounded(uint32_t kind)
{
	return kind == KEEPER_BLOB_CATALOG || kind == KEEPER_BLOB_STATEMENT;
}

uint32_t keeper_store_new_blob(struct KeeperStore *store, enum KeeperBlobKind kind, size_t length)
{
	size_t units = units_for(length);
	unsigned want, order;
	uint32_t unit;
	struct KeeperBlob *blob;

	if (units > store->header->units)
		return 0;
	want = order_for(units);
	/* what is large or grows without bounds must not starve the records of sessions and pools */
	if ((units > LARGE_BLOB || is_unbounded(kind)) && store->free_units < (1U << want) + store->header->units / 4)
		return 0;
	for (order = want; order < 32 && !store->free_block[order]; order++) {
	}
	if (order == 32)
		return 0;
	unit = store->free_block[order];
	remove_block(store, unit);
	while (order > want) {
		order--;
		push_block(store, unit + (1U << order), order);
	}
	store->free_units -= 1U << want;
	blob = keeper_store_blob(store, unit);
	blob->units = 1U << want;
	blob->length = 0;
	blob->kind = kind;
	blob->check = is_append_only(kind) ? keeper_head_check(unit, blob->units, kind) : 0;
	return unit;
}

void keeper_store_finish_blob(struct KeeperStore *store, uint32_t unit, size_t length)
{
	struct KeeperBlob *blob = keeper_store_blob(store, unit);

	blob->length = length;
	blob->check = keeper_blob_check(keeper_blob_data(blob), length);
}

void keeper_store_free_blob(struct KeeperStore *store, uint32_t unit)
{
	if (!unit)
		return;
	if (store->n_freed_blob == store->max_freed_blob) {
		uint32_t *more = realloc(store->freed_blob, 2 * store->max_freed_blob * sizeof(*more));

		/* out of memory: the blob stays taken until the next adoption */
		if (!more)
			return;
		store->freed_blob = more;
		store->max_freed_blob *= 2;
	}
	store->freed_blob[store->n_freed_blob++] = unit;
	store->freed++;
}

const uint8_t *keeper_store_read_blob(const struct KeeperStore *store, uint32_t unit,
				      enum KeeperBlobKind kind, size_t *length_p)
{
	struct KeeperBlob *blob;

	if (!unit || unit > store->header->units)
		return NULL;
	blob = keeper_store_blob(store, unit);
	if (blob->kind != kind || !blob->units || blob->units > store->header->units - unit + 1
	    || blob->length > keeper_blob_capacity(blob))
		return NULL;
	if (is_append_only(kind)) {
		if (blob->check != keeper_head_check(unit, blob->units, kind))
			return NULL;
	} else if (blob->units != 1U << order_for(units_for(blob->length))
		   || blob->check != keeper_blob_check(keeper_blob_data(blob), blob->length)) {
		return NULL;
	}
	*length_p = blob->length;
	return keeper_blob_data(blob);
}

/*
 * Slots: a stack, as IOBufs.
 */

uint32_t keeper_store_new_slot(struct KeeperStore *store)
{
	return store->n_free_slot ? store->free_slot[--store->n_free_slot] : 0;
}

void keeper_store_free_slot(struct KeeperStore *store, uint32_t slot)
{
	store->freed_slot[store->n_freed_slot++] = slot;
	store->freed++;
}

/*
 * Recovery.
 */

const struct KeeperActRecord *keeper_store_act(const struct KeeperStore *store)
{
	return &store->header->act[store->epoch & 1];
}

/* whoever reads it next finds it damaged, also if we die before we have dealt with that */
static void disown(struct KeeperCopy *copy, uint32_t slot)
{
	copy->check = ~keeper_check(copy, slot);
}

void keeper_store_recover(struct KeeperStore *store)
{
	uint32_t slot;
	int i;

	store->epoch = __atomic_load_n(&store->header->commit, __ATOMIC_ACQUIRE);
	store->watermark = keeper_store_act(store)->watermark;
	/* the dead one's notes stand until our first commit: write over none of them */
	store->n_reads = KEEPER_READS;
	for (slot = 1; slot <= store->header->slots; slot++) {
		struct KeeperCopy *copy = store->slot[slot].copy;

		for (i = 0; i < 2; i++) {
			/* nobody has come further than to the next one: what would stand in is older than the truth */
			if (copy[i].epoch > store->epoch + 1)
				disown(&copy[!i], slot);
			if (copy[i].epoch > store->epoch)
				copy[i].epoch = 0;
		}
		store->place[slot] = i = copy[1].epoch > copy[0].epoch;
		/* one that was being filled has epoch 0: this one was written over, and may be the newer one */
		if (copy[!i].epoch && copy[!i].check != keeper_check(&copy[!i], slot))
			disown(&copy[i], slot);
	}
}

bool keeper_store_keep_iobuf(struct KeeperStore *store, uint32_t number)
{
	/* while recovering, freed_iobuf[number - 1] says whether it is kept */
	if (!number || number > store->header->iobufs || store->freed_iobuf[number - 1])
		return false;
	store->freed_iobuf[number - 1] = 1;
	return true;
}

bool keeper_store_keep_blob(struct KeeperStore *store, uint32_t unit)
{
	const struct KeeperBlob *blob;

	if (!unit || unit > store->header->units)
		return false;
	blob = keeper_store_blob(store, unit);
	/* a power of two, aligned, inside the heap, nobody else's: as new_blob makes them */
	if (!blob->units || (blob->units & (blob->units - 1)) || ((unit - 1) & (blob->units - 1))
	    || blob->units > store->header->units - unit + 1)
		return false;
	if (memchr(store->order + unit, KEEPER_KEPT, blob->units))
		return false;
	memset(store->order + unit, KEEPER_KEPT, blob->units);
	return true;
}

void keeper_store_recovered(struct KeeperStore *store)
{
	uint32_t i, end;

	/* lowest numbers on top: few pages are touched while little is stored */
	for (i = store->header->slots; i >= 1; i--) {
		const struct KeeperCopy *copy = keeper_store_copy(store, i);

		if (!copy->epoch || copy->kind == KEEPER_FREE)
			store->free_slot[store->n_free_slot++] = i;
	}
	for (i = store->header->iobufs; i >= 1; i--) {
		if (!store->freed_iobuf[i - 1])
			store->free_iobuf[store->n_free_iobuf++] = i;
		store->freed_iobuf[i - 1] = 0;
	}
	for (i = 1; i <= store->header->units; i = end) {
		const uint8_t *kept = memchr(store->order + i, KEEPER_KEPT, store->header->units + 1 - i);

		end = kept ? kept - store->order : store->header->units + 1;
		release_run(store, i, end);
		for (; end <= store->header->units && store->order[end] == KEEPER_KEPT; end++)
			store->order[end] = KEEPER_TAKEN;
	}
}

void keeper_store_forget_damage(struct KeeperStore *store)
{
	uint32_t slot;

	for (slot = 1; slot <= store->header->slots; slot++) {
		struct KeeperCopy *stale = &store->slot[slot].copy[~store->place[slot] & KEEPER_CURRENT];

		if (stale->check != keeper_check(stale, slot))
			stale->epoch = 0;
	}
}

/*
 * Reads.
 */

const struct KeeperRead *keeper_store_read_note(const struct KeeperStore *store, uint32_t slot)
{
	unsigned i;

	/* the youngest: an earlier one may have found nothing to read */
	for (i = KEEPER_READS; i-- > 0; ) {
		const struct KeeperRead *note = &store->header->read[i];

		if (note->epoch == store->epoch && note->slot == slot)
			return note;
	}
	return NULL;
}

/*
 * After a commit.
 */

void keeper_store_hand_out_freed(struct KeeperStore *store)
{
	while (store->n_freed_slot)
		store->free_slot[store->n_free_slot++] = store->freed_slot[--store->n_freed_slot];
	while (store->n_freed_blob) {
		uint32_t unit = store->freed_blob[--store->n_freed_blob];

		release_block(store, unit, order_for(keeper_store_blob(store, unit)->units));
	}
	keeper_store_hand_out_iobufs(store);
}
