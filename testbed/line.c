/*
 * A bad line between two network namespaces: packets are delayed, overtake each other, get lost and
 * come twice.  A TUN device at each end, and this in between, for kernels without netem.
 *
 * usage: line NEAR FAR DELAY JITTER LOST TWICE
 *
 * NEAR and FAR are descriptors of namespaces, which get 10.99.0.1 and 10.99.0.2; DELAY and JITTER
 * are microseconds, LOST and TWICE packets in a thousand.  Says "up" when packets can pass, and goes
 * on until it is killed.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define NEAR		"10.99.0.1"
#define FAR		"10.99.0.2"
#define LARGEST		65536
#define AT_ONCE		64

struct packet {
	uint64_t due;
	int to;
	ssize_t length;
	char *bytes;
};

/* a heap, the next one that is due first */
static struct packet *under_way;
static size_t count, room;

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000 + time.tv_nsec / 1000;
}

static void *need(void *memory)
{
	if (!memory)
		errx(1, "out of memory");
	return memory;
}

static void put(uint64_t due, int to, const char *bytes, ssize_t length)
{
	struct packet packet = { due, to, length, memcpy(need(malloc(length)), bytes, length) };
	size_t i;

	if (count == room) {
		room = room ? 2 * room : 1024;
		under_way = need(realloc(under_way, room * sizeof(*under_way)));
	}
	for (i = count++; i && under_way[(i - 1) / 2].due > due; i = (i - 1) / 2)
		under_way[i] = under_way[(i - 1) / 2];
	under_way[i] = packet;
}

static struct packet take(void)
{
	struct packet first = under_way[0], last = under_way[--count];
	size_t i = 0, child;

	while ((child = 2 * i + 1) < count) {
		if (child + 1 < count && under_way[child + 1].due < under_way[child].due)
			child++;
		if (under_way[child].due >= last.due)
			break;
		under_way[i] = under_way[child];
		i = child;
	}
	under_way[i] = last;
	return first;
}

static void set(int sock, struct ifreq *request, unsigned long what, const char *address)
{
	struct sockaddr_in *in = (struct sockaddr_in *)&request->ifr_addr;

	memset(in, 0, sizeof(*in));
	in->sin_family = AF_INET;
	inet_pton(AF_INET, address, &in->sin_addr);
	if (ioctl(sock, what, request) < 0)
		err(1, "cannot set %s", address);
}

static void bring_up(int sock, struct ifreq *request)
{
	request->ifr_flags = IFF_UP;
	if (ioctl(sock, SIOCSIFFLAGS, request) < 0)
		err(1, "cannot bring up %s", request->ifr_name);
}

/* the end of the line in this namespace */
static int end_in(int namespace, const char *own, const char *other)
{
	struct ifreq line = { .ifr_name = "line" }, loopback = { .ifr_name = "lo" };
	int tun, sock;

	if (setns(namespace, CLONE_NEWNET) < 0)
		err(1, "setns");
	tun = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
	if (tun < 0)
		err(1, "/dev/net/tun");
	line.ifr_flags = IFF_TUN | IFF_NO_PI;
	if (ioctl(tun, TUNSETIFF, &line) < 0)
		err(1, "TUNSETIFF");
	sock = socket(AF_INET, SOCK_DGRAM, 0);
	if (sock < 0)
		err(1, "socket");
	set(sock, &line, SIOCSIFADDR, own);
	set(sock, &line, SIOCSIFDSTADDR, other);
	bring_up(sock, &line);
	bring_up(sock, &loopback);
	close(sock);
	return tun;
}

int main(int argc, char **argv)
{
	static char bytes[LARGEST];
	struct pollfd ends[2];
	uint64_t delay, jitter;
	int lost, twice;

	if (argc != 7)
		errx(2, "usage: line NEAR FAR DELAY JITTER LOST TWICE");
	delay = strtoull(argv[3], NULL, 10);
	jitter = strtoull(argv[4], NULL, 10);
	lost = atoi(argv[5]);
	twice = atoi(argv[6]);
	ends[0].fd = end_in(atoi(argv[1]), NEAR, FAR);
	ends[1].fd = end_in(atoi(argv[2]), FAR, NEAR);
	ends[0].events = ends[1].events = POLLIN;
	puts("up");
	fflush(stdout);

	for (;;) {
		struct timespec patience = { 0, 0 };
		int side, n, copies;

		if (count && under_way[0].due > now()) {
			uint64_t left = under_way[0].due - now();

			patience.tv_sec = left / 1000000;
			patience.tv_nsec = left % 1000000 * 1000;
		}
		ppoll(ends, 2, count ? &patience : NULL, NULL);
		for (side = 0; side < 2; side++) {
			for (n = 0; n < AT_ONCE; n++) {
				ssize_t length = read(ends[side].fd, bytes, sizeof(bytes));

				if (length <= 0)
					break;
				if (rand() % 1000 < lost)
					continue;
				for (copies = rand() % 1000 < twice ? 2 : 1; copies; copies--)
					put(now() + delay + (jitter ? rand() % jitter : 0), ends[!side].fd, bytes, length);
			}
		}
		while (count && under_way[0].due <= now()) {
			struct packet packet = take();

			/* what the other end does not take is lost, too */
			if (write(packet.to, packet.bytes, packet.length) < 0)
				(void)0;
			free(packet.bytes);
		}
	}
}
