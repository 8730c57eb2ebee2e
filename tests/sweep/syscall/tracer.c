/*
 * Kills a process at one exact point: at the entry or at the exit of its N-th
 * system call, or some machine instructions after it.
 *
 *   tracer PID N WHERE STEPS [PARENT N2 WHERE2 HOLD [STANDBY]]
 *
 * WHERE is "entry" (the call is not made) or "exit" (it was made, and nothing
 * after it); STEPS instructions are stepped beyond.  N = 0 only counts.
 *
 * PARENT is who starts the successor.  With N2 the next process of the same
 * name that it starts is killed too, at its N2-th system call counted from its
 * first recvmsg(): that is where a successor begins to hear from the hanger.
 * With STANDBY it is that process, which runs already, counted from its first
 * recvmsg() after the first death.
 * It is let go when it waits for events the second time after it said READY,
 * with the adoption and the first round of its loop behind it.  With HOLD = 1 PARENT is stopped
 * (SIGSTOP) before each kill, so that nobody serves until somebody sends it
 * SIGCONT.
 *
 * Lines on stdout:
 *
 *   ready                            attached; counting begins here
 *   killed PID N WHERE NR ARG0 ARG1 ARG2 RESULT LINK
 *                                    SIGKILL was sent and it is dead; LINK is
 *                                    what descriptor ARG0 was, RESULT is 0 at
 *                                    an entry
 *   adopted N                        the successor is let go, N calls after its
 *                                    first recvmsg()
 *   ended PID STATUS                 it died by itself
 *   count N                          last line, after the end of stdin
 *
 * The end of stdin lets everything go on untraced; so does our own death.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/ptrace.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "keeper/control.h"

struct Point {
	unsigned long call;
	bool at_exit;
	unsigned long steps;
};

/* whom we count, and what it does */
static pid_t tracee;
static struct Point point;
static bool counting = true;
static unsigned long count, steps_left;
static struct {
	unsigned long long nr, args[3];
	long long result;
} call;

/* who starts the successor, which is to die as well */
static pid_t parent, standby;
static bool hold;
static struct Point second;
static bool is_successor, is_ready;
static int waits;
static char name[32];

