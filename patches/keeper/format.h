/*
 * pgkeeper - the ledger's format, shared by pgbouncer (C) and pgkeeper (Python).
 *
 * docs/ledger-format.md explains every field; protocol/ledger.py declares the
 * same layout with construct, and a test compares each size and offset.
 * Nothing here depends on PgBouncer, so tests can compile it alone.
 *
 * All integers are in the machine's own byte order: the ledger never leaves
 * the machine.  Indices, never pointers: slot, IOBuf and unit numbers start
 * at 1, 0 means none.
 */
#ifndef KEEPER_FORMAT_H
#define KEEPER_FORMAT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define KEEPER_MAGIC		0x726567646c6b6770ULL	/* "pgkldger" */
#define KEEPER_FORMAT_VERSION	4
#define KEEPER_FORMAT_OLDEST	3	/* which this code still reads and writes */
#define KEEPER_FORMAT_HANDED	4	/* since which KEEPER_F_HANDED may be set */
#define KEEPER_FORMAT_LAYOUT	3	/* since which no field has moved */
#define KEEPER_HEADER_SIZE	4096
#define KEEPER_UNIT		64	/* heap allocation unit, bytes */
#define KEEPER_INLINE_REQUESTS	22
#define KEEPER_HANDLED_TOKEN	(1ULL << 62)	/* KeeperHeader.handled is a token: of a socket without a slot */
#define KEEPER_DIED_SENT	(1U << 8)	/* KeeperHeader.died_of: another process sent the signal */
#define KEEPER_READS		16	/* recvs that may follow a commit without one of their own */

/* what a slot holds */
enum KeeperKind {
	KEEPER_FREE = 0,
	KEEPER_CLIENT = 1,	/* a client socket */
	KEEPER_SERVER = 2,	/* a server socket */
	KEEPER_CLOSING = 3,	/* its bytes must still leave, then it is closed */
	KEEPER_POOL = 4,	/* no socket: a pool's facts */
	KEEPER_USER = 5,	/* no socket: credentials learnt at run time */
	KEEPER_GLOBAL = 6,	/* no socket: facts of the whole process */
};

/* which act may lie beyond the commit word */
enum KeeperAct {
	KEEPER_ACT_NONE = 0,
	KEEPER_ACT_RECV = 1,	/* slot: the socket that is read */
	KEEPER_ACT_SEND = 2,	/* slot: the destination; source: whose IOBuf or extra packets */
	KEEPER_ACT_OUTBOX = 3,	/* slot: the destination, from its own outbox */
	KEEPER_ACT_CLOSE = 4,	/* slot: the socket that is shut down */
};

/* KeeperCopy.flags */
enum KeeperFlag {
	KEEPER_F_READY = 1 << 0,
	KEEPER_F_IDLE_TX = 1 << 1,
	KEEPER_F_CLOSE_NEEDED = 1 << 2,
	KEEPER_F_SETTING_VARS = 1 << 3,
	KEEPER_F_RESETTING = 1 << 4,
	KEEPER_F_COPY_MODE = 1 << 5,
	KEEPER_F_QUERY_FAILED = 1 << 6,
	KEEPER_F_WAIT_FOR_WELCOME = 1 << 7,
	KEEPER_F_WAIT_FOR_USER_CONN = 1 << 8,
	KEEPER_F_WAIT_FOR_USER = 1 << 9,
	KEEPER_F_DB_COUNTED = 1 << 10,	/* contributes_db_client_count */
	KEEPER_F_USER_COUNTED = 1 << 11,	/* user_connection_counted */
	KEEPER_F_ADMIN_USER = 1 << 12,
	KEEPER_F_OWN_USER = 1 << 13,
	KEEPER_F_QUEUE_AFTER = 1 << 14,	/* sbuf.extra_packet_queue_after */
	KEEPER_F_FLUSH_DUE = 1 << 15,	/* SBUF_EV_FLUSH has not been delivered yet */
	KEEPER_F_VOLATILE = 1 << 16,	/* holds bytes the ledger does not: cannot be adopted now */
	KEEPER_F_DOOMED = 1 << 17,	/* being disconnected: recovery finishes it */
	KEEPER_F_DOOM_NOTIFY = 1 << 18,
	KEEPER_F_UNIX = 1 << 19,	/* Unix-domain socket: no byte counters in the kernel */
	KEEPER_F_CONSOLE = 1 << 20,	/* admin console in the middle of a command: cannot be adopted now */
	KEEPER_F_WAIT_FOR_RESPONSE = 1 << 21,	/* admin console that waits for the end of PAUSE or WAIT_CLOSE */
	/*
	 * io_done to io_recv of io are not what was read from this socket, but are
	 * to be sent to it, before its outbox.  So long as this copy is true they
	 * may leave at any time: what the kernel has taken beyond tx is the first
	 * part of them.  If that is all of them, io may be another's already.
	 */
	KEEPER_F_HANDED = 1 << 22,
	KEEPER_F_RECV_DUE = 1 << 23,	/* reads from its socket next, before it looks at what is in io */
};

