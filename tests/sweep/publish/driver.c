/*
 * Steps a writer through its commits, one instruction at a time, and looks at
 * the ledger after each.
 *
 *	publish kill SEED FROM TO	kills a new writer after the 1st, 2nd, ... instruction of commits FROM..TO
 *	publish walk SEED COMMITS	one writer; what SIGKILL would leave behind is looked at between instructions
 *	publish images SEED COMMIT	writes the ledger before and after that commit, and each different
 *					one in between, to standard output
 *
 * Exit status 1 and a line that begins with "torn" at the first state that is
 * not exactly what was committed.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "publish.h"

#define MAX_COMMITS	1000

static uint8_t *ledger;		/* shared with the writer */
static uint8_t *last;		/* as it was one instruction before */
static size_t size;
static volatile unsigned *phase;	/* shared: the commit the writer works on */
static struct State *reference;	/* [n]: after the n-th commit */
static unsigned seed, commits;
static unsigned long steps, kills, images, before, after;

static void fail(const char *what)
{
	perror(what);
	exit(2);
}

static void *shared(size_t bytes)
{
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		fail("mmap");
	return memory;
}

static void torn(unsigned n, const char *what)
{
	printf("torn: commit %u, instruction %lu: %s\n", n, steps, what);
	exit(1);
}

static void make_references(void)
{
	unsigned n;

	reference = calloc(commits + 1, sizeof(*reference));
	if (!reference)
		fail("calloc");
	for (n = 0; n <= commits; n++) {
		const char *wrong;

		if (n == 0)
			script_start(ledger, size, seed);
		else
			script_step();
		wrong = read_state(ledger, &reference[n]);
		if (wrong)
			torn(n, wrong);
	}
	memset(ledger, 0, size);
}

static void be_stepped(void)
{
	script_before_commit = NULL;
	if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0)
		fail("PTRACE_TRACEME");
	raise(SIGSTOP);
}

/*
 * In the writer: go to commit `from`, from there on be stepped, up to `to`.
 * Either all that leads to the commit is stepped too, or the commit alone.
 */
static void writer(unsigned from, unsigned to, bool commit_alone)
{
	unsigned n;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	script_start(ledger, size, seed);
	for (n = 1; n < from; n++)
		script_step();
	*phase = from;
	if (commit_alone)
		script_before_commit = be_stepped;
	else
		be_stepped();
	for (; n <= to; n++) {
		*phase = n;
		script_step();
	}
	*phase = to + 1;
	_exit(0);
}

static pid_t start_writer(unsigned from, unsigned to, bool commit_alone)
{
	int status;
	pid_t pid;

	memset(ledger, 0, size);
	*phase = 0;
	pid = fork();
	if (pid < 0)
		fail("fork");
	if (pid == 0)
		writer(from, to, commit_alone);
	if (waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status) || WSTOPSIG(status) != SIGSTOP)
		fail("the writer did not stop");
	return pid;
}

static void step(pid_t pid)
{
	int status;

	if (ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL) < 0)
		fail("PTRACE_SINGLESTEP");
	if (waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status))
		fail("the writer ended");
	if (WSTOPSIG(status) != SIGTRAP)
		fail("the writer failed");
	steps++;
}

static void kill_writer(pid_t pid)
{
	int status;

	kill(pid, SIGKILL);
	if (waitpid(pid, &status, 0) != pid || !WIFSIGNALED(status))
		fail("the writer could not be killed");
}

/* the ledger must be exactly what commit n - 1 or commit n left */
static void look(unsigned n)
{
	static struct State state;
	const struct State *expected;
	const char *wrong = read_state(ledger, &state);
	uint64_t epoch = ((struct KeeperHeader *)ledger)->commit;

	if (epoch != reference[n - 1].commit && epoch != reference[n].commit)
		torn(n, "the commit word is neither the old nor the new one");
	expected = epoch == reference[n].commit ? &reference[n] : &reference[n - 1];
	if (!wrong && memcmp(&state, expected, sizeof(state)) != 0)
		wrong = "neither the old nor the new state";
	if (!wrong)
		wrong = survives_adoption(ledger, size, expected);
	if (wrong)
		torn(n, wrong);
	if (expected == &reference[n])
		after++;
	else
		before++;
}

static void kill_everywhere(unsigned from, unsigned to)
{
	unsigned n;

	for (n = from; n <= to; n++) {
		unsigned long length;
		bool done = false;

		for (length = 1; !done; length++) {
			pid_t pid = start_writer(n, n, true);

			for (steps = 0; steps < length && !done; ) {
				step(pid);
				done = *phase > n;
			}
			kill_writer(pid);
			kills++;
			look(n);
		}
	}
}

static void walk(unsigned from, unsigned to, bool print)
{
	pid_t pid = start_writer(from, to, false);

	memcpy(last, ledger, size);
	while (*phase <= to) {
		unsigned n = *phase;

		step(pid);
		if (memcmp(last, ledger, size) == 0)
			continue;
		memcpy(last, ledger, size);
		if (print) {
			if (fwrite(ledger, size, 1, stdout) != 1)
				fail("write");
		} else {
			look(n);
		}
		images++;
	}
	kill_writer(pid);
}

static void print_images(unsigned n)
{
	unsigned i;

	script_start(ledger, size, seed);
	for (i = 1; i <= n; i++) {
		if (i == n && fwrite(ledger, size, 1, stdout) != 1)
			fail("write");
		script_step();
	}
	if (fwrite(ledger, size, 1, stdout) != 1)
		fail("write");
	fflush(stdout);
	walk(n, n, true);
}

int main(int argc, char **argv)
{
	const char *mode = argc > 3 ? argv[1] : "";
	unsigned from = argc > 3 ? strtoul(argv[3], NULL, 10) : 0;

	size = keeper_store_size(SLOTS, IOBUFS, PKT_BUF, UNITS);
	ledger = shared(size);
	phase = shared(sizeof(*phase));
	last = malloc(size);
	seed = argc > 3 ? strtoul(argv[2], NULL, 10) : 0;
	commits = strcmp(mode, "kill") == 0 && argc > 4 ? strtoul(argv[4], NULL, 10) : from;
	if (!last || from < 1 || commits < from || commits > MAX_COMMITS) {
		fprintf(stderr, "usage: publish kill SEED FROM TO | walk SEED COMMITS | images SEED COMMIT\n");
		return 2;
	}
	if (strcmp(mode, "images") == 0) {
		print_images(from);
		return 0;
	}
	make_references();
	if (strcmp(mode, "kill") == 0)
		kill_everywhere(from, commits);
	else
		walk(1, commits, false);
	printf("kills %lu images %lu before %lu after %lu\n", kills, images, before, after);
	return 0;
}
