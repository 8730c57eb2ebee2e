/*
 * pgkeeper - the connection to the hanger.
 *
 * A successor says HELLO, receives the ledger, the listening sockets and, when
 * it is told to, the held sockets; from then on the hanger delivers clients.
 * Should the hanger go away, we accept on our duplicates of its listening
 * sockets and register everything with the next one.
 */
#include "bouncer.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <poll.h>

#include <usual/err.h>
#include <usual/safeio.h>
#include <usual/slab.h>
#include <usual/time.h>

#include "keeper/internal.h"
#include "keeper/link.h"
#include "keeper/signature.h"

/* a hanger that is not there (yet): how long a start waits, seconds */
#define START_PATIENCE		60
#define RECONNECT_INTERVAL	200000	/* microseconds */
#define MAX_LISTENERS		KEEPER_BATCH
#define MAX_CATALOG		400	/* statements of a client that every one may have */
/* one that stands still on demand shows so often that it lives, milliseconds */
#define FROZEN_BEAT		200

extern uint8_t mock_auth_nonce[32];
extern bool mock_auth_nonce_initialized;

enum LinkState {
	LINK_DOWN,
	LINK_SUCCESSOR,		/* HELLO sent, or standing by */
	LINK_SERVING,		/* HELLO sent to a new hanger, while we serve */
	LINK_ACTIVE,
};

static enum LinkState state = LINK_DOWN;
static int ledger_fd = -1;
static bool adopted;
static bool frozen;
static struct event control_event, reconnect_event;

static struct {
	int fd;
	bool is_unix;
} listener[MAX_LISTENERS];
static unsigned n_listeners;

static void control_cb(evutil_socket_t fd, short flags, void *arg);
static void serve(struct KeeperAdopt *adopt);
static bool read_message(void);

bool keeper_hanger_connected(void)
{
	return state == LINK_ACTIVE;
}

/*
 * Connecting.
 */

/*
 * Of a client that has prepared as many statements as a server keeps, with names
 * of some 8 bytes.  Those that have more may use what others do not need.
 */
static unsigned catalog_units(void)
{
	unsigned statements = cf_max_prepared_statements > 0 ? cf_max_prepared_statements : 0;
	unsigned units = 1;

	if (statements > MAX_CATALOG)
		statements = MAX_CATALOG;
	while (units * KEEPER_UNIT < statements * (sizeof(struct KeeperCatalogEntry) + 8) + sizeof(struct KeeperBlob))
		units *= 2;
	return units;
}

/* how large a ledger this configuration wants */
static void wanted_sizes(struct KeeperHello *hello)
{
	unsigned conns = cf_max_client_conn > 0 ? cf_max_client_conn : 1;

	/* clients, as many servers, pools and learnt users, sockets being closed */
	hello->slots = 2 * conns + conns / 2 + 256;
	/* IOBufs are held only while they hold bytes; beyond these a session is volatile meanwhile */
	hello->iobufs = conns / 2 + 256;
	/* records of some 200 bytes, outboxes, texts of prepared statements */
	hello->units = 24 * conns + 128 * 1024;
	/* catalogs, of which a quarter is kept free */
	hello->units += conns * catalog_units() / 3 * 4;
	hello->pkt_buf = cf_sbuf_len;
	hello->max_client_conn = cf_max_client_conn;
}

static bool send_hello(enum KeeperRole role)
{
	struct KeeperHello hello;
	unsigned slot;

	memset(&hello, 0, sizeof(hello));
	hello.format_version = KEEPER_FORMAT_VERSION;
	hello.format_oldest = KEEPER_FORMAT_OLDEST;
	hello.role = role;
	hello.signature = KEEPER_SIGNATURE;
	hello.pid = getpid();
	wanted_sizes(&hello);
	hello.features = KEEPER_FEATURE_FORGETS;
	strlcpy(hello.pgbouncer_version, PACKAGE_VERSION, sizeof(hello.pgbouncer_version));
	if (role == KEEPER_ROLE_SUCCESSOR)
		return keeper_link_send(KEEPER_MSG_HELLO, &hello, sizeof(hello), NULL, 0);
	hello.incarnation = keeper_store.incarnation;
	hello.format = keeper_store.format;
	hello.last_token = keeper_store.watermark;
	for (slot = 1; slot <= keeper_store.header->slots; slot++)
		hello.sockets += keeper_local[slot].fd >= 0 && keeper_local[slot].token != 0;
	return keeper_link_send(KEEPER_MSG_HELLO, &hello, sizeof(hello), &ledger_fd, 1);
}