/*
 * One of the two copies of a slot; true if 0 < epoch <= commit word.  The first
 * two cache lines are written at each commit that the slot is part of; the
 * third only when something in it has changed.
 */
struct KeeperCopy {
	uint64_t epoch;
	uint64_t rx;		/* bytes read from the socket since registration */
	uint64_t tx;		/* bytes written to the socket since registration */
	uint8_t kind;		/* enum KeeperKind */
	uint8_t state;		/* PgBouncer's SocketState */
	uint8_t wait_type;	/* sbuf.c WaitType: 0 paused, 2 reading, 3 waits to write */
	uint8_t pkt_action;	/* sbuf.c ACT_* */
	uint32_t flags;		/* enum KeeperFlag */
	uint32_t link;		/* slot */
	uint32_t dst;		/* slot of sbuf.dst */
	uint32_t io;		/* IOBuf */
	uint32_t io_done;
	uint32_t io_parse;
	uint32_t io_recv;
	uint32_t pkt_remain;
	uint32_t skip_remain;
	uint64_t query_start;	/* microseconds since 1970, as PgBouncer keeps them */
	uint64_t xact_start;
	uint64_t request_time;
	uint64_t wait_start;
	uint16_t n_requests;	/* inline outstanding requests, oldest first */
	uint8_t request[KEEPER_INLINE_REQUESTS];	/* action << 6 | type - 0x40 */
	uint64_t check;		/* keeper_check() over the slot's number and everything else */

	uint64_t token;		/* name of the socket between pgbouncer and hanger */
	uint32_t pool;		/* slot of the pool */
	uint32_t record;	/* unit of a blob: KeeperSocketRecord, KeeperPoolRecord, ... */
	uint32_t outbox;	/* unit of a blob */
	uint32_t outbox_done;	/* bytes of it already sent */
	uint32_t outbox_len;
	uint32_t doom;		/* unit of a blob: sqlstate and reason */
	uint32_t extra;		/* unit of a blob: extra_packets still to be sent */
	uint32_t extra_done;	/* bytes of extra already sent */
	uint32_t requests;	/* unit of a blob: outstanding requests, if not inline */
	uint32_t canceled_server;	/* slot */
	uint64_t spare[2];
};

struct KeeperSlot {
	struct KeeperCopy copy[2];

	/* written before the slot first becomes true, constant while it lives */
	uint64_t base_rx;	/* kernel's figures at registration */
	uint64_t base_tx;
	/*
	 * Unix-domain sockets only: what the kernel does not count is counted
	 * here, after each system call; busy from before it until then.
	 */
	uint64_t unix_rx;
	uint64_t unix_tx;
	uint64_t unix_busy;
	uint64_t spare[3];
};

/* committed together with the slots: copy[epoch & 1] belongs to the commit word */
struct KeeperActRecord {
	uint64_t epoch;
	uint64_t watermark;	/* highest client token that was given a slot */
	uint32_t act;		/* enum KeeperAct */
	uint32_t slot;
	uint32_t source;	/* slot whose bytes are sent */
	uint32_t format;	/* in which the committed state is written */
};

/* a recv that no commit of its own preceded; true if epoch is the commit word */
struct KeeperRead {
	uint64_t epoch;
	uint64_t rx;		/* bytes read from the socket before this recv */
	uint32_t slot;
	uint32_t iobuf;		/* where its bytes go, */
	uint32_t position;	/* from here on */
	uint32_t pad;
};

