/*
 * pgkeeper - what the kernel says a socket has carried.
 *
 * In a file of its own, because glibc's and Linux's tcp.h cannot be included
 * together, and only the latter has tcpi_bytes_received.
 */
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <netinet/in.h>
#include <linux/sockios.h>
#include <linux/tcp.h>

#include "keeper/figures.h"

/* enum of include/net/tcp_states.h, which user space does not get */
enum {
	STATE_ESTABLISHED = 1,
	STATE_FIN_WAIT1 = 4,
	STATE_FIN_WAIT2 = 5,
	STATE_TIME_WAIT = 6,
	STATE_CLOSE_WAIT = 8,
	STATE_LAST_ACK = 9,
	STATE_CLOSING = 11,
};

/* a received FIN counts 1 in bytes_received */
static bool fin_received(int state)
{
	return state == STATE_CLOSE_WAIT || state == STATE_LAST_ACK || state == STATE_CLOSING
	       || state == STATE_TIME_WAIT;
}

/* a FIN that was sent or queued counts 1 in what was written */
static bool fin_sent(int state)
{
	return state == STATE_FIN_WAIT1 || state == STATE_FIN_WAIT2 || state == STATE_LAST_ACK
	       || state == STATE_CLOSING || state == STATE_TIME_WAIT;
}

static bool tcp_info(int fd, struct tcp_info *info)
{
	socklen_t len = sizeof(*info);

	memset(info, 0, sizeof(*info));
	return getsockopt(fd, IPPROTO_TCP, TCP_INFO, info, &len) == 0;
}

/* all that was written has arrived, and no FIN is on its way */
static bool all_acked(const struct tcp_info *info)
{
	return info->tcpi_state == STATE_ESTABLISHED && !info->tcpi_unacked && !info->tcpi_notsent_bytes;
}

bool keeper_figures(int fd, uint64_t *read_p, uint64_t *written_p)
{
	struct tcp_info before, after;
	int unread, unsent;

	/* counter and queue are two calls: read until the counter stood still */
	do {
		if (!tcp_info(fd, &before))
			return false;
		if (ioctl(fd, SIOCINQ, &unread) < 0)
			return false;
		/* at rest, as most are: there was nothing to read and nothing to send at the counter's time either */
		if (!unread && all_acked(&before)) {
			*read_p = before.tcpi_bytes_received;
			*written_p = before.tcpi_bytes_acked;
			return true;
		}
		if (ioctl(fd, SIOCOUTQ, &unsent) < 0)
			return false;
		if (!tcp_info(fd, &after))
			return false;
	} while (before.tcpi_bytes_received != after.tcpi_bytes_received
		 || before.tcpi_bytes_acked != after.tcpi_bytes_acked
		 || before.tcpi_state != after.tcpi_state);

	*read_p = after.tcpi_bytes_received - unread - fin_received(after.tcpi_state);
	*written_p = after.tcpi_bytes_acked + unsent - fin_sent(after.tcpi_state);
	return true;
}
