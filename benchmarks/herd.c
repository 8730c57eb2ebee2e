/*
 * Many sessions with many prepared statements, asked all at once or one alone: the
 * measuring client of benchmarks/herd.py, in C lest it be slower than what it measures.
 *
 *	herd HOST PORT SESSIONS STATEMENTS USER DATABASE stays|returns
 *
 * Session i prepares s0, s1, ... as SELECT i, SELECT i + 1, ... (modulo STATEMENTS):
 * the texts are shared, but a name means something else in each session.  When all
 * are ready a line says so on standard output.  Then each line "PID ROUND ASKED" on
 * standard input makes a round: SIGKILL to PID (0: to nobody), and so many sessions execute
 * one of their statements each.  The answer must be right to the byte.  A line of JSON
 * tells the times of the answers, milliseconds from just before the kill.
 *
 * A connection that ends is an error that ends the herd, unless it "returns": then who was
 * asked connects again at once, prepares and asks again until it has its answer; who was not
 * does so when the round is over.  While connections are refused, the whole herd tries again
 * each millisecond, with one of them.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define LOGGING_IN	48	/* sessions at a time */
#define REFUSED_MS	1
#define PATIENCE_MS	60000
#define EVENTS		256
#define PARSE_ANSWER	5
#define READY_ANSWER	6

enum Stage { GONE, CONNECTING, LOGIN, PREPARING, AT_REST, ASKED };

struct Session {
	int fd;
	enum Stage stage;
	bool wants;		/* to come back if its connection ends, for an answer is due */
	uint8_t head[5];	/* of the message that is being read */
	unsigned n_head;
	uint32_t left;		/* bytes of it that are still to come */
	char got[128], expected[128];
	unsigned n_got, n_expected;
};

struct Message {
	char data[64 * 1024];
	unsigned len, start;
};

static struct Session *session;
static unsigned n_sessions, n_statements;
static struct sockaddr_in address;
static const char *user, *database;
static bool returns;
static unsigned n_returned;
static int poll_fd;

/* what each is asked in this round */
static struct Message *ask;

/* who has to connect again */
static unsigned *returning, n_returning;
static double refused_until;

static double now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1e3 + ts.tv_nsec / 1e6;
}

/*
 * Messages.
 */

static void put(struct Message *m, const void *data, size_t len)
{
	if (m->len + len > sizeof(m->data))
		errx(1, "a message is too long");
	memcpy(m->data + m->len, data, len);
	m->len += len;
}

static void put_string(struct Message *m, const char *string)
{
	put(m, string, strlen(string) + 1);
}

static void begin(struct Message *m, char type)
{
	if (type)
		put(m, &type, 1);
	m->start = m->len;
	put(m, "\0\0\0\0", 4);
}

static void end(struct Message *m)
{
	uint32_t len = htonl(m->len - m->start);

	memcpy(m->data + m->start, &len, sizeof(len));
}

static void transmit(unsigned i, const struct Message *m)
{
	unsigned done = 0;

	while (done < m->len) {
		ssize_t res = send(session[i].fd, m->data + done, m->len - done, MSG_NOSIGNAL);

		if (res < 0 && returns)
			return;	/* reading tells that it has ended */
		if (res < 0)
			err(1, "session %u: send", i);
		done += res;
	}
}

/*
 * From no connection to a session at rest.
 */

/* false: refused */
static bool enter(unsigned i)
{
	struct Session *s = &session[i];
	struct epoll_event event = { .events = EPOLLIN | EPOLLOUT, .data.u32 = i };
	int one = 1;

	s->n_head = 0;
	s->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (s->fd < 0)
		err(1, "socket");
	if (connect(s->fd, (struct sockaddr *)&address, sizeof(address)) < 0 && errno != EINPROGRESS) {
		if (!returns || errno != ECONNREFUSED)
			err(1, "session %u: connect", i);
		close(s->fd);
		return false;
	}
	setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (epoll_ctl(poll_fd, EPOLL_CTL_ADD, s->fd, &event) < 0)
		err(1, "epoll_ctl");
	s->stage = CONNECTING;
	return true;
}

static void log_in(unsigned i)
{
	static struct Message m;
	struct Session *s = &session[i];
	struct epoll_event event = { .events = EPOLLIN, .data.u32 = i };

	epoll_ctl(poll_fd, EPOLL_CTL_MOD, s->fd, &event);
	fcntl(s->fd, F_SETFL, 0);
	m.len = 0;
	begin(&m, 0);
	put(&m, "\0\3\0\0", 4);
	put_string(&m, "user");
	put_string(&m, user);
	put_string(&m, "database");
	put_string(&m, database);
	put(&m, "", 1);
	end(&m);
	transmit(i, &m);
	s->stage = LOGIN;
}