struct KeeperHeader {
	uint64_t magic;
	uint32_t version;	/* newest format that was known to who made it */
	uint32_t header_size;
	uint64_t signature;	/* FNV-1a of the layout: sizes and offsets */
	uint64_t size;		/* of the whole ledger, bytes */
	uint32_t slots;		/* numbers 1..slots */
	uint32_t iobufs;	/* numbers 1..iobufs */
	uint32_t iobuf_size;	/* bytes from one IOBuf to the next */
	uint32_t pkt_buf;	/* usable bytes of one: PgBouncer's pkt_buf */
	uint32_t units;		/* heap: numbers 1..units */
	uint32_t layout;	/* KEEPER_FORMAT_LAYOUT */
	uint64_t slot_offset;
	uint64_t iobuf_offset;
	uint64_t heap_offset;
	uint64_t generation;	/* which ledger of this hanger */
	uint8_t spare1[40];

	/* the hanger writes, pgbouncer obeys: a stale incarnation stops at once */
	uint64_t incarnation;
	/*
	 * Here and below pgbouncer writes.  Whose event is being handled: a slot, a
	 * token with KEEPER_HANDLED_TOKEN, or 0; in this line, because each commit reads it.
	 */
	uint64_t handled;
	uint8_t spare2[48];

	/* a line of its own */
	uint64_t commit;	/* the commit word */
	struct KeeperActRecord act[2];
	uint8_t spare3[56];

	uint64_t heartbeat;	/* microseconds, CLOCK_MONOTONIC, once an event loop */
	uint64_t server_token;	/* last token pgbouncer made itself */
	uint64_t query_id;	/* last PGBOUNCER_n ever used */
	uint64_t socket_id;	/* last PgSocket.id ever used */
	uint32_t died_of;	/* number of the signal, if it was one of a crash, with KEEPER_DIED_SENT */
	/* what is not free at an event loop's end, for those who watch */
	uint32_t used_slots;
	uint32_t used_iobufs;
	uint32_t used_units;
	uint8_t spare4[16];

	struct KeeperRead read[KEEPER_READS];
};

/* a variable-size value, immutable once a committed state refers to it */
struct KeeperBlob {
	uint32_t units;		/* size, in KEEPER_UNITs with this head */
	uint32_t length;	/* payload bytes; append-only blobs: capacity in use is in the referrer */
	uint32_t kind;		/* enum KeeperBlobKind */
	uint32_t check;		/* keeper_blob_check() of the payload; append-only blobs: keeper_head_check() */
};

enum KeeperBlobKind {
	KEEPER_BLOB_RECORD = 1,
	KEEPER_BLOB_OUTBOX = 2,	/* append-only */
	KEEPER_BLOB_EXTRA = 3,
	KEEPER_BLOB_REQUESTS = 4,
	KEEPER_BLOB_CATALOG = 5,	/* append-only: prepared statements of one socket */
	KEEPER_BLOB_STATEMENT = 6,	/* text of a prepared statement */
	KEEPER_BLOB_PACKET = 7,	/* append-only: packet_cb_state.pkt, type and length first */
	KEEPER_BLOB_DOOM = 8,
	KEEPER_BLOB_SCRAM = 9,
};

/* where a PgCredentials object is to be found again */
enum KeeperCredentials {
	KEEPER_CRED_NONE = 0,
	KEEPER_CRED_GLOBAL = 1,	/* auth_file and [users] */
	KEEPER_CRED_DYNAMIC = 2,	/* auth_query, per database */
	KEEPER_CRED_PAM = 3,
	KEEPER_CRED_FORCED = 4,	/* user= of the database */
	KEEPER_CRED_MOCK = 5,	/* cannot be found again */
};

/* PgBouncer's struct iobuf at the start of an IOBuf: its bytes follow */
#define KEEPER_IOBUF_HEAD	16

/*
 * Records.  Each is a fixed part and then counted strings: uint16_t length and
 * the bytes, or 0xffff for NULL, in the order given.
 */

/*
 * KEEPER_CLIENT and KEEPER_SERVER.  Strings: name of the login credentials,
 * their database, name of client->db, startup_options, then n_vars values of
 * the tracked parameters.
 */
