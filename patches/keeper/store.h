/*
 * pgkeeper - the ledger as a store: slots, IOBufs and blobs under one commit word.
 *
 * Knows nothing of PgBouncer.  One thread writes.  A SIGKILL leaves a prefix
 * of its stores, in program order; what these functions promise is that every
 * such prefix reads back as one of the committed states.
 */
#ifndef KEEPER_STORE_H
#define KEEPER_STORE_H

#include <stdbool.h>

#include "keeper/format.h"

/*
 * Fills one of a slot's copies, which is number 0 or 1, from the live objects:
 * everything but epoch and check.  Returns what these words add to its check:
 * keeper_check_hot() + keeper_check_cold().
 */
typedef uint64_t (*keeper_serialize_fn)(unsigned slot, struct KeeperCopy *copy, unsigned which);

/* what the writer knows of a slot's copies, in a byte */
enum {
	KEEPER_CURRENT = 1,	/* number of the true one */
	KEEPER_MARKED = 2,	/* on the list of the next commit */
};

struct KeeperStore {
	/* of each mark, note and commit: one cache line */
	uint8_t *place;			/* [0..slots], 0 for who has none */
	struct KeeperSlot *slot;	/* [1..slots] */
	uint32_t *dirty;
	struct KeeperHeader *header;
	uint64_t epoch;			/* what the commit word says */
	uint64_t watermark;		/* goes into the next commit */
	uint64_t incarnation;		/* ours; another one in the header stops us */
	uint32_t n_dirty;
	uint16_t n_reads;		/* noted since the last commit */
	uint16_t handling;		/* events, one within another: the user's own count */

	/* of each IOBuf that comes and goes: another */
	uint8_t *iobuf;			/* first byte of IOBuf 1 */
	uint32_t iobuf_size;		/* as in the header */
	uint32_t iobufs;
	uint32_t *free_iobuf;
	uint32_t *freed_iobuf;		/* usable after the next commit, as all that was freed */
	uint32_t n_free_iobuf, n_freed_iobuf;
	uint32_t freed;			/* of all kinds */

	uint8_t *heap;			/* first byte of unit 1 */
	size_t size;
	uint32_t format;		/* in which the ledger is read and written */
	uint32_t *free_slot, n_free_slot;
	uint32_t *freed_slot, n_freed_slot;
	uint32_t *freed_blob, n_freed_blob, max_freed_blob;

	/* buddy allocator over the heap's units; nothing of it is in the ledger */
	uint8_t *order;			/* of a free block, at its first unit; else KEEPER_TAKEN */
	uint32_t *next, *prev;
	uint32_t free_block[32];
	uint32_t free_units;
} __attribute__((aligned(64)));
_Static_assert(offsetof(struct KeeperStore, iobuf) == 64, "what is hottest fits into a cache line");

/* size in bytes of a ledger with so many slots, IOBufs of pkt_buf bytes and heap units */
size_t keeper_store_size(uint32_t slots, uint32_t iobufs, uint32_t pkt_buf, uint32_t units);

/* write a header into zeroed memory; the hanger does the same in Python */
void keeper_store_format(void *base, uint32_t slots, uint32_t iobufs, uint32_t pkt_buf, uint32_t units);

/*
 * Attach to a ledger.  Returns NULL, or what is wrong with it.  Writes nothing
 * into it: a standby may be attached while another process writes.
 */
const char *keeper_store_attach(struct KeeperStore *store, void *base, size_t size);
void keeper_store_detach(struct KeeperStore *store);

/*
 * The former writer is dead.  Scrub copies that lie beyond the commit word, so
 * that our first commit cannot make them true.  Everything counts as free
 * until keeper_store_keep_*() says that a true copy needs it; then
 * keeper_store_recovered() hands the rest to the allocators.
 */
void keeper_store_recover(struct KeeperStore *store);
static inline const struct KeeperCopy *keeper_store_copy(const struct KeeperStore *store, unsigned slot)
{
	return &store->slot[slot].copy[store->place[slot] & KEEPER_CURRENT];
}

bool keeper_store_keep_iobuf(struct KeeperStore *store, uint32_t number);
bool keeper_store_keep_blob(struct KeeperStore *store, uint32_t unit);
void keeper_store_recovered(struct KeeperStore *store);
/*
 * After the first commit: it has made every damaged slot whole, and what was
 * damaged is a stale copy, beside which the next owner's would be distrusted.
 */
void keeper_store_forget_damage(struct KeeperStore *store);

/* whether this code reads and writes a format */
static inline bool keeper_store_knows(uint32_t format)
{
	return format >= KEEPER_FORMAT_OLDEST && format <= KEEPER_FORMAT_VERSION;
}

/* the act that was committed last */
const struct KeeperActRecord *keeper_store_act(const struct KeeperStore *store);

/* slots; 0: none left */
uint32_t keeper_store_new_slot(struct KeeperStore *store);
void keeper_store_free_slot(struct KeeperStore *store, uint32_t slot);