static void prepare(unsigned i)
{
	static struct Message m;
	char name[32], text[64];
	unsigned n;

	m.len = 0;
	for (n = 0; n < n_statements; n++) {
		snprintf(name, sizeof(name), "s%u", n);
		snprintf(text, sizeof(text), "SELECT %u", (n + i) % n_statements);
		begin(&m, 'P');
		put_string(&m, name);
		put_string(&m, text);
		put(&m, "\0\0", 2);
		end(&m);
		if (m.len > sizeof(m.data) / 2) {
			transmit(i, &m);
			m.len = 0;
		}
	}
	begin(&m, 'S');
	end(&m);
	transmit(i, &m);
	session[i].stage = PREPARING;
}

/* true: ReadyForQuery has come */
static bool read_messages(unsigned i, const uint8_t *data, size_t len)
{
	struct Session *s = &session[i];
	bool is_ready = false;

	while (len > 0) {
		if (s->n_head < sizeof(s->head)) {
			s->head[s->n_head++] = *data++;
			len--;
			if (s->n_head < sizeof(s->head))
				continue;
			s->left = ((uint32_t)s->head[1] << 24 | s->head[2] << 16 | s->head[3] << 8 | s->head[4]) - 4;
			if (s->head[0] == 'E')
				errx(1, "session %u: ErrorResponse: %.*s", i, (int)len, (const char *)data);
		} else {
			size_t part = s->left < len ? s->left : len;

			data += part;
			len -= part;
			s->left -= part;
		}
		if (s->n_head == sizeof(s->head) && s->left == 0) {
			is_ready = s->head[0] == 'Z';
			s->n_head = 0;
		}
	}
	return is_ready;
}

/* -1: nothing now */
static ssize_t receive(unsigned i, void *data, size_t size)
{
	struct Session *s = &session[i];
	ssize_t res = recv(s->fd, data, size, MSG_DONTWAIT);

	if (res > 0 || (res < 0 && errno == EAGAIN))
		return res;
	if (!returns && res < 0)
		err(1, "session %u: recv", i);
	if (!returns)
		errx(1, "session %u: the connection was closed", i);
	close(s->fd);
	s->stage = GONE;
	if (s->wants)
		returning[n_returning++] = i;
	return -1;
}

/* true: it is at rest now */
static bool approach(unsigned i)
{
	struct Session *s = &session[i];
	uint8_t data[16384];
	ssize_t len;

	if (s->stage == CONNECTING)
		log_in(i);
	len = receive(i, data, sizeof(data));
	if (len < 0 || !read_messages(i, data, len))
		return false;
	if (s->stage == LOGIN) {
		prepare(i);
		return false;
	}
	s->stage = AT_REST;
	return true;
}

/* Let them connect again; milliseconds until the next try, -1: none is needed. */
static int let_return(void)
{
	while (n_returning > 0) {
		double left = refused_until - now_ms();

		if (left > 0)
			return 1 + (int)left;
		if (!enter(returning[n_returning - 1])) {
			refused_until = now_ms() + REFUSED_MS;
			continue;
		}
		n_returning--;
		n_returned++;
	}
	return -1;
}

static void set_up(void)
{
	struct epoll_event event[EVENTS];
	unsigned n_begun = 0, n_done = 0;
	double told = now_ms();

	while (n_done < n_sessions) {
		int n, k;

		while (n_begun < n_sessions && n_begun < n_done + LOGGING_IN)
			enter(n_begun++);
		n = epoll_wait(poll_fd, event, EVENTS, PATIENCE_MS);
		if (n <= 0)
			errx(1, "no answer while %u of %u sessions were ready", n_done, n_sessions);
		for (k = 0; k < n; k++)
			n_done += approach(event[k].data.u32);
		if (now_ms() > told + 1000) {
			told = now_ms();
			fprintf(stderr, "\r%u of %u sessions have their statements", n_done, n_sessions);
		}
	}
	fprintf(stderr, "\r%*s\r", 60, "");
}

/*
 * Rounds.
 */

static int by_size(const void *a, const void *b)
{
	double l = *(const double *)a, r = *(const double *)b;

	return l < r ? -1 : l > r;
}

static void expect(unsigned i, unsigned statement)
{
	static struct Message m;
	struct Session *s = &session[i];
	char name[32], value[32];
	uint32_t size;

	snprintf(name, sizeof(name), "s%u", statement);
	ask[i].len = 0;
	begin(&ask[i], 'B');
	put(&ask[i], "", 1);
	put_string(&ask[i], name);
	put(&ask[i], "\0\0\0\0\0\0", 6);
	end(&ask[i]);
	begin(&ask[i], 'E');
	put(&ask[i], "\0\0\0\0\0", 5);
	end(&ask[i]);
	begin(&ask[i], 'S');
	end(&ask[i]);

	size = htonl(snprintf(value, sizeof(value), "%u", (statement + i) % n_statements));
	m.len = 0;
	begin(&m, '2');
	end(&m);
	begin(&m, 'D');
	put(&m, "\0\1", 2);
	put(&m, &size, sizeof(size));
	put(&m, value, strlen(value));
	end(&m);
	begin(&m, 'C');
	put_string(&m, "SELECT 1");
	end(&m);
	begin(&m, 'Z');
	put(&m, "I", 1);
	end(&m);
	memcpy(s->expected, m.data, m.len);
	s->n_expected = m.len;
	s->wants = true;
}

