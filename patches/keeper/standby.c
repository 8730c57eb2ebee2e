/*
 * pgkeeper - what the hanger holds, and what a standby has ready before it is told to adopt.
 *
 * A standby is given the held sockets in advance, and told which of them have
 * ended.  It touches none of them but to ask for what cannot change any more,
 * and it only looks at the ledger, which another process writes.
 */
#include "bouncer.h"

#include <sys/mman.h>

#include <usual/safeio.h>
#include <usual/slab.h>

#include "keeper/internal.h"
#include "keeper/adopt.h"

/* after something new, microseconds: a standby is not to use a processor all the time */
#define PREPARE_AFTER	(50 * 1000)

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_READ	22
#define MADV_POPULATE_WRITE	23
#endif

struct KeeperHeld *keeper_held;
unsigned keeper_n_held;
static unsigned max_held;

static struct event prepare_event;
static bool preparing;

void keeper_held_add(uint64_t token, int fd, bool is_unix)
{
	struct KeeperHeld *entry;

	if (keeper_n_held == max_held) {
		max_held = max_held ? 2 * max_held : 1024;
		keeper_held = realloc(keeper_held, max_held * sizeof(*keeper_held));
		if (!keeper_held)
			die("keeper: out of memory");
	}
	entry = &keeper_held[keeper_n_held++];
	memset(entry, 0, sizeof(*entry));
	entry->token = token;
	entry->fd = fd;
	entry->is_unix = is_unix;
}

void keeper_held_forget(const uint64_t *tokens, unsigned count)
{
	unsigned i, k, kept = 0;

	for (i = 0; i < keeper_n_held; i++) {
		for (k = 0; k < count && tokens[k] != keeper_held[i].token; k++) {
		}
		/* it has ended, and our duplicate would keep the peer from hearing of that */
		if (!count || k < count)
			safe_close(keeper_held[i].fd);
		else if (kept++ < i)
			keeper_held[kept - 1] = keeper_held[i];
	}
	keeper_n_held = kept;
}

void keeper_held_none(void)
{
	free(keeper_held);
	keeper_held = NULL;
	keeper_n_held = max_held = 0;
}

static int by_token(const void *a, const void *b)
{
	const struct KeeperHeld *l = a, *r = b;

	return l->token < r->token ? -1 : l->token > r->token;
}

void keeper_held_sort(void)
{
	unsigned i;

	for (i = 1; i < keeper_n_held && keeper_held[i - 1].token < keeper_held[i].token; i++) {
	}
	if (i < keeper_n_held)
		qsort(keeper_held, keeper_n_held, sizeof(*keeper_held), by_token);
}

struct KeeperHeld *keeper_held_find(uint64_t token)
{
	struct KeeperHeld key = { .token = token };

	return keeper_n_held ? bsearch(&key, keeper_held, keeper_n_held, sizeof(key), by_token) : NULL;
}

/*
 * Preparing.
 */

static void ask_addresses(struct KeeperHeld *entry)
{
	socklen_t remote_len = sizeof(entry->remote), local_len = sizeof(entry->local);

	if (entry->has_addresses || entry->is_unix)
		return;
	entry->has_addresses = getpeername(entry->fd, (struct sockaddr *)&entry->remote, &remote_len) == 0
			       && getsockname(entry->fd, (struct sockaddr *)&entry->local, &local_len) == 0;
}

/* so many objects can be had without a look for memory; nobody takes any before the adoption */
static void fill_slab(struct Slab *slab, unsigned wanted)
{
	unsigned n = wanted, i;
	void **object;

	if (slab_free_count(slab) >= (int)wanted)
		return;
	object = calloc(wanted, sizeof(*object));
	if (!object)
		return;
	for (i = 0; i < n; i++) {
		object[i] = slab_alloc(slab);
		if (!object[i])
			n = i;
	}
	while (n > 0)
		slab_free(slab, object[--n]);
	free(object);
}

/* a page that is not mapped yet costs a microsecond when it is first looked at; it need not be possible */
static void map_pages(void)
{
	const struct KeeperHeader *header = keeper_store.header;
	uint8_t *base = (uint8_t *)header;
	size_t used = (size_t)header->used_units * KEEPER_UNIT;

	(void)madvise(base, header->iobuf_offset, MADV_POPULATE_WRITE);
	/* its lowest numbers are given out first */
	if (used <= keeper_store.size - header->heap_offset)
		(void)madvise(base + header->heap_offset, used, MADV_POPULATE_READ);
}

static void prepare_cb(evutil_socket_t sock, short flags, void *arg)
{
	unsigned clients = 0, i;

	preparing = false;
	keeper_held_sort();
	for (i = 0; i < keeper_n_held; i++) {
		clients += !(keeper_held[i].token & KEEPER_SERVER_TOKEN);
		ask_addresses(&keeper_held[i]);
	}
	fill_slab(client_cache, clients);
	fill_slab(server_cache, keeper_n_held - clients);
	keeper_adoptees_begin();
	map_pages();
}

void keeper_prepare_soon(void)
{
	static struct timeval period = { 0, PREPARE_AFTER };

	if (preparing)
		return;
	evtimer_assign(&prepare_event, pgb_event_base, prepare_cb, NULL);
	preparing = evtimer_add(&prepare_event, &period) == 0;
}

void keeper_prepare_no_more(void)
{
	if (preparing)
		evtimer_del(&prepare_event);
	preparing = false;
}
