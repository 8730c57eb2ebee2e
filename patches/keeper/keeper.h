/*
 * pgkeeper - what PgBouncer's own files call.
 *
 * With no keeper_socket in the ini keeper_on is false, no PgSocket has a slot,
 * and every function here does what upstream's code did in its place.
 */
#ifndef KEEPER_KEEPER_H
#define KEEPER_KEEPER_H

#include "keeper/control.h"
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
/* around every protocol callback: what it may change is marked */
void keeper_before_proto(SBuf *sbuf, int event);
void keeper_after_proto(SBuf *sbuf);
/* what comes now is no socket's event */
void keeper_handles_nobody(void);

/* defined in sbuf.c, for adoption: wait for data again; go on as if a system call had just returned */
bool sbuf_adopt_wait(SBuf *sbuf) _MUSTCHECK;
void sbuf_adopt_resume(SBuf *sbuf);

/*
 * objects.c, server.c, client.c, janitor.c, proto.c
 */

static inline void keeper_mark(PgSocket *sk)
{
	if (sk)
		keeper_store_mark(&keeper_store, sk->keeper_slot);
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
 * varcache.c
 */

const char *varcache_name(int idx);
/* counts changes of tracked parameters, whosever they are */
extern unsigned keeper_vars_changes;

#endif
