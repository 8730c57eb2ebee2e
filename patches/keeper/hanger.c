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
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <poll.h>

#include <usual/err.h>
#include <usual/safeio.h>
#include <usual/slab.h>
#include <usual/time.h>

#include "keeper/internal.h"
#include "keeper/signature.h"

/* a hanger that is not there (yet): how long a start waits, seconds */
#define START_PATIENCE		60
#define RECONNECT_INTERVAL	200000	/* microseconds */
#define MAX_LISTENERS		KEEPER_BATCH

extern uint8_t mock_auth_nonce[32];
extern bool mock_auth_nonce_initialized;

enum LinkState {
	LINK_DOWN,
	LINK_SUCCESSOR,		/* HELLO sent, or standing by */
	LINK_SERVING,		/* HELLO sent to a new hanger, while we serve */
	LINK_ACTIVE,
};

static enum LinkState state = LINK_DOWN;
static int control_fd = -1;
static int ledger_fd = -1;
static bool adopted;
static bool frozen;
static struct event control_event, reconnect_event;

static struct {
	int fd;
	bool is_unix;
} listener[MAX_LISTENERS];
static unsigned n_listeners;

static struct KeeperHeld *held;
static unsigned n_held, max_held;

static void control_cb(evutil_socket_t fd, short flags, void *arg);
static void serve(struct KeeperAdopt *adopt);
static bool read_message(void);

bool keeper_hanger_connected(void)
{
	return state == LINK_ACTIVE;
}

/*
 * Messages.
 */

static bool send_message(enum KeeperMessageType type, const void *body, size_t len, const int *fds, unsigned n_fds)
{
	struct KeeperMessage head = { KEEPER_CONTROL_MAGIC, KEEPER_CONTROL_VERSION, type };
	struct iovec iov[2] = { { &head, sizeof(head) }, { (void *)body, len } };
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(KEEPER_BATCH * sizeof(int))];
	} control;
	struct msghdr msg;
	ssize_t res;

	if (control_fd < 0)
		return false;
	memset(&msg, 0, sizeof(msg));
	msg.msg_iov = iov;
	msg.msg_iovlen = 2;
	if (n_fds) {
		struct cmsghdr *cmsg = &control.align;

		memset(&control, 0, sizeof(control));
		msg.msg_control = control.space;
		msg.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
		memcpy(CMSG_DATA(cmsg), fds, n_fds * sizeof(int));
	}
	do {
		res = sendmsg(control_fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
	} while (res < 0 && errno == EINTR);
	return res >= 0;
}

/* as send_message(), for the few that come in such numbers that the queue may fill */
static bool send_patiently(enum KeeperMessageType type, const void *body, size_t len, const int *fds, unsigned n_fds)
{
	int tries;

	for (tries = 0; tries < 500; tries++) {
		struct pollfd p = { control_fd, POLLOUT, 0 };

		if (send_message(type, body, len, fds, n_fds))
			return true;
		/* ETOOMANYREFS: too many descriptors in flight until the hanger reads */
		if (errno != EAGAIN && errno != ETOOMANYREFS && errno != ENOBUFS)
			return false;
		if (errno == EAGAIN)
			poll(&p, 1, 10);
		else
			usleep(1000);
	}
	return false;
}

static size_t sockets_size(unsigned count)
{
	return offsetof(struct KeeperSockets, socket) + count * sizeof(((struct KeeperSockets *)0)->socket[0]);
}

bool keeper_hanger_register(uint64_t token, int fd, bool is_unix)
{
	struct KeeperSockets sockets;

	memset(&sockets, 0, sizeof(sockets));
	sockets.count = 1;
	sockets.socket[0].token = token;
	sockets.socket[0].unix_socket = is_unix;
	return send_message(KEEPER_MSG_REGISTER, &sockets, sockets_size(1), &fd, 1);
}

bool keeper_hanger_release(const uint64_t *tokens, unsigned count)
{
	struct KeeperTokens message;

	memset(&message, 0, sizeof(message));
	message.count = count;
	memcpy(message.token, tokens, count * sizeof(*tokens));
	return send_message(KEEPER_MSG_RELEASE, &message,
			    offsetof(struct KeeperTokens, token) + count * sizeof(*tokens), NULL, 0);
}

