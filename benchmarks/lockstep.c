/*
 * Clients and servers of one pooler in a single process, which lets the pooler work in even
 * steps: the measuring program of benchmarks/lockstep.py.
 *
 *	lockstep SESSIONS PROTOCOL
 *
 * It listens for the pooler's server connections and prints its port.  A line "HOST PORT USER
 * DATABASE" on standard input makes it connect so many clients, and waits until each has been
 * linked to a server of its own once; a line of output says so.  Then each line "ROUNDS" makes
 * rounds: all clients ask, all servers have been asked and answer, all clients have their
 * answers, each word to the byte.  While the pooler and this program share a processor, and
 * neither preempts the other, the pooler finds all SESSIONS sockets ready in each step.  So its
 * CPU time depends on its work alone, not on how the scheduler groups wake-ups.
 */
#include <arpa/inet.h>
#include <err.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define PATIENCE_MS	20000
#define MAX_SESSIONS	512

struct Words {
	char data[512];
	unsigned len;
};

static unsigned n_sessions, n_clients, n_servers;
static int client[MAX_SESSIONS], server[MAX_SESSIONS], listener;
static struct Words startup, welcome, question, answer;

/*
 * Messages (PostgreSQL's documentation, "Message Formats").
 */

static void say(struct Words *w, char type, const void *body, unsigned len)
{
	uint32_t size = htonl(len + 4);

	if (type)
		w->data[w->len++] = type;
	memcpy(w->data + w->len, &size, sizeof(size));
	memcpy(w->data + w->len + sizeof(size), body, len);
	w->len += sizeof(size) + len;
}

#define SAY(w, type, body)	say((w), (type), (body), sizeof(body) - 1)

static void compose(const char *protocol)
{
	bool extended = strcmp(protocol, "extended") == 0;

	if (!extended && strcmp(protocol, "simple") != 0)
		errx(2, "%s is neither simple nor extended", protocol);
	SAY(&welcome, 'R', "\0\0\0\0");
	SAY(&welcome, 'S', "server_version\00015.0\0");
	SAY(&welcome, 'S', "client_encoding\0UTF8\0");
	SAY(&welcome, 'S', "DateStyle\0ISO, MDY\0");
	SAY(&welcome, 'S', "TimeZone\0UTC\0");
	SAY(&welcome, 'S', "standard_conforming_strings\0on\0");
	SAY(&welcome, 'K', "\0\0\0\1\0\0\0\2");
	SAY(&welcome, 'Z', "I");

	if (extended) {
		SAY(&question, 'P', "\0SELECT $1;\0\0\0");
		SAY(&question, 'B', "\0\0\0\0\0\1\0\0\0\00512345\0\0");
		SAY(&question, 'D', "P\0");
		SAY(&question, 'E', "\0\0\0\0\0");
		SAY(&question, 'S', "");
		SAY(&answer, '1', "");
		SAY(&answer, '2', "");
	} else {
		SAY(&question, 'Q', "SELECT 12345;\0");
	}
	SAY(&answer, 'T', "\0\1?column?\0\0\0\0\0\0\0\0\0\0\027\0\4\377\377\377\377\0\0");
	SAY(&answer, 'D', "\0\1\0\0\0\00512345");
	SAY(&answer, 'C', "SELECT 1\0");
	SAY(&answer, 'Z', "I");
}

static void transmit(int fd, const struct Words *w)
{
	if (send(fd, w->data, w->len, MSG_NOSIGNAL) != (ssize_t)w->len)
		err(1, "send");
}

/* Wait for these words and no others. */
static void expect(int fd, const struct Words *w)
{
	char data[sizeof(w->data)];
	unsigned len = 0;

	while (len < w->len) {
		ssize_t res = recv(fd, data + len, sizeof(data) - len, 0);

		if (res < 0)
			err(1, "recv");
		if (res == 0)
			errx(1, "a connection was closed");
		len += res;
	}
	if (len != w->len || memcmp(data, w->data, len) != 0)
		errx(1, "other words than these were expected: %u bytes came", len);
}

/*
 * A round.
 */

