/*
 * keeper_figures() of a socket whose peer sends and reads all the time, against
 * what was really read and written; then one of the two sides is shut.
 *
 *   figures ROUNDS ours|theirs
 *
 * Prints "wrong: ..." and returns 1 at the first figure that differs.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <netinet/in.h>

#include "keeper/figures.h"

static void must(int ok, const char *what)
{
	if (!ok) {
		perror(what);
		exit(2);
	}
}

/* ours is the active opener, as of a link to a server */
static void connected(int *ours, int *theirs)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	socklen_t len = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM, 0);

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	must(listener >= 0, "socket");
	must(bind(listener, (struct sockaddr *)&address, len) == 0, "bind");
	must(listen(listener, 1) == 0, "listen");
	must(getsockname(listener, (struct sockaddr *)&address, &len) == 0, "getsockname");
	*ours = socket(AF_INET, SOCK_STREAM, 0);
	must(*ours >= 0 && connect(*ours, (struct sockaddr *)&address, len) == 0, "connect");
	*theirs = accept(listener, NULL, NULL);
	must(*theirs >= 0, "accept");
	close(listener);
}

static volatile sig_atomic_t ending;

static void on_term(int number)
{
	(void)number;
	ending = 1;
}

/* send and read all the time, until we are told to end or the peer has ended */
static void chatter(int fd)
{
	char out[64] = "", in[4096];

	while (!ending) {
		(void)!send(fd, out, sizeof(out), MSG_DONTWAIT | MSG_NOSIGNAL);
		if (recv(fd, in, sizeof(in), MSG_DONTWAIT) == 0)
			pause();
	}
	shutdown(fd, SHUT_WR);
	pause();
}

static uint64_t total_read, total_written, base_read, base_written;
static int ours;

static void compare(const char *when)
{
	uint64_t has_read, has_written;

	must(keeper_figures(ours, &has_read, &has_written), "keeper_figures");
	has_read -= base_read;
	has_written -= base_written;
	if (has_read == total_read && has_written == total_written)
		return;
	printf("wrong: %s: read %lld too many, written %lld too many\n", when,
	       (long long)(has_read - total_read), (long long)(has_written - total_written));
	exit(1);
}

/* they have sent their FIN; what they sent before it is still to be read */
static void their_end(pid_t child)
{
	struct pollfd ended = { ours, POLLIN | POLLRDHUP, 0 };
	char data[4096];
	ssize_t done;

	must(kill(child, SIGTERM) == 0, "kill");
	/* the FIN comes when there is room for what comes before it */
	while (must(poll(&ended, 1, 10000) == 1, "poll"), !(ended.revents & POLLRDHUP)) {
		done = recv(ours, data, sizeof(data), 0);
		must(done > 0, "recv");
		total_read += done;
	}
	do {
		compare("after their end");
		done = recv(ours, data, sizeof(data), 0);
		total_read += done;
	} while (done > 0);
	must(done == 0, "recv");
	compare("their end is read");
}

int main(int argc, char **argv)
{
	int rounds, theirs, i;
	char data[4096] = "";
	ssize_t done;
	pid_t parent = getpid(), child;

	if (argc != 3)
		return 2;
	rounds = atoi(argv[1]);
	connected(&ours, &theirs);
	must(keeper_figures(ours, &base_read, &base_written), "keeper_figures");
	signal(SIGTERM, on_term);
	child = fork();
	if (child == 0) {
		must(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0, "prctl");
		if (getppid() != parent)
			_exit(0);	/* it was quicker, and nobody would end us */
		close(ours);
		chatter(theirs);
	}
	close(theirs);
	for (i = 0; i < rounds; i++) {
		compare("under way");
		done = recv(ours, data, sizeof(data), MSG_DONTWAIT);
		if (done > 0)
			total_read += done;
		done = send(ours, data, 64, MSG_DONTWAIT);
		if (done > 0)
			total_written += done;
	}
	if (strcmp(argv[2], "theirs") == 0) {
		their_end(child);
	} else {
		must(shutdown(ours, SHUT_WR) == 0, "shutdown");
		compare("after our end");
	}
	return 0;
}
