/*
 * pgkeeper - shared by our own files, not by PgBouncer's.
 */
#ifndef KEEPER_INTERNAL_H
#define KEEPER_INTERNAL_H

#include "keeper/figures.h"
#include "keeper/system.h"

/* sbuf.c's WaitType and pkt_action, which the ledger keeps as numbers */
enum { KEEPER_WAIT_NONE = 0, KEEPER_WAIT_RECV = 2, KEEPER_WAIT_SEND = 3, KEEPER_WAIT_ONCE = 4 };
enum { KEEPER_ACTION_SEND = 1, KEEPER_ACTION_SKIP = 2, KEEPER_ACTION_CALL = 3 };

#define KEEPER_CACHE_LINE	64

/* in IOBuf.keeper_number: bytes of it are handed on to somebody, while its reader still has it */
#define KEEPER_LENT		(1U << 31)

/* seldom needed: not to be found in the midst of what always is */
#define KEEPER_APART	__attribute__((noinline))

/* tokens that pgbouncer makes itself, for server sockets */
#define KEEPER_SERVER_TOKEN	(1ULL << 63)

/* how a socket's catalog of prepared statements differs from its blob */
struct KeeperCatalog {
	uint32_t blob;
	uint32_t used;		/* bytes of it that count */
	uint32_t added;		/* statements at the end of the hash that it lacks */
	bool rewrite;		/* something was removed: write it anew */
	bool lost;		/* no room in the heap: the socket is volatile */
	uint8_t lookups;	/* while it is folded */
	uint32_t folded;	/* statements that are in the blob, and in no hash table: all or none */
};

/* what a socket does right after a commit, where that is part of its copy */
enum KeeperNext {
	KEEPER_NEXT_BYPASS = 1,	/* send bytes that the ledger had no room for: volatile until they have left */
	KEEPER_NEXT_RECV = 2,	/* read: nothing in its IOBuf is looked at before that */
};

/* KeeperLocal.copies */
enum {
	KEEPER_COLD_STALE = 3,	/* by copy, bits 0 and 1: its third cache line does not say what it should */
	KEEPER_COPY_OURS = 4,	/* the true copy is not a former owner's */
	KEEPER_COPY_DRAINED = 8,	/* nor is there anything that it does not know to be read, or that is left unread */
};

/*
 * What this process knows about a slot beside its two copies.  The kernel's
 * work in between leaves little of this in the nearest caches: what each act
 * and commit needs comes first, in one cache line.
 */
struct KeeperLocal {
	void *object;		/* PgSocket, PgPool or PgCredentials; NULL: closing or global */
	PgPool *pool;		/* as the copies' third line has it */
	uint64_t rx, tx;
	uint64_t cold_check;	/* keeper_check_cold() of the copies whose third line is not stale */
	uint32_t bits;		/* those of the PgSocket, last seen, ... */
	uint32_t flags;		/* ... and as flags, with all others that seldom change */
	unsigned vars_changes;	/* up to which the record has them */
	uint32_t outbox;
	uint8_t kind;		/* enum KeeperKind */
	uint8_t copies;
	bool calm;		/* nothing here but what is compared at each commit has changed since */
	bool is_unix;
	uint8_t next;		/* enum KeeperNext: of the commit that is being made */
	bool full;		/* there was no room for a part of it: volatile */
	bool pending;		/* on the list for keeper_loop_end() */
	bool is_handed;		/* bytes in another's IOBuf are to be sent to it, before its outbox */

	/* the rest is looked at only when something has changed */
	uint64_t token;
	int fd;
	uint32_t requests;
	uint32_t outbox_done, outbox_len;
	uint32_t handed, handed_done, handed_end;	/* that IOBuf, and which of its bytes are left */
	struct event *writable;	/* its socket is full: told when no more */
	uint32_t pool_slot;
	uint32_t canceled_server;
	uint32_t extra, extra_done, extra_len;
	uint32_t record;
	uint32_t doom;
	uint32_t scram;
	uint32_t packet;
	unsigned packet_written;	/* bytes of packet_cb_state.pkt that the blob holds, after its head */
	bool doomed, doom_notify;
	bool in_command;	/* console: commits now show what its command has done so far */
	bool answer_outside;	/* console: the ledger had no room for an answer */
	bool stale;		/* its record must be written anew */
	uint64_t closing_since;
	struct KeeperCatalog catalog;

	/* what the record was made from, to notice a change */
	PgCredentials *credentials;
	PgDatabase *db;
	struct PStr **vars;	/* referenced, so that an address stays unique */
	uint8_t cancel_key[BACKENDKEY_LEN];
	int auth_type;
	int replication;
	int packet_flag;

	/* KEEPER_USER */
	PgDatabase *user_db;
} __attribute__((aligned(KEEPER_CACHE_LINE)));
_Static_assert(offsetof(struct KeeperLocal, token) == KEEPER_CACHE_LINE, "what is hot fits into one line");

