/*
 * pgkeeper - what PgBouncer's own files call.
 *
 * With no keeper_socket in the ini keeper_on is false, no PgSocket has a slot,
 * and every function here does what upstream's code did in its place.
 */
#ifndef KEEPER_KEEPER_H
#define KEEPER_KEEPER_H

#include "keeper/control.h"
#include "keeper/shortcuts.h"
#include "keeper/store.h"

extern bool keeper_on;
extern char *cf_keeper_socket;
extern struct KeeperStore keeper_store;
extern const SBufIO keeper_sbufio_ops;

/* --version says that this program can be kept */
#define KEEPER_VERSION_LINE	"keeper: format %d, control %d\n", KEEPER_FORMAT_VERSION, KEEPER_CONTROL_VERSION

/*
 * main.c
 */

/* configuration is loaded: is there a keeper_socket? */
void keeper_init(void);
/* in place of pooler_setup(): returns when this process serves */
void keeper_start(void);
/* once an event loop: flush outboxes, finish closing, commit what has waited, heartbeat */
void keeper_loop_end(void);
/* SIGTERM, SIGINT, SIGQUIT: leave the sessions with the hanger and exit */
void keeper_leave_sessions(const char *signal_name) _NORETURN;
/* the main loop has ended on purpose: tell the hanger to let go of everything */
void keeper_farewell(void);
/* our listening sockets are about to be closed: nobody else may listen on them either */
void keeper_stop_listening(void);

/* the janitor's round */
extern event_callback_fn keeper_maintain;

/*
 * sbuf.c
 */

IOBuf *keeper_iobuf_alloc(SBuf *sbuf);
void keeper_iobuf_free(SBuf *sbuf, IOBuf *io);
/* iobuf_try_resync() that never overwrites what a committed state still needs */
void keeper_iobuf_resync(SBuf *sbuf, unsigned small_pkt);
/* defined in sbuf.c, for adoption: wait for data again; go on as if a system call had just returned */
bool sbuf_adopt_wait(SBuf *sbuf) _MUSTCHECK;
void sbuf_adopt_resume(SBuf *sbuf, bool do_recv);

/*
 * objects.c, server.c, client.c, janitor.c, proto.c
 */

/* mark it and its link: for those who have looked whether it is clean */
void keeper_mark_clean(PgSocket *sk);

/* sk may be NULL; keeper_clean: its slot is not marked yet */
static inline void keeper_mark(PgSocket *sk)
{
	if (sk && unlikely(sk->keeper_clean))
		keeper_mark_clean(sk);
}

/* whose event is handled, as the header says: NULL for nobody's, or not to be relied on any more */
extern PgSocket *keeper_handled;
/* for those around callbacks alone: another socket's begins; one within another has returned */
void keeper_handles(PgSocket *sk);
void keeper_handles_outer(void);
/* what comes now is no socket's event */
void keeper_handles_nobody(void);

/*
 * Around every protocol callback: who is to blame should we crash, and what may
 * change is marked.  Marking too much is safe; a nested act may commit, and
 * thereby unmark, what the outer callback is going to change.  Who is marked
 * has a marked link, so one look is enough.
 */

/* more may have changed than what every commit writes */
void keeper_unsettle(PgSocket *sk);

static inline void keeper_before_proto(SBuf *sbuf, int event)
{
	PgSocket *sk = container_of(sbuf, PgSocket, sbuf);

	keeper_store.handling++;
	if (unlikely(keeper_handled != sk))
		keeper_handles(sk);
	if (unlikely(sk->keeper_clean))
		keeper_mark_clean(sk);
	if (event == SBUF_EV_FLUSH)
		sk->keeper_flush_due = false;
	/* a part of a packet that is buffered whole */
	else if (event == SBUF_EV_PKT_CALLBACK && sk->keeper_slot)
		keeper_unsettle(sk);
}

/* whose bytes are to leave when the callbacks have returned, or 0 */
extern uint32_t keeper_leaving;
void keeper_send_leaving_now(void);