static void watch_control(int fd)
{
	keeper_control_fd = fd;
	event_assign(&control_event, pgb_event_base, fd, EV_READ | EV_PERSIST, control_cb, NULL);
	if (event_add(&control_event, NULL) < 0)
		die("keeper: cannot watch keeper_socket");
}

static void close_control(void)
{
	if (keeper_control_fd < 0)
		return;
	event_del(&control_event);
	close(keeper_control_fd);
	keeper_control_fd = -1;
	state = LINK_DOWN;
}

static void schedule_reconnect(void);

static void reconnect_cb(evutil_socket_t sock, short flags, void *arg)
{
	int fd = keeper_link_connect();

	if (fd < 0) {
		schedule_reconnect();
		return;
	}
	watch_control(fd);
	state = LINK_SERVING;
	if (!send_hello(KEEPER_ROLE_SERVING)) {
		close_control();
		schedule_reconnect();
	}
}

static void schedule_reconnect(void)
{
	struct timeval interval = { 0, RECONNECT_INTERVAL };

	evtimer_assign(&reconnect_event, pgb_event_base, reconnect_cb, NULL);
	if (evtimer_add(&reconnect_event, &interval) < 0)
		log_warning("keeper: cannot schedule the search for a new hanger");
}

/* serve on, accept by ourselves, look for the next hanger */
static void hanger_lost(const char *why)
{
	bool was_active = state == LINK_ACTIVE;

	close_control();
	if (!adopted)
		die("keeper: the hanger closed the connection: %s", why);
	if (was_active) {
		log_warning("keeper: the hanger is gone (%s), accepting clients without it", why);
		if (!cf_shutdown)
			resume_pooler();
	}
	schedule_reconnect();
}

/*
 * What the hanger sends.
 */

