/*
 * pgkeeper - messages over keeper_socket.  See control.h.
 */
#include "bouncer.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <poll.h>

#include "keeper/internal.h"
#include "keeper/link.h"

int keeper_control_fd = -1;

/*
 * Connecting and sending.
 */

int keeper_link_connect(void)
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

bool keeper_link_send(enum KeeperMessageType type, const void *body, size_t len, const int *fds, unsigned n_fds)
{
	struct KeeperMessage head = { KEEPER_CONTROL_MAGIC, KEEPER_CONTROL_VERSION, type };
	struct iovec iov[2] = { { &head, sizeof(head) }, { (void *)body, len } };
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(KEEPER_BATCH * sizeof(int))];
	} control;
	struct msghdr msg;
	ssize_t res;

	if (keeper_control_fd < 0)
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
		res = sendmsg(keeper_control_fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
	} while (res < 0 && errno == EINTR);
	return res >= 0;
}

bool keeper_link_send_patiently(enum KeeperMessageType type, const void *body, size_t len, const int *fds, unsigned n_fds)
{
	int tries;

	for (tries = 0; tries < 500; tries++) {
		struct pollfd p = { keeper_control_fd, POLLOUT, 0 };

		if (keeper_link_send(type, body, len, fds, n_fds))
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

size_t keeper_sockets_size(unsigned count)
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
	return keeper_link_send(KEEPER_MSG_REGISTER, &sockets, keeper_sockets_size(1), &fd, 1);
}

bool keeper_hanger_release(const uint64_t *tokens, unsigned count, bool patient)
{
	struct KeeperTokens message;

	memset(&message, 0, sizeof(message));
	message.count = count;
	memcpy(message.token, tokens, count * sizeof(*tokens));
	return (patient ? keeper_link_send_patiently : keeper_link_send)
		       (KEEPER_MSG_RELEASE, &message,
			offsetof(struct KeeperTokens, token) + count * sizeof(*tokens), NULL, 0);
}

bool keeper_hanger_unheld(uint64_t token, enum KeeperUnheldReason reason, bool is_server)
{
	struct KeeperUnheld message = { token, reason, is_server };

	/* a duplicate that stayed would keep the peer from seeing our close */
	return keeper_link_send_patiently(KEEPER_MSG_UNHELD, &message, sizeof(message), NULL, 0);
}

/*
 * Receiving.
 */

enum KeeperReception keeper_link_receive(struct KeeperReceived *r, const char **why)
{
	struct iovec iov[2] = { { &r->head, sizeof(r->head) }, { r->body, sizeof(r->body) } };
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(KEEPER_BATCH * sizeof(int))];
	} control;
	struct msghdr msg;
	struct cmsghdr *cmsg;
	ssize_t res;

	memset(&msg, 0, sizeof(msg));
	msg.msg_iov = iov;
	msg.msg_iovlen = 2;
	msg.msg_control = control.space;
	msg.msg_controllen = sizeof(control.space);
	do {
		res = recvmsg(keeper_control_fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	} while (res < 0 && errno == EINTR);
	if (res < 0 && errno == EAGAIN)
		return KEEPER_NOTHING;
	if (res <= 0) {
		*why = res < 0 ? strerror(errno) : "end of connection";
		return KEEPER_LINK_LOST;
	}
	r->n_fds = 0;
	for (cmsg = CMSG_FIRSTHDR(&msg); cmsg; cmsg = CMSG_NXTHDR(&msg, cmsg)) {
		if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS)
			continue;
		r->n_fds = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		memcpy(r->fds, CMSG_DATA(cmsg), r->n_fds * sizeof(int));
	}
	if ((size_t)res < sizeof(r->head) || r->head.magic != KEEPER_CONTROL_MAGIC
	    || r->head.version != KEEPER_CONTROL_VERSION) {
		*why = "it speaks another protocol";
		return KEEPER_LINK_LOST;
	}
	r->length = res - sizeof(r->head);
	r->truncated = msg.msg_flags & MSG_CTRUNC;
	return KEEPER_RECEIVED;
}