bool keeper_hanger_unheld(uint64_t token, enum KeeperUnheldReason reason, bool is_server)
{
	struct KeeperUnheld message = { token, reason, is_server };

	return send_message(KEEPER_MSG_UNHELD, &message, sizeof(message), NULL, 0);
}

/*
 * Connecting.
 */

static int connect_hanger(void)
{
	struct sockaddr_un un;
	int fd, size = 1 << 20;

	memset(&un, 0, sizeof(un));
	un.sun_family = AF_UNIX;
	if (strlen(cf_keeper_socket) >= sizeof(un.sun_path)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	strcpy(un.sun_path, cf_keeper_socket);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	if (connect(fd, (struct sockaddr *)&un, sizeof(un)) < 0) {
		int saved = errno;

		close(fd);
		errno = saved;
		return -1;
	}
	setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	return fd;
}

/* how large a ledger this configuration wants */
static void wanted_sizes(struct KeeperHello *hello)
{
	unsigned conns = cf_max_client_conn > 0 ? cf_max_client_conn : 1;

	/* clients, as many servers, pools and learnt users, sockets being closed */
	hello->slots = 2 * conns + conns / 2 + 256;
	/* IOBufs are held only while they hold bytes; beyond these a session is volatile meanwhile */
	hello->iobufs = conns / 2 + 256;
	/* records of some 200 bytes, prepared statements, outboxes */
	hello->units = 24 * conns + 128 * 1024;
	hello->pkt_buf = cf_sbuf_len;
	hello->max_client_conn = cf_max_client_conn;
}

static bool send_hello(enum KeeperRole role)
{
	struct KeeperHello hello;
	unsigned slot;

	memset(&hello, 0, sizeof(hello));
	hello.format_version = KEEPER_FORMAT_VERSION;
	hello.role = role;
	hello.signature = KEEPER_SIGNATURE;
	hello.pid = getpid();
	wanted_sizes(&hello);
	strlcpy(hello.pgbouncer_version, PACKAGE_VERSION, sizeof(hello.pgbouncer_version));
	if (role == KEEPER_ROLE_SUCCESSOR)
		return send_message(KEEPER_MSG_HELLO, &hello, sizeof(hello), NULL, 0);
	hello.incarnation = keeper_store.incarnation;
	hello.last_token = keeper_store.watermark;
	for (slot = 1; slot <= keeper_store.header->slots; slot++)
		hello.sockets += keeper_local[slot].fd >= 0 && keeper_local[slot].token != 0;
	return send_message(KEEPER_MSG_HELLO, &hello, sizeof(hello), &ledger_fd, 1);
}

static void watch_control(int fd)
{
	control_fd = fd;
	event_assign(&control_event, pgb_event_base, fd, EV_READ | EV_PERSIST, control_cb, NULL);
	if (event_add(&control_event, NULL) < 0)
		die("keeper: cannot watch keeper_socket");
}

static void close_control(void)
{
	if (control_fd < 0)
		return;
	event_del(&control_event);
	close(control_fd);
	control_fd = -1;
	state = LINK_DOWN;
}

static void schedule_reconnect(void);

static void reconnect_cb(evutil_socket_t sock, short flags, void *arg)
{
	int fd = connect_hanger();

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

static void add_held(uint64_t token, int fd, bool is_unix)
{
	if (n_held == max_held) {
		max_held = max_held ? 2 * max_held : 1024;
		held = realloc(held, max_held * sizeof(*held));
		if (!held)
			die("keeper: out of memory");
	}
	held[n_held].token = token;
	held[n_held].fd = fd;
	held[n_held].is_unix = is_unix;
	n_held++;
}

static void new_client(uint64_t token, int fd, bool is_unix)
{
	if (cf_shutdown) {
		/* upstream no longer listens then */
		safe_close(fd);
		keeper_hanger_release(&token, 1);
		return;
	}
	keeper_accept_token = token;
	if (!accept_client(fd, is_unix))
		log_debug("keeper: a client left before it could be accepted");
	keeper_accept_token = 0;
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

	/* it accepts from now on */
	suspend_pooler();
	memset(&listeners, 0, sizeof(listeners));
	listeners.count = n_listeners;
	for (i = 0; i < n_listeners; i++) {
		listeners.unix_socket[i] = listener[i].is_unix;
		fds[i] = listener[i].fd;
	}
	ok = send_patiently(KEEPER_MSG_LISTENERS_BACK, &listeners,
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
			ok = send_patiently(KEEPER_MSG_REGISTER, &sockets, sockets_size(sockets.count), fds, sockets.count);
			sockets.count = 0;
		}
	}
	ready.incarnation = keeper_store.incarnation;
	ok = ok && send_patiently(KEEPER_MSG_READY, &ready, sizeof(ready), NULL, 0);
	if (!ok) {
		state = LINK_ACTIVE;
		hanger_lost("it does not read");
		return;
	}
	state = LINK_ACTIVE;
	log_info("keeper: registered %u clients and %u servers with a new hanger", ready.clients, ready.servers);
}

/* stand still at a commit until the hanger says THAW, or kills us */
static void freeze(void)
{
	unsigned i;

	keeper_settle();
	frozen = true;
	if (!send_message(KEEPER_MSG_FROZEN, NULL, 0, NULL, 0))
		frozen = false;
	while (frozen && control_fd >= 0) {
		struct pollfd p = { control_fd, POLLIN, 0 };

		if (poll(&p, 1, -1) > 0)
			read_message();
	}
	frozen = false;
	reset_time_cache();
	/* who came meanwhile */
	for (i = 0; i < n_held; i++)
		new_client(held[i].token, held[i].fd, held[i].is_unix);
	n_held = 0;
}

static void end_client(PgSocket *client)
{
	disconnect_client_sqlstate(client, true, "57P01", "terminating connection: pgbouncer and pgkeeper are shut down");
}

static void end_clients(struct StatList *list)
{
	struct List *item, *tmp;

	statlist_for_each_safe(item, list, tmp) {
		end_client(container_of(item, PgSocket, head));
	}
}

static void end_server(PgSocket *server)
{
	disconnect_server(server, true, "pgkeeper releases all sessions");
}

static void end_servers(struct StatList *list)
{
	struct List *item, *tmp;

	statlist_for_each_safe(item, list, tmp) {
		end_server(container_of(item, PgSocket, head));
	}
}

static void release_all(void)
{
	struct List *item;

	log_info("keeper: releasing all sessions");
	/* nobody who waits may be given a server that was just let go */
	cf_pause_mode = P_PAUSE;
	cf_shutdown = SHUTDOWN_IMMEDIATE;
	end_clients(&login_client_list);
	statlist_for_each(item, &pool_list) {
		PgPool *pool = container_of(item, PgPool, head);

		end_clients(&pool->active_client_list);
		end_clients(&pool->waiting_client_list);
		end_clients(&pool->waiting_cancel_req_list);
		end_clients(&pool->active_cancel_req_list);
		end_servers(&pool->active_server_list);
		end_servers(&pool->idle_server_list);
		end_servers(&pool->used_server_list);
		end_servers(&pool->tested_server_list);
		end_servers(&pool->being_canceled_server_list);
	}
	keeper_settle();
}

static void handle_message(const struct KeeperMessage *head, const uint8_t *body, size_t len, int *fds, unsigned n_fds)
{
	union {
		struct KeeperSockets sockets;
		struct KeeperListeners listeners;
		struct KeeperAdopt adopt;
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
			add_held(m.sockets.socket[i].token, fds[i], m.sockets.socket[i].unix_socket);
		return;
	case KEEPER_MSG_ADOPT:
		if (!adopted && ledger_fd >= 0)
			serve(&m.adopt);
		break;
	case KEEPER_MSG_CLIENT:
		if (n_fds != 1)
			break;
		if (adopted && !frozen)
			new_client(m.sockets.socket[0].token, fds[0], m.sockets.socket[0].unix_socket);
		else
			add_held(m.sockets.socket[0].token, fds[0], m.sockets.socket[0].unix_socket);
		return;
	case KEEPER_MSG_FREEZE:
		if (adopted)
			freeze();
		break;
	case KEEPER_MSG_THAW:
		frozen = false;
		break;
	case KEEPER_MSG_RELEASE_ALL:
		if (adopted)
			release_all();
		else
			exit(0);
		break;
	default:
		log_warning("keeper: unknown message %d from the hanger", head->type);
		break;
	}
	for (i = 0; i < n_fds; i++)
		close(fds[i]);
}

/* read one message; false: nothing more for now */
static bool read_message(void)
{
	struct KeeperMessage head;
	uint8_t body[KEEPER_MESSAGE_MAX];
	struct iovec iov[2] = { { &head, sizeof(head) }, { body, sizeof(body) } };
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(KEEPER_BATCH * sizeof(int))];
	} control;
	struct msghdr msg;
	struct cmsghdr *cmsg;
	int fds[KEEPER_BATCH];
	unsigned n_fds = 0;
	ssize_t res;

	memset(&msg, 0, sizeof(msg));
	msg.msg_iov = iov;
	msg.msg_iovlen = 2;
	msg.msg_control = control.space;
	msg.msg_controllen = sizeof(control.space);
	do {
		res = recvmsg(control_fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	} while (res < 0 && errno == EINTR);
	if (res < 0 && errno == EAGAIN)
		return false;
	if (res <= 0) {
		hanger_lost(res < 0 ? strerror(errno) : "end of connection");
		return false;
	}
	for (cmsg = CMSG_FIRSTHDR(&msg); cmsg; cmsg = CMSG_NXTHDR(&msg, cmsg)) {
		if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS)
			continue;
		n_fds = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		memcpy(fds, CMSG_DATA(cmsg), n_fds * sizeof(int));
	}
	if ((size_t)res < sizeof(head) || head.magic != KEEPER_CONTROL_MAGIC || head.version != KEEPER_CONTROL_VERSION) {
		hanger_lost("it speaks another protocol");
		return false;
	}
	if (msg.msg_flags & MSG_CTRUNC) {
		/* some were dropped by the kernel: our descriptor limit is too low */
		if (!adopted)
			die("keeper: descriptors were lost on the way: raise the limit on open files");
		log_warning("keeper: a client was lost: the limit on open files is reached");
	}
	handle_message(&head, body, res - sizeof(head), fds, n_fds);
	return control_fd >= 0;
}