static void map_ledger(int fd)
{
	struct stat st;
	void *base;
	const char *wrong;

	if (fstat(fd, &st) < 0)
		die("keeper: fstat of the ledger: %s", strerror(errno));
	base = mmap(NULL, st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (base == MAP_FAILED)
		die("keeper: mmap of the ledger: %s", strerror(errno));
	wrong = keeper_store_attach(&keeper_store, base, st.st_size);
	if (wrong)
		die("keeper: the hanger sent %s", wrong);
	if (keeper_store.header->pkt_buf != (unsigned)cf_sbuf_len) {
		log_warning("keeper: pkt_buf stays %u, as the sessions that are held need it", keeper_store.header->pkt_buf);
		cf_sbuf_len = keeper_store.header->pkt_buf;
		slab_destroy(iobuf_cache);
		iobuf_cache = slab_create("iobuf_cache", IOBUF_SIZE, 0, NULL, USUAL_ALLOC);
		if (!iobuf_cache)
			die("keeper: out of memory");
	}
	ledger_fd = fd;
	keeper_local_setup();
}

static void add_listener(int fd, bool is_unix)
{
	if (n_listeners == MAX_LISTENERS || !use_pooler_socket(fd, is_unix))
		die("keeper: cannot use a listening socket");
	listener[n_listeners].fd = fd;
	listener[n_listeners].is_unix = is_unix;
	n_listeners++;
}

static void new_client(uint64_t token, int fd, bool is_unix, bool fresh)
{
	if (cf_shutdown) {
		/* upstream no longer listens then */
		safe_close(fd);
		keeper_hanger_release(&token, 1, true);
		return;
	}
	keeper_accept_token = token;
	keeper_accept_fresh = fresh;
	if (!accept_client(fd, is_unix))
		log_debug("keeper: a client left before it could be accepted");
	keeper_accept_token = 0;
	keeper_accept_fresh = false;
}

/* a new hanger knows nothing: hand over duplicates of everything */
static void register_all(void)
{
	struct KeeperListeners listeners;
	struct KeeperSockets sockets;
	struct KeeperReady ready;
	int fds[KEEPER_BATCH];
	unsigned i, slot;
	bool ok;

	/* it accepts from now on, unless nobody does */
	suspend_pooler();
	memset(&listeners, 0, sizeof(listeners));
	listeners.count = n_listeners;
	for (i = 0; i < n_listeners; i++) {
		listeners.unix_socket[i] = listener[i].is_unix;
		fds[i] = listener[i].fd;
	}
	ok = keeper_link_send_patiently(KEEPER_MSG_LISTENERS_BACK, &listeners,
			    offsetof(struct KeeperListeners, unix_socket) + n_listeners * sizeof(uint32_t), fds, n_listeners);

	memset(&ready, 0, sizeof(ready));
	memset(&sockets, 0, sizeof(sockets));
	for (slot = 1; ok && slot <= keeper_store.header->slots; slot++) {
		const struct KeeperLocal *l = &keeper_local[slot];

		if (l->fd >= 0 && l->token) {
			ready.clients += l->kind == KEEPER_CLIENT;
			ready.servers += l->kind == KEEPER_SERVER;
			sockets.socket[sockets.count].token = l->token;
			sockets.socket[sockets.count].unix_socket = l->is_unix;
			fds[sockets.count++] = l->fd;
		}
		if (sockets.count == KEEPER_BATCH || (sockets.count && slot == keeper_store.header->slots)) {
			ok = keeper_link_send_patiently(KEEPER_MSG_REGISTER, &sockets, keeper_sockets_size(sockets.count), fds, sockets.count);
			sockets.count = 0;
		}
	}
	ready.incarnation = keeper_store.incarnation;
	if (cf_shutdown)
		ok = ok && keeper_link_send_patiently(KEEPER_MSG_DRAINING, NULL, 0, NULL, 0);
	ok = ok && keeper_link_send_patiently(KEEPER_MSG_READY, &ready, sizeof(ready), NULL, 0);
	if (!ok) {
		state = LINK_ACTIVE;
		hanger_lost("it does not read");
		return;
	}
	state = LINK_ACTIVE;
	log_info("keeper: registered %u clients and %u servers with a new hanger", ready.clients, ready.servers);
}

/* stand still at a commit that the successor can read, until the hanger says THAW, or kills us */
static void freeze(const struct KeeperFreeze *wish)
{
	struct KeeperFreeze now = { 0, 0 };
	unsigned i;

	keeper_settle();
	if (wish->format != keeper_store.format && keeper_store_knows(wish->format))
		keeper_write_in_format(wish->format);
	now.format = keeper_store.format;
	frozen = true;
	if (!keeper_link_send(KEEPER_MSG_FROZEN, &now, sizeof(now), NULL, 0))
		frozen = false;
	while (frozen && keeper_control_fd >= 0) {
		struct pollfd p = { keeper_control_fd, POLLIN, 0 };

		keeper_beat();
		if (poll(&p, 1, FROZEN_BEAT) > 0)
			read_message();
	}
	frozen = false;
	reset_time_cache();
	/* who came meanwhile */
	for (i = 0; i < keeper_n_held; i++)
		new_client(keeper_held[i].token, keeper_held[i].fd, keeper_held[i].is_unix, false);
	keeper_held_none();
}

static void handle_message(const struct KeeperMessage *head, const uint8_t *body, size_t len, int *fds, unsigned n_fds)
{
	union {
		struct KeeperSockets sockets;
		struct KeeperListeners listeners;
		struct KeeperAdopt adopt;
		struct KeeperFreeze freeze;
		struct KeeperTokens tokens;
	} m;
	unsigned i;

	memset(&m, 0, sizeof(m));
	memcpy(&m, body, len < sizeof(m) ? len : sizeof(m));
	switch (head->type) {
	case KEEPER_MSG_REFUSE:
		if (!adopted)
			die("keeper: refused by the hanger: %.*s", (int)len, (const char *)body);
		log_warning("keeper: refused by the hanger: %.*s", (int)len, (const char *)body);
		hanger_lost("refused");
		break;
	case KEEPER_MSG_WELCOME:
		if (state == LINK_SERVING) {
			register_all();
		} else if (n_fds == 1 && ledger_fd < 0) {
			map_ledger(fds[0]);
			keeper_prepare_soon();
			return;
		}
		break;
	case KEEPER_MSG_LISTENERS:
		if (adopted || m.listeners.count != n_fds)
			break;
		for (i = 0; i < n_fds; i++)
			add_listener(fds[i], m.listeners.unix_socket[i]);
		return;
	case KEEPER_MSG_SOCKETS:
		if (adopted || m.sockets.count != n_fds)
			break;
		for (i = 0; i < n_fds; i++)
			keeper_held_add(m.sockets.socket[i].token, fds[i], m.sockets.socket[i].unix_socket);
		keeper_prepare_soon();
		return;
	case KEEPER_MSG_FORGET:
		if (adopted || m.tokens.count > KEEPER_BATCH)
			break;
		keeper_held_forget(m.tokens.token, m.tokens.count);
		keeper_prepare_soon();
		break;
	case KEEPER_MSG_ADOPT:
		if (!adopted && ledger_fd >= 0)
			serve(&m.adopt);
		break;
	case KEEPER_MSG_CLIENT:
		if (n_fds != 1)
			break;
		if (adopted && !frozen)
			new_client(m.sockets.socket[0].token, fds[0], m.sockets.socket[0].unix_socket,
				   m.sockets.socket[0].fresh);
		else
			keeper_held_add(m.sockets.socket[0].token, fds[0], m.sockets.socket[0].unix_socket);
		return;
	case KEEPER_MSG_FREEZE:
		if (adopted)
			freeze(&m.freeze);
		break;
	case KEEPER_MSG_THAW:
		frozen = false;
		break;
	case KEEPER_MSG_RELEASE_ALL:
		if (adopted)
			keeper_end_all();
		else
			exit(0);
		break;
	case KEEPER_MSG_KILL:
		if (adopted && !frozen)
			keeper_end_clients(&m.tokens);
		break;
	default:
		log_warning("keeper: unknown message %d from the hanger", head->type);
		break;
	}
	for (i = 0; i < n_fds; i++)
		close(fds[i]);
}

/* handle one message; false: nothing more for now */
static bool read_message(void)
{
	struct KeeperReceived r;
	const char *why = NULL;

	switch (keeper_link_receive(&r, &why)) {
	case KEEPER_NOTHING:
		return false;
	case KEEPER_LINK_LOST:
		hanger_lost(why);
		return false;
	case KEEPER_RECEIVED:
		break;
	}
	if (r.truncated) {
		/* some were dropped by the kernel: our descriptor limit is too low */
		if (!adopted)
			die("keeper: descriptors were lost on the way: raise the limit on open files");
		log_warning("keeper: a client was lost: the limit on open files is reached");
	}
	handle_message(&r.head, r.body, r.length, r.fds, r.n_fds);
	return keeper_control_fd >= 0;
}

static void control_cb(evutil_socket_t fd, short flags, void *arg)
{
	while (keeper_control_fd >= 0 && read_message()) {
	}
}

/*
 * Starting and ending.
 */

void keeper_init(void)
{
	const char *override = getenv("PGBOUNCER_KEEPER_SOCKET");

	if (override && *override) {
		free(cf_keeper_socket);
		cf_keeper_socket = xstrdup(override);
	}
	keeper_on = cf_keeper_socket && *cf_keeper_socket;
	if (keeper_on && cf_daemon)
		die("keeper_socket and daemon mode (-d) cannot be used together");
	if (keeper_on && cf_reboot)
		die("keeper_socket and online restart (-R) cannot be used together: use 'pgkeeper handoff'");
}

/* who had something to say has been heard: the hanger's work would else come before that, on our processor */
static void report_cb(evutil_socket_t sock, short flags, void *arg)
{
	struct KeeperReady *ready = arg;

	if (!keeper_link_send_patiently(KEEPER_MSG_READY, ready, sizeof(*ready), NULL, 0) && keeper_control_fd >= 0)
		hanger_lost("it does not read");
}

static void serve(struct KeeperAdopt *adopt)
{
	static struct KeeperReady ready;
	struct timeval at_once = { 0, 0 };
	usec_t start = get_time_usec();

	memset(&ready, 0, sizeof(ready));
	if (!keeper_store_knows(adopt->format))
		die("keeper: the ledger has format %u, which is not known here", adopt->format);
	keeper_store.format = adopt->format;
	/* commits leave it alone, since it seldom changes */
	keeper_store.header->act[0].format = keeper_store.header->act[1].format = adopt->format;
	keeper_store.incarnation = adopt->incarnation;
	if (!mock_auth_nonce_initialized) {
		get_random_bytes(mock_auth_nonce, sizeof(mock_auth_nonce));
		mock_auth_nonce_initialized = true;
	}
	adopted = true;
	state = LINK_ACTIVE;
	keeper_prepare_no_more();
	keeper_adopt(adopt->down_us, &ready);
	/* what our predecessor was told holds for us */
	if (cf_shutdown)
		cleanup_sockets();
	keeper_settle();
	keeper_store_forget_damage(&keeper_store);
	keeper_held_none();

	ready.incarnation = adopt->incarnation;
	ready.adoption_us = get_time_usec() - start;
	keeper_remember_adoption(&ready, adopt->down_us);
	log_info("keeper: incarnation %" PRIu64 " adopted %u clients and %u servers in %" PRIu64 " us",
		 ready.incarnation, ready.clients, ready.servers, ready.adoption_us);
	/* that turns the loop too, whose maintenance serves who waits */
	if (event_base_once(pgb_event_base, -1, EV_TIMEOUT, report_cb, &ready, &at_once) < 0)
		report_cb(-1, EV_TIMEOUT, &ready);
}

void keeper_start(void)
{
	int waited, fd = -1;

	for (waited = 0; fd < 0; waited++) {
		fd = keeper_link_connect();
		if (fd < 0 && waited >= 10 * START_PATIENCE)
			die("keeper: cannot reach keeper_socket %s: %s", cf_keeper_socket, strerror(errno));
		if (fd < 0 && waited == 0)
			log_info("keeper: waiting for a hanger at %s: %s", cf_keeper_socket, strerror(errno));
		if (fd < 0)
			usleep(100000);
	}
	watch_control(fd);
	state = LINK_SUCCESSOR;
	if (!send_hello(KEEPER_ROLE_SUCCESSOR))
		die("keeper: cannot write to keeper_socket %s: %s", cf_keeper_socket, strerror(errno));
	while (!adopted) {
		if (event_base_loop(pgb_event_base, EVLOOP_ONCE) < 0 && errno != EINTR)
			die("keeper: event_loop failed: %s", strerror(errno));
		if (!adopted && cf_shutdown)
			exit(0);
	}
	/* the pidfile of the one whose sessions we have taken over */
	if (cf_pidfile && *cf_pidfile)
		unlink(cf_pidfile);
}

void keeper_leave_sessions(const char *signal_name)
{
	if (adopted) {
		log_info("got %s, leaving all sessions with the hanger", signal_name);
		keeper_settle();
		if (cf_pidfile && *cf_pidfile)
			unlink(cf_pidfile);
	}
	/* no exit handlers: they say goodbye to clients and remove the hanger's sockets */
	_exit(0);
}

void keeper_stop_listening(void)
{
	/* a hanger that has closed its sockets needs a successor that knows why */
	keeper_mark_global();
	keeper_commit(KEEPER_ACT_NONE, 0, 0);
	if (state == LINK_ACTIVE && !keeper_link_send_patiently(KEEPER_MSG_DRAINING, NULL, 0, NULL, 0))
		hanger_lost("it does not read");
	/* nobody may be let in behind the answer to the command: not even by the hanger, which reads later */
	while (n_listeners > 0)
		shutdown(listener[--n_listeners].fd, SHUT_RDWR);
}

void keeper_farewell(void)
{
	if (!keeper_on || !adopted)
		return;
	keeper_settle();
	keeper_link_send_patiently(KEEPER_MSG_FAREWELL, NULL, 0, NULL, 0);
}