extern struct KeeperLocal *keeper_local;

/* this slot is about to be needed, and is long out of the nearest caches */
static inline void keeper_prefetch(uint32_t slot)
{
	__builtin_prefetch(&keeper_local[slot], 1);
	keeper_store_prefetch(&keeper_store, slot);
}

/*
 * keeper.c: slots
 */

/* start an empty slot for an object; 0: the ledger is full */
uint32_t keeper_new_slot(void *object, enum KeeperKind kind);
/* the slot's object is gone; to be used again after the next commit */
void keeper_drop_slot(uint32_t slot);
/* commit everything anew in another format that this code knows */
void keeper_write_in_format(uint32_t format);
/* allocate the process's own lists for the attached ledger */
void keeper_local_setup(void);
/* token for the next accept_client() */
extern uint64_t keeper_accept_token;
/* ... which has carried nothing yet: its kernel's figures are known to be 0 */
extern bool keeper_accept_fresh;

/*
 * crash.c
 */

/* from now on a crash says in the ledger that it was one */
void keeper_last_words(void);

/*
 * acts.c
 */

void keeper_acts_setup(void);
/* whose IOBuf is this, for sends from it */
void keeper_iobuf_owner(uint32_t number, PgSocket *owner);
/* where the kernel counts nothing, the ledger does */
ssize_t keeper_counted_send(uint32_t slot, const void *data, size_t len);

/* send to a slot's socket, counted */
static inline ssize_t keeper_send_to(uint32_t slot, const void *data, size_t len)
{
	struct KeeperLocal *l = &keeper_local[slot];
	ssize_t res;

	if (unlikely(l->is_unix))
		return keeper_counted_send(slot, data, len);
	l->tx += len;
	res = keeper_system_send(l->fd, data, len);
	if (unlikely(res != (ssize_t)len))
		l->tx -= len - (res > 0 ? res : 0);
	return res;
}

/*
 * outbox.c
 */

/* append to the outbox of a slot; false: no room */
bool keeper_outbox_append(uint32_t slot, const void *data, size_t len);
/* true: nothing is left of it, nor of what was handed on to it */
bool keeper_outbox_flush(uint32_t slot);
void keeper_outbox_drop(uint32_t slot);
/*
 * The last len bytes of this IOBuf, which are the last of a message too, are
 * this slot's from now on: they leave when the callbacks have returned.
 * Nobody else's may wait for that.
 */
static inline void keeper_hand_on(uint32_t slot, IOBuf *io, const void *data, size_t len)
{
	struct KeeperLocal *l = &keeper_local[slot];

	l->handed = io->keeper_number;
	l->handed_done = (const uint8_t *)data - io->buf;
	l->handed_end = l->handed_done + len;
	l->is_handed = true;
	io->keeper_number |= KEEPER_LENT;
	keeper_leaving = slot;
}

/* what was handed on leaves, or goes into the outbox: the IOBuf is needed, or its place in the copy; false: no room */
bool keeper_outbox_take_handed(uint32_t slot);
/* pend it as soon as its socket takes more; false: cannot */
bool keeper_outbox_wait(uint32_t slot);
/* no more: its descriptor is about to be closed, or to be somebody else's */
void keeper_outbox_forget(struct KeeperLocal *l);

/*
 * loop.c
 */

void keeper_loop_setup(void);
/* loop end owes this slot something: an outbox to flush, a socket to close */
void keeper_pend(uint32_t slot);
/* nothing is left to be said or written down: for a process about to stop or to be watched */
void keeper_settle(void);
/* something has happened that could not be done again */
void keeper_commit_at_loop_end(void);
/* the hanger's watchdog sees that we live */
void keeper_beat(void);
/* after an adoption: have the janitor come sooner than he would, and set the options of the sockets anew */
void keeper_maintain_soon(void);

/*
 * pack.c
 */

/* a growing buffer, and reading it back */
struct KeeperPack {
	uint8_t *data;
	size_t len, size;
	bool too_long;		/* a value that no record can hold: there will be no blob */
};
struct KeeperUnpack {
	const uint8_t *data;
	size_t len;
	bool failed;
};
void keeper_pack(struct KeeperPack *pack, const void *data, size_t len);
void keeper_pack_string(struct KeeperPack *pack, const char *string);
void keeper_pack_bytes(struct KeeperPack *pack, const void *data, size_t len);
/* 0: no room, or a value was too long */
uint32_t keeper_pack_blob(struct KeeperPack *pack, enum KeeperBlobKind kind);
void keeper_unpack(struct KeeperUnpack *unpack, void *to, size_t len);
/* counted bytes; NULL where the length says so */
const uint8_t *keeper_unpack_bytes(struct KeeperUnpack *unpack, size_t *len_p);
/* into a buffer with a final zero; false: NULL, or too long (then failed is set) */
bool keeper_unpack_string(struct KeeperUnpack *unpack, char *to, size_t size);
char *keeper_unpack_strdup(struct KeeperUnpack *unpack);