static void ask(void)
{
	unsigned k;

	for (k = 0; k < n_sessions; k++)
		transmit(client[k], &question);
}

static void answer_all(void)
{
	unsigned k;

	for (k = 0; k < n_sessions; k++)
		expect(server[k], &question);
	for (k = 0; k < n_sessions; k++)
		transmit(server[k], &answer);
	for (k = 0; k < n_sessions; k++)
		expect(client[k], &answer);
}

/*
 * What comes before the rounds: neither logins nor the pool's growth are in step.
 */

static void tune(int fd)
{
	struct timeval patience = { .tv_sec = PATIENCE_MS / 1000 };
	int one = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
}

static int listen_here(void)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(address);

	listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (listener < 0 || bind(listener, (struct sockaddr *)&address, len) < 0
	    || listen(listener, MAX_SESSIONS) < 0
	    || getsockname(listener, (struct sockaddr *)&address, &len) < 0)
		err(1, "listen");
	return ntohs(address.sin_port);
}

static void connect_client(const struct sockaddr_in *address)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0)
		err(1, "connect");
	tune(fd);
	transmit(fd, &startup);
	client[n_clients++] = fd;
}

static void accept_server(void)
{
	int fd = accept(listener, NULL, NULL);
	char data[1024];

	if (fd < 0)
		err(1, "accept");
	tune(fd);
	if (n_servers == n_sessions)
		errx(1, "the pool is larger than %u", n_sessions);
	if (recv(fd, data, sizeof(data), 0) <= 0)
		err(1, "a server's login");
	transmit(fd, &welcome);
	server[n_servers++] = fd;
}

/* Accept servers until this one has something to read. */
static void wait_for(int fd)
{
	struct pollfd polled[] = { { .fd = fd, .events = POLLIN }, { .fd = listener, .events = POLLIN } };

	for (;;) {
		if (poll(polled, 2, PATIENCE_MS) <= 0)
			errx(1, "the pooler does not answer");
		if (polled[0].revents)
			return;
		accept_server();
	}
}

static void await_login(int fd)
{
	static const char ready[] = "Z\0\0\0\5I";
	char data[4096];
	unsigned len = 0;

	do {
		ssize_t res;

		wait_for(fd);
		res = recv(fd, data + len, sizeof(data) - len, 0);
		if (res <= 0)
			err(1, "a client's login");
		len += res;
	} while (len < sizeof(ready) - 1 || memcmp(data + len - (sizeof(ready) - 1), ready, sizeof(ready) - 1) != 0);
}

static void set_up(void)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	char host[64], user[64], database[64], body[256] = "\0\3\0";
	int port, len, n_read;
	unsigned k;

	n_read = scanf("%63s %d %63s %63s", host, &port, user, database);
	if (n_read == EOF)
		exit(0);
	if (n_read != 4 || inet_pton(AF_INET, host, &address.sin_addr) != 1)
		errx(2, "HOST PORT USER DATABASE");
	address.sin_port = htons(port);
	len = 4 + sprintf(body + 4, "user%c%s%cdatabase%c%s%c", 0, user, 0, 0, database, 0);
	say(&startup, 0, body, len + 1);
	for (k = 0; k < n_sessions; k++) {
		connect_client(&address);
		await_login(client[k]);
	}
	/* The pool grows by one server at a time, for as long as somebody waits for one. */
	ask();
	while (n_servers < n_sessions)
		accept_server();
	answer_all();
}

int main(int argc, char **argv)
{
	unsigned rounds;

	if (argc != 3)
		errx(2, "lockstep SESSIONS PROTOCOL");
	n_sessions = atoi(argv[1]);
	if (n_sessions < 1 || n_sessions > MAX_SESSIONS)
		errx(2, "1 to %d sessions", MAX_SESSIONS);
	compose(argv[2]);
	printf("%d\n", listen_here());
	fflush(stdout);
	set_up();
	printf("ready\n");
	fflush(stdout);
	while (scanf("%u", &rounds) == 1) {
		while (rounds-- > 0) {
			ask();
			answer_all();
		}
		printf("done\n");
		fflush(stdout);
	}
	return 0;
}