static void put_question(unsigned i)
{
	session[i].n_got = 0;
	session[i].stage = ASKED;
	transmit(i, &ask[i]);
}

/* true: its answer is complete, and right */
static bool answered(unsigned i)
{
	struct Session *s = &session[i];
	ssize_t len = receive(i, s->got + s->n_got, sizeof(s->got) - s->n_got);

	if (len < 0)
		return false;
	s->n_got += len;
	if (s->stage != ASKED || s->n_got > s->n_expected || memcmp(s->got, s->expected, s->n_got) != 0) {
		fprintf(stderr, "session %u: a wrong answer: ", i);
		fwrite(s->got, 1, s->n_got, stderr);
		errx(1, "; or nobody asked");
	}
	if (s->n_got < s->n_expected)
		return false;
	s->stage = AT_REST;
	s->wants = false;
	return true;
}

/* true: something that it wanted to know it knows now */
static bool handle(unsigned i)
{
	if (session[i].stage == GONE)
		return false;
	if (session[i].stage == ASKED || session[i].stage == AT_REST)
		return answered(i);
	if (approach(i) && session[i].wants)
		put_question(i);
	return false;
}

/* Who has lost his connection without being asked. */
static void gather(void)
{
	struct epoll_event event[EVENTS];
	unsigned i, n_away = 0;
	char byte;

	for (i = 0; i < n_sessions; i++) {
		if (session[i].stage == AT_REST && receive(i, &byte, sizeof(byte)) > 0)
			errx(1, "session %u: something came that nobody has asked for", i);
		if (session[i].stage == GONE) {
			session[i].wants = true;
			returning[n_returning++] = i;
		}
	}
	for (n_away = n_returning; n_away > 0;) {
		int wait_ms = let_return();
		int n = epoll_wait(poll_fd, event, EVENTS, wait_ms < 0 ? PATIENCE_MS : wait_ms), k;

		if (n <= 0 && wait_ms < 0)
			errx(1, "%u of %u sessions have not come back", n_away, n_sessions);
		for (k = 0; k < n; k++) {
			unsigned i = event[k].data.u32;

			if (session[i].stage == GONE || !approach(i))
				continue;
			session[i].wants = false;
			n_away--;
		}
	}
}

static void play(pid_t pid, unsigned round, unsigned n_asked)
{
	struct epoll_event event[EVENTS];
	double *at = malloc(n_sessions * sizeof(*at)), start, sent;
	unsigned n_answered = 0, first = round * 37, i;

	if (!at)
		err(1, "malloc");
	n_returned = 0;
	for (i = 0; i < n_asked; i++)
		expect((first + i) % n_sessions, (round * 7 + i) % n_statements);
	start = now_ms();
	if (pid && kill(pid, SIGKILL) < 0)
		err(1, "kill %d", pid);
	for (i = 0; i < n_asked; i++)
		put_question((first + i) % n_sessions);
	sent = now_ms() - start;
	while (n_answered < n_asked) {
		int wait_ms = let_return();
		int n = epoll_wait(poll_fd, event, EVENTS, wait_ms < 0 ? PATIENCE_MS : wait_ms), k;

		if (n <= 0 && wait_ms < 0)
			errx(1, "%u of %u sessions were answered", n_answered, n_asked);
		for (k = 0; k < n; k++) {
			if (handle(event[k].data.u32))
				at[n_answered++] = now_ms() - start;
		}
	}
	qsort(at, n_answered, sizeof(*at), by_size);
	if (returns)
		gather();
	printf("{\"sent\": %.3f, \"first\": %.3f, \"median\": %.3f, \"last\": %.3f, \"returned\": %u}\n",
	       sent, at[0], at[n_answered / 2], at[n_answered - 1], n_returned);
	free(at);
}

int main(int argc, char **argv)
{
	struct rlimit limit;
	int pid;
	unsigned round, n_asked;

	if (argc != 8)
		errx(2, "usage: herd HOST PORT SESSIONS STATEMENTS USER DATABASE stays|returns");
	address.sin_family = AF_INET;
	address.sin_port = htons(atoi(argv[2]));
	if (inet_pton(AF_INET, argv[1], &address.sin_addr) != 1)
		errx(2, "%s is no IPv4 address", argv[1]);
	n_sessions = atoi(argv[3]);
	n_statements = atoi(argv[4]);
	user = argv[5];
	database = argv[6];
	returns = strcmp(argv[7], "returns") == 0;
	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	setvbuf(stdout, NULL, _IOLBF, 0);

	session = calloc(n_sessions, sizeof(*session));
	ask = malloc(n_sessions * sizeof(*ask));
	returning = calloc(n_sessions, sizeof(*returning));
	poll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (!session || !ask || !returning || poll_fd < 0)
		err(1, "start");
	set_up();
	printf("ready\n");
	while (scanf("%d %u %u", &pid, &round, &n_asked) == 3)
		play(pid, round, n_asked);
	return 0;
}