/*
 * copy.c
 */

void keeper_flags_setup(void);
void keeper_commit(enum KeeperAct act, uint32_t slot, uint32_t source);

/* something in the copies' third line has changed */
static inline void keeper_cold_changed(struct KeeperLocal *l)
{
	l->copies |= KEEPER_COLD_STALE;
}

/*
 * record.c
 */

/* write a socket's record anew if what it says has changed; true: who it is does not change any more */
bool keeper_update_record(PgSocket *sk, struct KeeperLocal *l);
/* its record is up to date: note what it was made from */
void keeper_remember_record(PgSocket *sk, struct KeeperLocal *l);
/* swap in a new record: the old one is freed once no true copy names it */
void keeper_replace_record(struct KeeperLocal *l, uint32_t unit);
/* values of the tracked parameters, in the order of their names in the global record */
void keeper_pack_vars(struct KeeperPack *pack, struct PStr **vars);
enum KeeperCredentials keeper_credentials_kind(PgCredentials *credentials, PgDatabase *db);
/* the slot is empty again: give back what its copies referred to */
void keeper_forget(struct KeeperLocal *l);

/*
 * pools.c, credentials.c, globals.c
 */

void keeper_write_pool(PgPool *pool, struct KeeperLocal *l, struct KeeperCopy *copy);
void keeper_write_credentials(PgCredentials *credentials, struct KeeperLocal *l, struct KeeperCopy *copy);
void keeper_write_global(struct KeeperLocal *l, struct KeeperCopy *copy);
/* pause mode, nonce or the like has changed */
void keeper_mark_global(void);
/* now and then: pools whose statistics have changed */
void keeper_mark_pools(void);

/*
 * catalog.c
 */

/* bring the catalog's blob up to date; false: no room */
bool keeper_catalog_write(PgSocket *sk, struct KeeperCatalog *catalog);
uint32_t keeper_statement_blob(PgPreparedStatement *ps);

/* a catalog's entries, one after another */
struct KeeperEntries {
	const uint8_t *data, *end;	/* those that follow */
	const char *name;		/* of the present one, without a final zero */
	struct KeeperCatalogEntry entry;
};

/* false: at the end, or what follows is no entry */
static inline bool keeper_next_entry(struct KeeperEntries *cursor)
{
	size_t left = cursor->end - cursor->data;

	if (left < sizeof(cursor->entry))
		return false;
	memcpy(&cursor->entry, cursor->data, sizeof(cursor->entry));
	left -= sizeof(cursor->entry);
	if (cursor->entry.name_length > left)
		return false;
	cursor->name = (const char *)cursor->data + sizeof(cursor->entry);
	cursor->data += sizeof(cursor->entry) + cursor->entry.name_length;
	return true;
}

/*
 * adopt.c
 */

/* take over what the hanger holds; fills in the counts of the report */
void keeper_adopt(uint64_t down_us, struct KeeperReady *ready);

/*
 * standby.c
 */

struct KeeperHeld {
	uint64_t token;
	int fd;
	bool is_unix;
	bool has_addresses;		/* as they are below */
	PgAddr remote, local;
};

/* what the hanger has sent, and nobody has taken over yet */
extern struct KeeperHeld *keeper_held;
extern unsigned keeper_n_held;

void keeper_held_add(uint64_t token, int fd, bool is_unix);
/* these have ended; none: all of them */
void keeper_held_forget(const uint64_t *tokens, unsigned count);
/* all of them are somebody else's by now */
void keeper_held_none(void);
void keeper_held_sort(void);
/* once they are sorted; NULL: it was not sent */
struct KeeperHeld *keeper_held_find(uint64_t token);

/* what adoption will need of memory and facts; the hanger has nothing else to say for the moment */
void keeper_prepare_soon(void);
void keeper_prepare_no_more(void);

/*
 * show.c
 */

/* for SHOW KEEPER: how this process came to serve */
void keeper_remember_adoption(const struct KeeperReady *ready, uint64_t down_us);

/*
 * hanger.c
 */

bool keeper_hanger_register(uint64_t token, int fd, bool is_unix);
/* patient: waits for some seconds if the hanger is behind, for those who cannot come back later */
bool keeper_hanger_release(const uint64_t *tokens, unsigned count, bool patient);
bool keeper_hanger_unheld(uint64_t token, enum KeeperUnheldReason reason, bool is_server);
bool keeper_hanger_connected(void);

/*
 * ends.c
 */

/* by the names of their sockets; as KILL_CLIENT on the console */
void keeper_end_clients(const struct KeeperTokens *tokens);
/* all sessions, clients and servers, for good */
void keeper_end_all(void);

#endif