static inline void keeper_send_leaving(void)
{
	if (keeper_leaving)
		keeper_send_leaving_now();
}

static inline void keeper_after_proto(SBuf *sbuf, int event)
{
	PgSocket *sk = container_of(sbuf, PgSocket, sbuf);

	/* the outermost one's bytes are still dealt with: until another event, or the loop's end */
	if (unlikely(--keeper_store.handling > 0))
		keeper_handles_outer();
	if (unlikely(sk->keeper_clean))
		keeper_mark_clean(sk);
	/* the last callback of an event */
	if (event == SBUF_EV_FLUSH)
		keeper_send_leaving();
}

/* accept_client() has a socket: give it its slot before its first act */
void keeper_attach_client(PgSocket *client, int fd, bool is_unix);
/* a server has logged in */
void keeper_attach_server(PgSocket *server);
/* a server connection is about to carry a client's cancel request: nobody may send that again */
void keeper_cancel_begins(PgSocket *server, PgSocket *request);
/* what was said from a callback leaves now: nothing more belongs to it */
void keeper_say_now(PgSocket *sk);
/* sbuf is about to speak TLS, which lives in this process only */
bool keeper_detach_tls(SBuf *sbuf) _MUSTCHECK;
/* the PgSocket's memory is about to be freed */
void keeper_socket_freed(PgSocket *sk);
/* first statement of disconnect_*: a successor finishes what is doomed */
void keeper_doom(PgSocket *sk, bool notify, const char *sqlstate, const char *reason);
/* pool's welcome message, original parameters or pause state have changed */
void keeper_mark_pool(PgPool *pool);
/* the object's memory is about to be freed */
void keeper_pool_gone(PgPool *pool);
void keeper_database_gone(PgDatabase *db);
/* credentials were learnt at run time: auth_query, PAM, SCRAM keys */
void keeper_mark_credentials(PgCredentials *credentials, PgDatabase *db);
/* SET on the console; RELOAD sets every reloadable key anew */
void keeper_setting(const char *key, const char *value);
void keeper_settings_reloaded(void);
/* SHOW KEEPER */
bool keeper_admin_show(PgSocket *admin, const char *arg);
/* around a command of the console, which may change anything */
void keeper_command_begins(PgSocket *admin);
void keeper_command_done(PgSocket *admin);

/*
 * prepare.c: catalogs
 */

void keeper_statement_added(PgSocket *sk);
void keeper_statement_removed(PgSocket *sk);
void keeper_statement_freed(PgPreparedStatement *ps);
extern uint64_t next_unique_query_id;

/*
 * A successor leaves its clients' catalogs folded, in the ledger: all of a
 * client's statements are there, or all in client_prepared_statements.
 */

void keeper_unfold_catalog(PgSocket *client);
PgClientPreparedStatement *keeper_look_up_folded(PgSocket *client, const char *name);
void keeper_drop_folded(PgSocket *client);
unsigned keeper_folded_statements(const PgSocket *client);

static inline bool keeper_may_be_folded(const PgSocket *client)
{
	return !client->client_prepared_statements && client->keeper_slot;
}

/* what follows needs client_prepared_statements */
static inline void keeper_unfold(PgSocket *client)
{
	if (keeper_may_be_folded(client))
		keeper_unfold_catalog(client);
}

/* all of them are about to be freed */
static inline void keeper_statements_gone(PgSocket *client)
{
	if (keeper_may_be_folded(client))
		keeper_drop_folded(client);
}

/* it is not in client_prepared_statements: NULL, or one whose ps is right */
static inline PgClientPreparedStatement *keeper_look_up(PgSocket *client, const char *name)
{
	return keeper_may_be_folded(client) ? keeper_look_up_folded(client, name) : NULL;
}

/*
 * varcache.c
 */

const char *varcache_name(int idx);
/* counts changes of tracked parameters, whosever they are */
extern unsigned keeper_vars_changes;

#endif