struct KeeperSocketRecord {
	uint64_t id;
	uint64_t connect_time;
	uint8_t cancel_key[8];
	uint32_t catalog;	/* unit of a blob: prepared statements */
	uint32_t catalog_used;	/* bytes of it that count */
	uint32_t packet;	/* unit of a blob: packet_cb_state */
	uint32_t scram;		/* unit of a blob: scram_state */
	uint8_t cred_kind;	/* enum KeeperCredentials of login_user_credentials */
	uint8_t auth_type;	/* client_auth_type */
	uint8_t replication;
	uint8_t n_vars;
	uint8_t packet_flag;	/* enum PacketCallbackFlag */
	uint8_t pad[3];
	uint32_t packet_used;	/* bytes of packet that count */
	uint32_t pad2;
};

/*
 * KEEPER_POOL.  Strings: database, user, the user's database, fingerprint of
 * the database's configuration, n_vars values of orig_vars, and the welcome
 * message.
 */
struct KeeperPoolRecord {
	uint32_t peer_id;	/* a peer's pool */
	uint8_t cred_kind;
	uint8_t welcome_ready;
	uint8_t n_vars;
	uint8_t pad[9];
	uint64_t last_lifetime_disconnect;
	uint64_t stats[11];	/* PgStats, in its order */
};

/* KEEPER_USER.  Strings: name, database (dynamic), password. */
struct KeeperUserRecord {
	uint8_t cred_kind;
	uint8_t has_scram_keys;
	uint8_t pad[6];
	uint8_t client_key[32];
	uint8_t server_key[32];
};

/*
 * KEEPER_GLOBAL.  Strings: names of the n_vars tracked parameters, then pairs
 * of key and value: console SETs in force, then pairs of name and state
 * (of "paused", "disabled" and "awaited", by WAIT_CLOSE): databases that the operator has
 * set aside, whether they have a pool or not.
 */
struct KeeperGlobalRecord {
	uint8_t mock_nonce[32];	/* mock_auth_nonce of scram.c */
	uint8_t mock_nonce_set;
	uint8_t pause_mode;
	uint8_t n_vars;
	uint8_t pad;
	uint32_t n_settings;
	uint32_t peer_id;
	uint32_t shutdown;
	uint32_t n_databases;
	uint32_t pad2;
};

/* entry of a catalog: then the client's name for it, name_length bytes */
struct KeeperCatalogEntry {
	uint64_t query_id;
	uint32_t statement;	/* unit of a blob: the text */
	uint16_t name_length;	/* 0 for a server's entry */
	uint16_t check;		/* keeper_entry_check() of entry and name */
};

/* one outstanding request, where they do not fit inline */
struct KeeperRequest {
	uint8_t type;
	uint8_t action;
	uint8_t closing;	/* a Close is under way: statement goes back if it fails */
	uint8_t pad[5];
	uint64_t query_id;	/* server_ps_query_id, or the closing statement's id */
	uint32_t statement;	/* unit of the closing statement's text */
	uint32_t pad2;
};

_Static_assert(sizeof(struct KeeperCopy) == 192, "three cache lines");
_Static_assert(sizeof(struct KeeperSlot) == 448, "slot");
_Static_assert(sizeof(struct KeeperActRecord) == 32, "act record");
_Static_assert(offsetof(struct KeeperHeader, incarnation) == 128, "own cache line");
_Static_assert(offsetof(struct KeeperHeader, commit) == 192, "own cache line");
_Static_assert(offsetof(struct KeeperHeader, heartbeat) == 320, "own cache line");
_Static_assert(sizeof(struct KeeperRead) == 32, "two a cache line");
_Static_assert(offsetof(struct KeeperHeader, read) == 384, "own cache line");
_Static_assert(sizeof(struct KeeperHeader) <= KEEPER_HEADER_SIZE, "header page");
_Static_assert(sizeof(struct KeeperBlob) == 16, "blob head");
_Static_assert(sizeof(struct KeeperSocketRecord) == 56, "socket record");
_Static_assert(sizeof(struct KeeperPoolRecord) == 112, "pool record");
_Static_assert(sizeof(struct KeeperUserRecord) == 72, "user record");
_Static_assert(sizeof(struct KeeperGlobalRecord) == 56, "global record");
_Static_assert(sizeof(struct KeeperCatalogEntry) == 16, "catalog entry");
_Static_assert(sizeof(struct KeeperRequest) == 24, "request");

/*
 * Checksums.  Of a copy: a sum of words, each rotated by a distance of its own,
 * so that words cannot change places unnoticed, and of the slot's number, so that
 * copies cannot.  The words are independent of each other, so that a commit costs nanoseconds, and the sum of those that
 * seldom change can be kept.
 */
