/*
 * pgkeeper - messages between pgbouncer and the hanger.
 *
 * A Unix-domain SOCK_SEQPACKET connection to keeper_socket: one datagram, one
 * message: a head, the message's own struct, then what its comment names.
 * Descriptors travel in the same datagram (SCM_RIGHTS), in the order of the
 * tokens.  protocol/control.py declares the same layout.
 */
#ifndef KEEPER_CONTROL_H
#define KEEPER_CONTROL_H

#include <stdint.h>

#define KEEPER_CONTROL_MAGIC	0x6b706770U	/* "pgpk" */
#define KEEPER_CONTROL_VERSION	1
#define KEEPER_BATCH		64	/* descriptors a message, at most */
#define KEEPER_MESSAGE_MAX	4096	/* bytes a message, at most */

enum KeeperMessageType {
	/* pgbouncer to hanger */
	KEEPER_MSG_HELLO = 1,	/* KeeperHello; descriptor: its ledger, if it has sessions */
	KEEPER_MSG_REGISTER = 2,	/* KeeperSockets; descriptors: the sockets */
	KEEPER_MSG_RELEASE = 3,	/* KeeperTokens: closed, drop the duplicates */
	KEEPER_MSG_UNHELD = 4,	/* KeeperUnheld: drop the duplicate, session goes on without */
	KEEPER_MSG_LISTENERS_BACK = 5,	/* KeeperListeners: what a hanger that is new takes over */
	KEEPER_MSG_READY = 6,	/* KeeperReady: adoption is done, or everything is registered */
	KEEPER_MSG_FROZEN = 7,	/* KeeperFreeze: stands still at a commit in this format, waits for THAW or death */
	KEEPER_MSG_FAREWELL = 8,	/* sessions were ended on purpose (console SHUTDOWN, RELEASE_ALL) */
	KEEPER_MSG_DRAINING = 9,	/* SHUTDOWN waits for who is here: nobody listens from now on */

	/* hanger to pgbouncer */
	KEEPER_MSG_WELCOME = 32,	/* KeeperWelcome; descriptor: the ledger, unless it brought one */
	KEEPER_MSG_REFUSE = 33,	/* a text follows: the reason, one line */
	KEEPER_MSG_LISTENERS = 34,	/* KeeperListeners; descriptors: the listening sockets */
	KEEPER_MSG_SOCKETS = 35,	/* KeeperSockets; descriptors: held sockets to adopt, from WELCOME on */
	KEEPER_MSG_ADOPT = 36,	/* KeeperAdopt: all was sent, go */
	KEEPER_MSG_CLIENT = 37,	/* KeeperSockets of 1: a new client */
	KEEPER_MSG_FREEZE = 38,	/* KeeperFreeze: stop at a commit */
	KEEPER_MSG_THAW = 39,	/* go on */
	KEEPER_MSG_RELEASE_ALL = 40,	/* say goodbye to every client, then exit */
	KEEPER_MSG_KILL = 41,	/* KeeperTokens: end these clients; one that is not there has gone */
	KEEPER_MSG_FORGET = 42,	/* KeeperTokens: these held sockets have ended, close them; of 0: all are sent anew */
};

struct KeeperMessage {
	uint32_t magic;
	uint16_t version;
	uint16_t type;		/* enum KeeperMessageType */
};

enum KeeperRole {
	KEEPER_ROLE_SUCCESSOR = 0,	/* wants to adopt: at once, or as a standby when told */
	KEEPER_ROLE_SERVING = 1,	/* lost its hanger, serves; brings its ledger */
};

enum KeeperFeature {
	KEEPER_FEATURE_FORGETS = 1,	/* what it is sent before ADOPT it keeps until FORGET or ADOPT */
};

struct KeeperHello {
	uint32_t format_version;	/* KEEPER_FORMAT_VERSION: the newest it reads and writes ... */
	uint32_t role;		/* enum KeeperRole */
	uint64_t signature;	/* keeper_signature() */
	uint64_t pid;		/* as pgbouncer sees it; the hanger asks SO_PEERCRED */
	uint64_t incarnation;	/* of a serving one, else 0 */
	uint64_t last_token;	/* highest client token a serving one has used */
	uint32_t slots;		/* what it wants of a new ledger */
	uint32_t iobufs;
	uint32_t units;
	uint32_t pkt_buf;
	uint32_t max_client_conn;
	uint32_t sockets;	/* how many a serving one will register */
	uint32_t format_oldest;	/* ... and the oldest */
	uint32_t format;	/* in which a serving one writes */
	char pgbouncer_version[28];
	uint32_t features;	/* enum KeeperFeature; who knows of none has zeros of the version here */
};

struct KeeperWelcome {
	uint64_t incarnation;	/* what will be its own if it adopts */
	uint64_t generation;	/* of the ledger */
	uint32_t held;		/* sockets to come */
	uint32_t pad;
};

struct KeeperSockets {
	uint32_t count;
	uint32_t pad;
	struct {
		uint64_t token;
		uint32_t unix_socket;
		uint32_t fresh;	/* CLIENT: 1: nothing was read from it or written to it since accept(2) */
	} socket[KEEPER_BATCH];	/* only count of them are sent */
};

struct KeeperTokens {
	uint32_t count;
	uint32_t pad;
	uint64_t token[KEEPER_BATCH];
};

enum KeeperUnheldReason {
	KEEPER_UNHELD_TLS = 1,
	KEEPER_UNHELD_LEDGER_FULL = 2,
	KEEPER_UNHELD_CONSOLE = 3,	/* admin console */
	KEEPER_UNHELD_HANGER_BUSY = 4,
};

struct KeeperUnheld {
	uint64_t token;
	uint32_t reason;	/* enum KeeperUnheldReason */
	uint32_t server;	/* 1: a server socket */
};

struct KeeperListeners {
	uint32_t count;
	uint32_t pad;
	uint32_t unix_socket[KEEPER_BATCH];	/* only count of them are sent */
};

struct KeeperAdopt {
	uint64_t incarnation;
	uint64_t down_us;	/* how long nobody served, microseconds: added to deadlines */
	uint32_t format;	/* of the ledger: it is read and written in it */
	uint32_t pad;
};

struct KeeperFreeze {
	uint32_t format;	/* of the ledger, which the successor reads */
	uint32_t pad;
};

enum KeeperLost {
	KEEPER_LOST_IN_FLIGHT = 0,	/* bytes in flight that cannot be made exact */
	KEEPER_LOST_DAMAGED = 1,	/* the slot's checks fail */
	KEEPER_LOST_CONFIG = 2,	/* its database or user is gone from the ini */
	KEEPER_LOST_CONSOLE = 3,	/* console session */
	KEEPER_LOST_RESOURCES = 4,	/* memory or descriptors */
	KEEPER_LOST_REASONS = 5
};

struct KeeperReady {
	uint64_t incarnation;
	uint32_t clients;	/* adopted */
	uint32_t servers;
	uint32_t lost[KEEPER_LOST_REASONS];	/* clients that could not go on */
	uint32_t pad;
	uint64_t adoption_us;	/* from ADOPT to here */
};

_Static_assert(sizeof(struct KeeperMessage) == 8, "head");
_Static_assert(sizeof(struct KeeperHello) == 104, "hello");
_Static_assert(sizeof(struct KeeperWelcome) == 24, "welcome");
_Static_assert(sizeof(struct KeeperAdopt) == 24, "adopt");
_Static_assert(sizeof(struct KeeperFreeze) == 8, "freeze");
_Static_assert(sizeof(struct KeeperReady) == 48, "ready");

#endif