/* IOBufs: index, or 0 where none is left */
static inline uint32_t keeper_store_new_iobuf(struct KeeperStore *store)
{
	return store->n_free_iobuf ? store->free_iobuf[--store->n_free_iobuf] : 0;
}

static inline void keeper_store_free_iobuf(struct KeeperStore *store, uint32_t number)
{
	store->freed_iobuf[store->n_freed_iobuf++] = number;
	store->freed++;
}

static inline void *keeper_store_iobuf(const struct KeeperStore *store, uint32_t number)
{
	return store->iobuf + (size_t)(number - 1) * store->iobuf_size;
}

/* number of the IOBuf that holds this address, or 0 */
static inline uint32_t keeper_store_iobuf_of(const struct KeeperStore *store, const void *address)
{
	size_t offset = (const uint8_t *)address - store->iobuf;

	if ((const uint8_t *)address < store->iobuf)
		return 0;
	offset /= store->iobuf_size;
	return offset < store->iobufs ? offset + 1 : 0;
}

/*
 * Blobs.  new_blob gives at least so many payload bytes, uninitialized, or 0
 * when the heap is full; finish_blob sets length and check of an immutable one.
 */
uint32_t keeper_store_new_blob(struct KeeperStore *store, enum KeeperBlobKind kind, size_t length);
void keeper_store_finish_blob(struct KeeperStore *store, uint32_t unit, size_t length);
void keeper_store_free_blob(struct KeeperStore *store, uint32_t unit);

static inline struct KeeperBlob *keeper_store_blob(const struct KeeperStore *store, uint32_t unit)
{
	return (struct KeeperBlob *)(store->heap + (size_t)(unit - 1) * KEEPER_UNIT);
}

static inline uint8_t *keeper_blob_data(struct KeeperBlob *blob)
{
	return (uint8_t *)(blob + 1);
}

static inline size_t keeper_blob_capacity(const struct KeeperBlob *blob)
{
	return (size_t)blob->units * KEEPER_UNIT - sizeof(*blob);
}

/*
 * The payload of a blob that a true copy names: NULL unless number, kind,
 * length and check are right.  Append-only kinds are checked by their users.
 */
const uint8_t *keeper_store_read_blob(const struct KeeperStore *store, uint32_t unit,
				      enum KeeperBlobKind kind, size_t *length_p);

/* this slot's live object differs from its true copy; 0: nobody's */
static inline void keeper_store_mark(struct KeeperStore *store, uint32_t slot)
{
	if (!(store->place[slot] & KEEPER_MARKED)) {
		store->place[slot] |= KEEPER_MARKED;
		store->dirty[store->n_dirty++] = slot;
	}
}

/* what a commit writes of a slot's copies */
static inline void keeper_store_prefetch(const struct KeeperStore *store, uint32_t slot)
{
	const struct KeeperCopy *copy = store->slot[slot].copy;

	__builtin_prefetch(&copy[0].epoch, 1);
	__builtin_prefetch(&copy[0].query_start, 1);
	__builtin_prefetch(&copy[1].epoch, 1);
	__builtin_prefetch(&copy[1].query_start, 1);
}

/*
 * May a note of where a recv of this slot puts its bytes stand in for a commit
 * before it?  Only if it and the true copy, which must be the present owner's,
 * tell exactly where all of the slot's unread bytes lie.
 */
static inline bool keeper_store_notable(const struct KeeperStore *store, uint32_t slot, uint64_t rx, uint32_t iobuf,
					uint32_t position)
{
	const struct KeeperCopy *copy = keeper_store_copy(store, slot);
	bool appends = copy->io == iobuf && copy->io_recv == position;
	bool starts = copy->io_done == copy->io_recv;

	return copy->rx == rx && (appends || starts);
}

/* Note it.  False if there is no room for another note, or no IOBuf: then the recv must be committed. */
static inline bool keeper_store_note_read(struct KeeperStore *store, uint32_t slot, uint64_t rx, uint32_t iobuf,
					  uint32_t position)
{
	struct KeeperRead *note;

	if (store->n_reads == KEEPER_READS || !iobuf)
		return false;
	note = &store->header->read[store->n_reads++];
	note->rx = rx;
	note->slot = slot;
	note->iobuf = iobuf;
	note->position = position;
	/* last: until now the note was an old one, of an epoch gone by */
	__atomic_store_n(&note->epoch, store->epoch, __ATOMIC_RELEASE);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	return true;
}

/* the youngest note about this slot that the commit word has not outlived, or NULL */
const struct KeeperRead *keeper_store_read_note(const struct KeeperStore *store, uint32_t slot);

/* what was freed before the commit that has just been made may be handed out again */
void keeper_store_hand_out_freed(struct KeeperStore *store);

/* the same where only IOBufs were freed, if anything */
static inline void keeper_store_hand_out_iobufs(struct KeeperStore *store)
{
	while (store->n_freed_iobuf)
		store->free_iobuf[store->n_free_iobuf++] = store->freed_iobuf[--store->n_freed_iobuf];
	store->freed = 0;
}

#endif