static void fail(const char *what)
{
	fprintf(stderr, "tracer: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void read_name(pid_t pid, char *to, int size)
{
	char path[64];
	FILE *file;

	to[0] = 0;
	snprintf(path, sizeof(path), "/proc/%d/comm", pid);
	file = fopen(path, "r");
	if (!file)
		return;
	if (!fgets(to, size, file))
		to[0] = 0;
	fclose(file);
}

/* let it go on; it may have been killed by another meanwhile */
static void resume(int how, pid_t pid, int number)
{
	if (ptrace(how, pid, 0, (long)number) < 0 && errno != ESRCH)
		fail("ptrace");
}

/* the next whose calls are counted, from its first recvmsg() on */
static void follow(pid_t successor)
{
	tracee = successor;
	is_successor = true;
	is_ready = false;
	waits = 0;
	/* its threads must not be ours: a death is complete only when all are reaped */
	if (ptrace(PTRACE_SETOPTIONS, tracee, 0, PTRACE_O_TRACESYSGOOD) < 0 && errno != ESRCH)
		fail("PTRACE_SETOPTIONS");
	resume(PTRACE_SYSCALL, tracee, 0);
}

/* stop one that runs, at its next way back from the kernel; false if it has ended */
static bool interrupt(pid_t pid)
{
	int status;

	if (ptrace(PTRACE_INTERRUPT, pid, 0, 0) < 0)
		fail("PTRACE_INTERRUPT");
	for (;;) {
		if (waitpid(pid, &status, __WALL) < 0)
			fail("waitpid");
		if (!WIFSTOPPED(status)) {
			printf("ended %d %d\n", pid, status);
			fflush(stdout);
			return false;
		}
		if (status >> 16)
			return true;
		resume(PTRACE_CONT, pid, WSTOPSIG(status));
	}
}

static void kill_it(void)
{
	char path[64], link[256];
	ssize_t len;
	int status;

	snprintf(path, sizeof(path), "/proc/%d/fd/%d", tracee, (int)call.args[0]);
	len = readlink(path, link, sizeof(link) - 1);
	link[len > 0 ? len : 0] = 0;
	if (standby && !interrupt(standby))
		standby = 0;
	if (hold && kill(parent, SIGSTOP) < 0)
		fail("SIGSTOP");
	if (kill(tracee, SIGKILL) < 0)
		fail("kill");
	do {
		if (waitpid(tracee, &status, __WALL) < 0)
			fail("waitpid");
	} while (WIFSTOPPED(status));
	printf("killed %d %lu %s %lld %lld %llx %llx %lld %s\n", tracee, count, point.at_exit ? "exit" : "entry",
	       call.nr, (long long)(int)call.args[0], call.args[1], call.args[2], call.result, *link ? link : "-");
	fflush(stdout);
	tracee = 0;
	point = second;
	second.call = 0;
	if (!point.call)
		return;
	counting = false;
	count = 0;
	if (standby) {
		follow(standby);
		standby = 0;
	}
}

/* a successor in its loop is another process among many: no more kills */
static void let_go(void)
{
	printf("adopted %lu\n", count);
	fflush(stdout);
	point.call = 0;
	counting = false;
}

static bool copy_from(void *to, const void *from, size_t size)
{
	struct iovec here = { to, size }, there = { (void *)from, size };

	return process_vm_readv(tracee, &here, 1, &there, 1, 0) == (ssize_t)size;
}

/* is it telling the hanger that it has adopted everything? */
static bool says_ready(void)
{
	struct msghdr msg;
	struct iovec iov;
	struct KeeperMessage head;

	return call.nr == SYS_sendmsg && copy_from(&msg, (void *)call.args[1], sizeof(msg)) && msg.msg_iovlen
	       && copy_from(&iov, msg.msg_iov, sizeof(iov)) && iov.iov_len == sizeof(head)
	       && copy_from(&head, iov.iov_base, sizeof(head)) && head.magic == KEEPER_CONTROL_MAGIC
	       && head.type == KEEPER_MSG_READY;
}

static bool waits_for_events(unsigned long long nr)
{
#ifdef SYS_epoll_wait
	if (nr == SYS_epoll_wait)
		return true;
#endif
	return nr == SYS_epoll_pwait;
}

/* one stop of the tracee at a system call: is this the point? */
static void at_system_call(void)
{
	struct __ptrace_syscall_info info;
	bool at_exit;

	if (ptrace(PTRACE_GET_SYSCALL_INFO, tracee, sizeof(info), &info) < 0) {
		if (errno != ESRCH)
			fail("PTRACE_GET_SYSCALL_INFO");
		return;
	}
	at_exit = info.op == PTRACE_SYSCALL_INFO_EXIT;
	if (info.op == PTRACE_SYSCALL_INFO_ENTRY) {
		call.nr = info.entry.nr;
		memcpy(call.args, info.entry.args, sizeof(call.args));
		call.result = 0;
		if (is_successor && point.call) {
			counting = counting || call.nr == SYS_recvmsg;
			is_ready = is_ready || says_ready();
			if (is_ready && waits_for_events(call.nr) && ++waits == 2)
				let_go();
		}
		count += counting;
	} else if (at_exit) {
		call.result = info.exit.rval;
	} else {
		resume(PTRACE_SYSCALL, tracee, 0);
		return;
	}
	if (!point.call || count != point.call || at_exit != point.at_exit) {
		resume(PTRACE_SYSCALL, tracee, 0);
	} else if (point.steps) {
		steps_left = point.steps;
		resume(PTRACE_SINGLESTEP, tracee, 0);
	} else {
		kill_it();
	}
}

static void tracee_stopped(int status)
{
	int number = WSTOPSIG(status);

	if (number == (SIGTRAP | 0x80)) {
		at_system_call();
	} else if (status >> 16) {
		/* an event: our interrupt, or its exec */
		resume(PTRACE_SYSCALL, tracee, 0);
	} else if (steps_left && number == SIGTRAP) {
		if (--steps_left)
			resume(PTRACE_SINGLESTEP, tracee, 0);
		else
			kill_it();
	} else {
		resume(steps_left ? PTRACE_SINGLESTEP : PTRACE_SYSCALL, tracee, number);
	}
}

/* the parent, and whatever it has started */
static void other_stopped(pid_t pid, int status)
{
	int event = status >> 16;
	char new_name[sizeof(name)];

	if (event == PTRACE_EVENT_EXEC && !tracee && point.call) {
		read_name(pid, new_name, sizeof(new_name));
		if (strcmp(new_name, name) == 0) {
			follow(pid);
			return;
		}
	}
	if (event == PTRACE_EVENT_STOP && WSTOPSIG(status) != SIGTRAP)
		resume(PTRACE_LISTEN, pid, 0);	/* stopped until its SIGCONT */
	else
		resume(PTRACE_CONT, pid, event ? 0 : WSTOPSIG(status));
}

static void take_news(void)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG | __WALL)) > 0) {
		if (WIFSTOPPED(status)) {
			if (pid == tracee)
				tracee_stopped(status);
			else
				other_stopped(pid, status);
		} else if (pid == tracee) {
			printf("ended %d %d\n", pid, status);
			fflush(stdout);
			tracee = 0;
		}
	}
}

static void seize(pid_t pid, long options)
{
	if (ptrace(PTRACE_SEIZE, pid, 0, options) < 0)
		fail("PTRACE_SEIZE");
}

static struct Point parse_point(char **argv)
{
	struct Point parsed = { strtoul(argv[0], NULL, 10), strcmp(argv[1], "exit") == 0, 0 };

	return parsed;
}

int main(int argc, char **argv)
{
	struct pollfd ready[2] = { { STDIN_FILENO, POLLIN, 0 }, { -1, POLLIN, 0 } };
	struct signalfd_siginfo ignored;
	sigset_t set;

	if (argc != 5 && argc != 9 && argc != 10) {
		fprintf(stderr, "usage: tracer PID N entry|exit STEPS [PARENT N entry|exit HOLD [STANDBY]]\n");
		return 2;
	}
	tracee = atoi(argv[1]);
	point = parse_point(argv + 2);
	point.steps = strtoul(argv[4], NULL, 10);
	read_name(tracee, name, sizeof(name));

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);
	ready[1].fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	if (ready[1].fd < 0)
		fail("signalfd");

	if (argc >= 9) {
		parent = atoi(argv[5]);
		second = parse_point(argv + 6);
		hold = atoi(argv[8]) == 1;
		if (second.call && argc == 10) {
			standby = atoi(argv[9]);
			seize(standby, 0);
		} else if (second.call) {
			seize(parent, PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACEEXEC);
		}
	}
	seize(tracee, PTRACE_O_TRACESYSGOOD);
	/* stopped once, it counts from its very next call */
	if (!interrupt(tracee))
		return 1;
	resume(PTRACE_SYSCALL, tracee, 0);
	printf("ready\n");
	fflush(stdout);

	for (;;) {
		take_news();
		if (poll(ready, 2, -1) < 0 && errno != EINTR)
			fail("poll");
		if (ready[0].revents)
			break;
		while (read(ready[1].fd, &ignored, sizeof(ignored)) > 0) {
		}
	}
	printf("count %lu\n", count);
	return 0;
}
