/*
 * Killing the ledger's writer after every single instruction: shared parts.
 */
#ifndef PUBLISH_H
#define PUBLISH_H

#include <sys/types.h>

#include "keeper/commit.h"

#define SLOTS	10
#define IOBUFS	5
#define PKT_BUF	192
#define UNITS	128

/* everything that a committed state says, compared with memcmp() */
struct State {
	uint64_t commit;
	struct KeeperActRecord act;
	struct KeeperCopy copy[SLOTS + 1];
	uint64_t contents[SLOTS + 1];	/* hash of the blobs and IOBuf bytes it refers to */
};

/*
 * script.c: a writer that does the same things every time.
 */

/* a fresh ledger in zeroed memory, with a few sockets: epoch 1 */
void script_start(void *base, size_t size, unsigned seed);
/* change several slots and commit: epoch n + 1 at the n-th call */
void script_step(void);
/* called when everything but the commit itself is done */
extern void (*script_before_commit)(void);

/*
 * reader.c: reads a ledger without store.c's help.
 */

/* NULL, or what is torn */
const char *read_state(const void *base, struct State *state);
/* adopt a copy of the ledger, commit something else: does the rest stay as it was? */
const char *survives_adoption(const void *base, size_t size, const struct State *expected);

#endif
