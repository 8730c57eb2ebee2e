/*
 * herd: what comes before a round, and again when a connection has ended: connecting, the login,
 * the statements.
 */
#define _GNU_SOURCE
#include "herd.h"

#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define LOGGING_IN	48	/* sessions at a time */
#define REFUSED_MS	1

unsigned *returning, n_returning;
unsigned n_returned;

static struct sockaddr_in address;
static const char *user, *database;
static double refused_until;

double now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1e3 + ts.tv_nsec / 1e6;
}

/*
 * Messages.
 */

void put(struct Message *m, const void *data, size_t len)
{
	if (m->len + len > sizeof(m->data))
		errx(1, "a message is too long");
	memcpy(m->data + m->len, data, len);
	m->len += len;
}

void put_string(struct Message *m, const char *string)
{
	put(m, string, strlen(string) + 1);
}

void begin_message(struct Message *m, char type)
{
	if (type)
		put(m, &type, 1);
	m->start = m->len;
	put(m, "\0\0\0\0", 4);
}

void end_message(struct Message *m)
{
	uint32_t len = htonl(m->len - m->start);

	memcpy(m->data + m->start, &len, sizeof(len));
}

void transmit(unsigned i, const struct Message *m)
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
	begin_message(&m, 0);
	put(&m, "\0\3\0\0", 4);
	put_string(&m, "user");
	put_string(&m, user);
	put_string(&m, "database");
	put_string(&m, database);
	put(&m, "", 1);
	end_message(&m);
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
		begin_message(&m, 'P');
		put_string(&m, name);
		put_string(&m, text);
		put(&m, "\0\0", 2);
		end_message(&m);
		if (m.len > sizeof(m.data) / 2) {
			transmit(i, &m);
			m.len = 0;
		}
	}
	begin_message(&m, 'S');
	end_message(&m);
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

ssize_t receive(unsigned i, void *data, size_t size)
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

bool approach(unsigned i)
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

int let_return(void)
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

void set_up(const char *host, int port, const char *as, const char *of)
{
	struct epoll_event event[EVENTS];
	unsigned n_begun = 0, n_done = 0;
	double told = now_ms();

	user = as;
	database = of;
	address.sin_family = AF_INET;
	address.sin_port = htons(port);
	if (inet_pton(AF_INET, host, &address.sin_addr) != 1)
		errx(2, "%s is no IPv4 address", host);
	returning = calloc(n_sessions, sizeof(*returning));
	if (!returning)
		err(1, "start");
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
