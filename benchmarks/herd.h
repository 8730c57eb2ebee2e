/* Shared by herd.c (rounds) and herd_sessions.c (what comes before them). */
#ifndef HERD_H
#define HERD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define PATIENCE_MS	60000
#define EVENTS		256

enum Stage { GONE, CONNECTING, LOGIN, PREPARING, AT_REST, ASKED };

struct Session {
	int fd;
	enum Stage stage;
	bool wants;		/* to come back if its connection ends, for an answer is due */
	uint8_t head[5];	/* of the message that is being read */
	unsigned n_head;
	uint32_t left;		/* bytes of it that are still to come */
	char got[128], expected[128];
	unsigned n_got, n_expected;
};

struct Message {
	char data[64 * 1024];
	unsigned len, start;
};

/* herd.c */
extern struct Session *session;
extern unsigned n_sessions, n_statements;
extern bool returns;
extern int poll_fd;

/* herd_sessions.c */
extern unsigned *returning, n_returning;	/* who has to connect again */
extern unsigned n_returned;			/* who has, in this round */

double now_ms(void);
void put(struct Message *m, const void *data, size_t len);
void put_string(struct Message *m, const char *string);
void begin_message(struct Message *m, char type);
void end_message(struct Message *m);
void transmit(unsigned i, const struct Message *m);
/* -1: nothing now */
ssize_t receive(unsigned i, void *data, size_t size);
/* true: it is at rest now */
bool approach(unsigned i);
/* Let them connect again; milliseconds until the next try, -1: none is needed. */
int let_return(void);
/* Bring all sessions to rest, as this user of that database. */
void set_up(const char *host, int port, const char *as, const char *of);

#endif
