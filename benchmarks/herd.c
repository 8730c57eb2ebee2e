/*
 * Many sessions with many prepared statements, asked all at once, one after the other or one
 * alone: the measuring client of benchmarks/herd.py, in C lest it be slower than what it measures.
 *
 *	herd HOST PORT SESSIONS STATEMENTS USER DATABASE stays|returns
 *
 * Session i prepares s0, s1, ... as SELECT i, SELECT i + 1, ... (modulo STATEMENTS):
 * the texts are shared, but a name means something else in each session.  When all
 * are ready a line says so on standard output.  Then each line "PID ROUND ASKED OVER_MS" on
 * standard input makes a round: SIGKILL to PID (0: to nobody), and so many sessions execute
 * one of their statements each, all at once (0) or spread evenly over that time.  The answer
 * must be right to the byte.  A line of JSON tells the times of the answers, milliseconds from
 * just before the kill, the longest wait for one, and when for the first time nobody waited.
 *
 * A connection that ends is an error that ends the herd, unless it "returns": then who was
 * asked connects again at once, prepares and asks again until it has its answer; who was not
 * does so when the round is over.  While connections are refused, the whole herd tries again
 * each millisecond, with one of them.
 */
#include "herd.h"

#include <arpa/inet.h>
#include <err.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>

struct Session *session;
unsigned n_sessions, n_statements;
bool returns;
int poll_fd;

/* what each is asked in this round, and when */
static struct Message *ask;
static double *asked_at;

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
	begin_message(&ask[i], 'B');
	put(&ask[i], "", 1);
	put_string(&ask[i], name);
	put(&ask[i], "\0\0\0\0\0\0", 6);
	end_message(&ask[i]);
	begin_message(&ask[i], 'E');
	put(&ask[i], "\0\0\0\0\0", 5);
	end_message(&ask[i]);
	begin_message(&ask[i], 'S');
	end_message(&ask[i]);

	size = htonl(snprintf(value, sizeof(value), "%u", (statement + i) % n_statements));
	m.len = 0;
	begin_message(&m, '2');
	end_message(&m);
	begin_message(&m, 'D');
	put(&m, "\0\1", 2);
	put(&m, &size, sizeof(size));
	put(&m, value, strlen(value));
	end_message(&m);
	begin_message(&m, 'C');
	put_string(&m, "SELECT 1");
	end_message(&m);
	begin_message(&m, 'Z');
	put(&m, "I", 1);
	end_message(&m);
	memcpy(s->expected, m.data, m.len);
	s->n_expected = m.len;
}

static void put_question(unsigned i)
{
	session[i].n_got = 0;
	session[i].stage = ASKED;
	transmit(i, &ask[i]);
}

/* It is this one's turn. */
static void ask_now(unsigned i)
{
	asked_at[i] = now_ms();
	session[i].wants = true;
	if (session[i].stage == GONE)
		returning[n_returning++] = i;
	else
		put_question(i);
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

static void play(pid_t pid, unsigned round, unsigned n_asked, unsigned over_ms)
{
	struct epoll_event event[EVENTS];
	double *at = malloc(n_sessions * sizeof(*at)), start, sent = 0, longest = 0, caught_up = 0;
	unsigned n_put = 0, n_answered = 0, first = round * 37, i;

	if (!at)
		err(1, "malloc");
	n_returned = 0;
	for (i = 0; i < n_asked; i++)
		expect((first + i) % n_sessions, (round * 7 + i) % n_statements);
	start = now_ms();
	if (pid && kill(pid, SIGKILL) < 0)
		err(1, "kill %d", pid);
	while (n_answered < n_asked) {
		int wait_ms, n, k;

		while (n_put < n_asked && (double)n_put * over_ms / n_asked <= now_ms() - start) {
			ask_now((first + n_put++) % n_sessions);
			sent = now_ms() - start;
		}
		wait_ms = let_return();
		if (n_put < n_asked)
			wait_ms = 1;
		n = epoll_wait(poll_fd, event, EVENTS, wait_ms < 0 ? PATIENCE_MS : wait_ms);
		if (n <= 0 && wait_ms < 0)
			errx(1, "%u of %u sessions were answered", n_answered, n_asked);
		for (k = 0; k < n; k++) {
			double now;

			i = event[k].data.u32;
			if (!handle(i))
				continue;
			now = now_ms();
			at[n_answered++] = now - start;
			if (now - asked_at[i] > longest)
				longest = now - asked_at[i];
			if (!caught_up && n_answered == n_put)
				caught_up = now - start;
		}
	}
	qsort(at, n_answered, sizeof(*at), by_size);
	if (returns)
		gather();
	printf("{\"sent\": %.3f, \"first\": %.3f, \"median\": %.3f, \"last\": %.3f,"
	       " \"longest\": %.3f, \"caught_up\": %.3f, \"returned\": %u}\n",
	       sent, at[0], at[n_answered / 2], at[n_answered - 1], longest, caught_up, n_returned);
	free(at);
}

int main(int argc, char **argv)
{
	struct rlimit limit;
	int pid;
	unsigned round, n_asked, over_ms;

	if (argc != 8)
		errx(2, "usage: herd HOST PORT SESSIONS STATEMENTS USER DATABASE stays|returns");
	n_sessions = atoi(argv[3]);
	n_statements = atoi(argv[4]);
	returns = strcmp(argv[7], "returns") == 0;
	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	setvbuf(stdout, NULL, _IOLBF, 0);

	session = calloc(n_sessions, sizeof(*session));
	ask = malloc(n_sessions * sizeof(*ask));
	asked_at = malloc(n_sessions * sizeof(*asked_at));
	poll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (!session || !ask || !asked_at || poll_fd < 0)
		err(1, "start");
	set_up(argv[1], atoi(argv[2]), argv[5], argv[6]);
	printf("ready\n");
	while (scanf("%d %u %u %u", &pid, &round, &n_asked, &over_ms) == 4)
		play(pid, round, n_asked, over_ms);
	return 0;
}