typedef uint64_t __attribute__((may_alias)) KeeperWord;

static inline uint64_t keeper_check_word(unsigned i, uint64_t word)
{
	return word << (2 * i + 1) | word >> (63 - 2 * i);
}

#define KEEPER_ROTATED(i)	keeper_check_word(i, word[i])
#define KEEPER_FOUR(i)		(KEEPER_ROTATED(i) + KEEPER_ROTATED(i + 1) + KEEPER_ROTATED(i + 2) + KEEPER_ROTATED(i + 3))

static inline uint64_t keeper_check_epoch(uint64_t epoch, uint32_t slot)
{
	return KEEPER_MAGIC + slot + (epoch << 1 | epoch >> 63);
}

/* of what every commit writes anew, but for epoch */
static inline uint64_t keeper_check_hot(const struct KeeperCopy *copy)
{
	const KeeperWord *word = (const KeeperWord *)copy;

	return KEEPER_FOUR(1) + KEEPER_FOUR(5) + KEEPER_FOUR(9) + KEEPER_ROTATED(13) + KEEPER_ROTATED(14);
}

/* of the third cache line */
static inline uint64_t keeper_check_cold(const struct KeeperCopy *copy)
{
	const KeeperWord *word = (const KeeperWord *)copy;

	return KEEPER_FOUR(16) + KEEPER_FOUR(20);
}
#undef KEEPER_FOUR
#undef KEEPER_ROTATED

static inline uint64_t keeper_check(const struct KeeperCopy *copy, uint32_t slot)
{
	return keeper_check_epoch(copy->epoch, slot) + keeper_check_hot(copy) + keeper_check_cold(copy);
}
_Static_assert(offsetof(struct KeeperCopy, check) == 15 * sizeof(uint64_t), "words that keeper_check() adds up");
_Static_assert(offsetof(struct KeeperCopy, token) == 128, "third cache line");

/* the last 1 to 7 bytes of a value, filled up with zeros; without a call, for most values are short */
static inline uint64_t keeper_last_word(const uint8_t *p, size_t length)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	uint32_t low, high;

	if (length < 4)
		return p[0] | (uint64_t)p[length / 2] << 8 * (length / 2) | (uint64_t)p[length - 1] << 8 * (length - 1);
	/* they overlap where it is shorter than eight */
	memcpy(&low, p, sizeof(low));
	memcpy(&high, p + length - sizeof(high), sizeof(high));
	return low | (uint64_t)high << 8 * (length - sizeof(high));
#else
	uint64_t word = 0;

	memcpy(&word, p, length);
	return word;
#endif
}

/* of a blob's payload: FNV-1a by words of eight bytes, the last filled up with zeros; folded, never 0 */
static inline uint32_t keeper_blob_check(const void *data, size_t length)
{
	const uint8_t *p = data;
	uint64_t h = 0xcbf29ce484222325ULL ^ length, word;

	for (; length >= sizeof(word); length -= sizeof(word), p += sizeof(word)) {
		memcpy(&word, p, sizeof(word));
		h = (h ^ word) * 0x100000001b3ULL;
		h ^= h >> 32;
	}
	if (length) {
		word = keeper_last_word(p, length);
		h = (h ^ word) * 0x100000001b3ULL;
		h ^= h >> 32;
	}
	return ((uint32_t)(h ^ h >> 32)) | 1;
}

/* of an append-only blob's head: what says how far it reaches must not be believed blindly */
static inline uint32_t keeper_head_check(uint32_t unit, uint32_t units, uint32_t kind)
{
	const uint32_t head[3] = { unit, units, kind };

	return keeper_blob_check(head, sizeof(head));
}

/* name_check: keeper_blob_check() of the name */
static inline uint16_t keeper_named_entry_check(const struct KeeperCatalogEntry *entry, uint32_t name_check)
{
	struct KeeperCatalogEntry copy = *entry;
	uint32_t sum;

	copy.check = 0;
	sum = keeper_blob_check(&copy, sizeof(copy)) ^ name_check << 1;
	return (uint16_t)(sum ^ sum >> 16);
}

static inline uint16_t keeper_entry_check(const struct KeeperCatalogEntry *entry, const char *name)
{
	return keeper_named_entry_check(entry, keeper_blob_check(name, entry->name_length));
}

#endif
