/*
 * pgkeeper - messages over keeper_socket.
 */
#ifndef KEEPER_LINK_H
#define KEEPER_LINK_H

/* the connection to the hanger, or -1 */
extern int keeper_control_fd;

/* a connected socket, or -1 with errno set */
int keeper_link_connect(void);
/* one message; false: its queue is full, or the connection is gone (errno) */
bool keeper_link_send(enum KeeperMessageType type, const void *body, size_t len, const int *fds, unsigned n_fds);
/* the same for the few that come in such numbers that the queue may fill: waits for some seconds */
bool keeper_link_send_patiently(enum KeeperMessageType type, const void *body, size_t len, const int *fds,
				unsigned n_fds);
/* bytes of a KeeperSockets with so many entries */
size_t keeper_sockets_size(unsigned count);

struct KeeperReceived {
	struct KeeperMessage head;
	uint8_t body[KEEPER_MESSAGE_MAX];
	size_t length;			/* of body */
	int fds[KEEPER_BATCH];
	unsigned n_fds;
	bool truncated;			/* the kernel dropped descriptors */
};

enum KeeperReception {
	KEEPER_NOTHING,			/* no message for now */
	KEEPER_RECEIVED,
	KEEPER_LINK_LOST,
};

/* the next message; *why is set when the link is lost */
enum KeeperReception keeper_link_receive(struct KeeperReceived *received, const char **why);

#endif
