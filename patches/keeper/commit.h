/*
 * pgkeeper - the commit.
 *
 * Inline, so that whoever gives it a serialize() of his own gets one function
 * of the two: a commit is what an act costs most.
 */
#ifndef KEEPER_COMMIT_H
#define KEEPER_COMMIT_H

#include "keeper/store.h"

/*
 * Make all marked slots true at once, together with the act that follows.
 * Returns false, having written nothing, if another incarnation owns the ledger.
 */
static inline __attribute__((always_inline))
bool keeper_store_commit(struct KeeperStore *store, keeper_serialize_fn serialize,
			 enum KeeperAct act, uint32_t slot, uint32_t source)
{
	struct KeeperHeader *header = store->header;
	uint64_t epoch = store->epoch + 1;
	struct KeeperActRecord *record = &header->act[epoch & 1];
	/* nothing that is written below lies over them, which the compiler cannot know */
	const uint32_t *dirty = store->dirty;
	struct KeeperSlot *slots = store->slot;
	uint8_t *place = store->place;
	uint32_t i;

	if (__atomic_load_n(&header->incarnation, __ATOMIC_RELAXED) != store->incarnation)
		return false;

#ifdef KEEPER_BROKEN_COMMIT_FIRST
	__atomic_store_n(&header->commit, epoch, __ATOMIC_RELEASE);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
#endif
	/* serialize() may mark slots that were not, such as new ones: the list grows while we walk it */
	for (i = 0; i < store->n_dirty; i++) {
		uint32_t s = dirty[i];
#ifdef KEEPER_BROKEN_OVERWRITE
		unsigned which = place[s] & KEEPER_CURRENT;
#else
		unsigned which = ~place[s] & KEEPER_CURRENT;
#endif
		struct KeeperCopy *copy = &slots[s].copy[which];
		uint64_t check;
		/* from here on it is not what it was: true with the word, and not before */
		copy->epoch = epoch;
		__atomic_signal_fence(__ATOMIC_SEQ_CST);
		check = serialize(s, copy, which);
		check += keeper_check_epoch(epoch, s);
		copy->check = check;
		place[s] = which;
	}
	record->epoch = epoch;
	record->watermark = store->watermark;
	record->act = act;
	record->slot = slot;
	record->source = source;

	__atomic_store_n(&header->commit, epoch, __ATOMIC_RELEASE);
	/* nothing that is written from here on may be moved before the word */
	__atomic_signal_fence(__ATOMIC_SEQ_CST);

	store->epoch = epoch;
	store->n_reads = 0;
	store->n_dirty = 0;
	if (store->freed == store->n_freed_iobuf)
		keeper_store_hand_out_iobufs(store);
	else
		keeper_store_hand_out_freed(store);
	return true;
}

#endif