static void control_cb(evutil_socket_t fd, short flags, void *arg)
{
	while (control_fd >= 0 && read_message()) {
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

static void serve(struct KeeperAdopt *adopt)
{
	struct KeeperReady ready;
	usec_t start = get_time_usec();

	memset(&ready, 0, sizeof(ready));
	keeper_store.incarnation = adopt->incarnation;
	if (!mock_auth_nonce_initialized) {
		get_random_bytes(mock_auth_nonce, sizeof(mock_auth_nonce));
		mock_auth_nonce_initialized = true;
	}
	adopted = true;
	state = LINK_ACTIVE;
	keeper_adopt(held, n_held, adopt->down_us, &ready);
	keeper_settle();
	free(held);
	held = NULL;
	n_held = max_held = 0;

	ready.incarnation = adopt->incarnation;
	ready.adoption_us = get_time_usec() - start;
	log_info("keeper: incarnation %" PRIu64 " adopted %u clients and %u servers in %" PRIu64 " us",
		 ready.incarnation, ready.clients, ready.servers, ready.adoption_us);
	if (!send_patiently(KEEPER_MSG_READY, &ready, sizeof(ready), NULL, 0) && control_fd >= 0)
		hanger_lost("it does not read");
}

void keeper_start(void)
{
	int waited, fd = -1;

	for (waited = 0; fd < 0; waited++) {
		fd = connect_hanger();
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

void keeper_farewell(void)
{
	if (!keeper_on || !adopted)
		return;
	keeper_settle();
	send_patiently(KEEPER_MSG_FAREWELL, NULL, 0, NULL, 0);
}
