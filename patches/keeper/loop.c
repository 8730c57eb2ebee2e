/*
 * pgkeeper - the end of each event loop: flush outboxes, finish closing, commit.
 */
#include "bouncer.h"

#include <time.h>

#include <usual/safeio.h>

#include "keeper/internal.h"

/* a peer that does not read keeps a closing socket for so long, microseconds */
#define CLOSING_PATIENCE	(5 * USEC)

/* totals of SHOW STATS are recorded so often, microseconds */
#define STATISTICS_PERIOD	(1 * USEC)

/* the hanger's watchdog sees that we live, microseconds */
#define BEAT_PERIOD		(10 * 1000)

/* the janitor's first round after an adoption: when all have been heard, microseconds */
#define MAINTAIN_AFTER		(50 * 1000)

/* the options of adopted sockets are set anew by so many, with so many microseconds in between */
#define TUNE_AT_ONCE		64
#define TUNE_AFTER		(10 * 1000)

/* without an act, changes are committed after so long, and the hanger told of closed sockets, microseconds */
#define LAZY_PERIOD		(50 * 1000)
/* ... or when so few are left to be given out, or so many wait to be */
#define LOW			16
#define MANY_FREED		256

static uint32_t *pending, n_pending;
/* closed, but the hanger was not told yet that it may close its duplicates */
static uint32_t *untold, n_untold;
static usec_t untold_since;
static struct event retry_event, lazy_event, tune_event;
static bool retrying, lazy, at_once;

void keeper_loop_setup(void)
{
	pending = calloc(keeper_store.header->slots + 1, sizeof(*pending));
	untold = calloc(keeper_store.header->slots + 1, sizeof(*untold));
	if (!pending || !untold)
		die("keeper: out of memory");
}

void keeper_pend(uint32_t slot)
{
	if (!keeper_local[slot].pending) {
		keeper_local[slot].pending = true;
		pending[n_pending++] = slot;
	}
}

static void retry_cb(evutil_socket_t sock, short flags, void *arg)
{
	/* waking the loop is all: keeper_loop_end() follows */
	retrying = false;
}

static void lazy_cb(evutil_socket_t sock, short flags, void *arg)
{
	lazy = false;
}

/* a loop in which nothing happens would not end before the janitor's next round */
static void end_loop_soon(void)
{
	static struct timeval period = { 0, LAZY_PERIOD };

	if (lazy)
		return;
	evtimer_assign(&lazy_event, pgb_event_base, lazy_cb, NULL);
	lazy = evtimer_add(&lazy_event, &period) == 0;
}

/*
 * The janitor comes a third of a second after a process's start at the earliest.
 * Timeouts are not to wait for a process that lives so long.  But a server that
 * rests is taken by who waits for it first, at the end of the first loop: the
 * janitor would take it for idle.
 */

event_callback_fn keeper_maintain;
static struct event maintain_event;
static bool first_loop;

static void call_in(suseconds_t usec, struct event *event)
{
	struct timeval time = { 0, usec };

	if (evtimer_add(event, &time) < 0)
		log_warning("keeper: event_add failed: %s", strerror(errno));
}

static void maintain_cb(evutil_socket_t sock, short flags, void *arg)
{
	if (first_loop)
		call_in(0, &maintain_event);
	else
		keeper_maintain(sock, flags, arg);
}

/*
 * Our predecessor has set them, by a configuration that may have changed since.
 * Nothing depends on it: our own acts do not even need O_NONBLOCK.
 */
static void tune_cb(evutil_socket_t sock, short flags, void *arg)
{
	static uint32_t slot = 1;
	unsigned n;

	for (n = 0; slot <= keeper_store.header->slots && n < TUNE_AT_ONCE; slot++) {
		const struct KeeperLocal *l = &keeper_local[slot];

		if ((l->kind != KEEPER_CLIENT && l->kind != KEEPER_SERVER) || l->fd < 0)
			continue;
		n++;
		if (!tune_socket(l->fd, l->is_unix))
			log_warning("keeper: tune_socket failed for an adopted socket");
	}
	if (slot <= keeper_store.header->slots)
		call_in(TUNE_AFTER, &tune_event);
}

void keeper_maintain_soon(void)
{
	first_loop = true;
	evtimer_assign(&maintain_event, pgb_event_base, maintain_cb, NULL);
	evtimer_assign(&tune_event, pgb_event_base, tune_cb, NULL);
	call_in(MAINTAIN_AFTER, &maintain_event);
	call_in(MAINTAIN_AFTER, &tune_event);
}

/* flush what waits; collect what can be closed */
static uint32_t work_on_pending(uint32_t *closing)
{
	uint32_t n = n_pending, n_closing = 0, i;
	uint32_t *list = pending;
	static uint32_t *spare;

	/* flushing commits, and a commit may pend nothing: but be safe against growth */
	if (!spare)
		spare = calloc(keeper_store.header->slots + 1, sizeof(*spare));
	if (!spare)
		return 0;
	memcpy(spare, list, n * sizeof(*spare));
	n_pending = 0;
	for (i = 0; i < n; i++) {
		uint32_t slot = spare[i];
		struct KeeperLocal *l = &keeper_local[slot];

		l->pending = false;
		if (l->kind == KEEPER_FREE)
			continue;
		if (!keeper_outbox_flush(slot)) {
			/* words of ours are waited for; the rest of a result is cut off, as upstream does */
			bool gave_up = l->kind == KEEPER_CLOSING
				       && (!l->outbox || get_cached_time() - l->closing_since > CLOSING_PATIENCE);

			if (!gave_up) {
				if (l->kind == KEEPER_CLOSING || !keeper_outbox_wait(slot))
					keeper_pend(slot);
				continue;
			}
			keeper_outbox_drop(slot);
		}
		if (l->kind == KEEPER_CLOSING)
			closing[n_closing++] = slot;
	}
	return n_closing;
}

static void finish_closing(const uint32_t *closing, uint32_t n)
{
	uint32_t i;

	if (!n)
		return;
	/* true for all of them: nothing left to send, about to be closed */
	keeper_commit(KEEPER_ACT_CLOSE, closing[0], 0);
	if (!n_untold)
		untold_since = get_cached_time();
	for (i = 0; i < n; i++) {
		struct KeeperLocal *l = &keeper_local[closing[i]];

		/* closed already, and to be told of */
		if (l->fd < 0)
			continue;
		untold[n_untold++] = closing[i];
		/* the hanger's duplicate would keep close() from telling the peer */
		shutdown(l->fd, SHUT_WR);
		safe_close(l->fd);
		l->fd = -1;
	}
}

/*
 * The peer has seen our FIN, so nobody waits for the end of the hanger's
 * duplicate: one message for many, since each costs the hanger as much as an
 * accepted client.  Until then the slot stays, and a successor closes again.
 */
static void tell_closed(void)
{
	uint64_t tokens[KEEPER_BATCH];
	uint32_t i, done, batch;

	for (done = 0; done < n_untold; done += batch) {
		batch = n_untold - done < KEEPER_BATCH ? n_untold - done : KEEPER_BATCH;
		for (i = 0; i < batch; i++)
			tokens[i] = keeper_local[untold[done + i]].token;
		/* if its queue is full, say it again later */
		if (keeper_hanger_connected() && !keeper_hanger_release(tokens, batch, false))
			break;
		for (i = 0; i < batch; i++)
			keeper_drop_slot(untold[done + i]);
	}
	n_untold -= done;
	memmove(untold, untold + done, n_untold * sizeof(*untold));
}

static bool tell_is_due(void)
{
	return n_untold >= KEEPER_BATCH || keeper_store.n_free_slot < KEEPER_BATCH
	       || get_cached_time() - untold_since >= LAZY_PERIOD || !keeper_hanger_connected();
}

static void finish_pending(void)
{
	static uint32_t *closing;
	static struct timeval soon = { 0, 10000 };

	if (!n_pending)
		return;
	if (!closing)
		closing = calloc(keeper_store.header->slots + 1, sizeof(*closing));
	if (closing)
		finish_closing(closing, work_on_pending(closing));
	if (n_pending && !retrying) {
		evtimer_assign(&retry_event, pgb_event_base, retry_cb, NULL);
		retrying = evtimer_add(&retry_event, &soon) == 0;
	}
}

void keeper_settle(void)
{
	/* who hears that he is closed may come again at once, and must not be counted twice then */
	reuse_just_freed_objects();
	keeper_send_leaving();
	finish_pending();
	tell_closed();
	if (keeper_store.n_dirty)
		keeper_commit(KEEPER_ACT_NONE, 0, 0);
}

void keeper_commit_at_loop_end(void)
{
	at_once = true;
}

/*
 * What happened since the last commit can be done again from it, so a commit
 * here is for those who look (and gives back what was freed): not each loop.
 */
static bool commit_is_due(usec_t now)
{
	static uint64_t last_epoch;
	static usec_t last_commit;

	if (keeper_store.epoch != last_epoch) {
		last_epoch = keeper_store.epoch;
		last_commit = now;
	}
	return at_once || now - last_commit >= LAZY_PERIOD
	       || keeper_store.n_free_slot < LOW || keeper_store.n_free_iobuf < LOW
	       || keeper_store.n_freed_blob > MANY_FREED;
}

/* is it named by a client, a server, or a login that is in none of its lists yet? */
static bool pool_in_use(PgPool *pool)
{
	struct List *item;

	if (pool_client_count(pool) || pool_server_count(pool)
	    || !statlist_empty(&pool->waiting_cancel_req_list) || !statlist_empty(&pool->active_cancel_req_list))
		return true;
	statlist_for_each(item, &login_client_list) {
		if (container_of(item, PgSocket, head)->pool == pool)
			return true;
	}
	return false;
}

/* facts about pools that nobody uses give way to sessions */
static void make_room(void)
{
	struct List *item;

	statlist_for_each(item, &pool_list) {
		PgPool *pool = container_of(item, PgPool, head);

		if (!pool->keeper_slot || pool_in_use(pool))
			continue;
		keeper_drop_slot(pool->keeper_slot);
		pool->keeper_slot = 0;
	}
}

/* upstream tries a peer only when a request for it comes: one that waits from before a kill would wait on */
static void forward_to_peers(void)
{
	struct List *item;

	statlist_for_each(item, &peer_pool_list) {
		PgPool *pool = container_of(item, PgPool, head);

		if (!statlist_empty(&pool->waiting_cancel_req_list))
			launch_new_connection(pool, true);
	}
}

void keeper_beat(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	__atomic_store_n(&keeper_store.header->heartbeat,
			 (uint64_t)now.tv_sec * USEC + now.tv_nsec / 1000, __ATOMIC_RELAXED);
}

/* how full the ledger is: for those who watch it, who cannot know what is free; and ids of who is not in it */
static void tell_usage(void)
{
	struct KeeperHeader *header = keeper_store.header;

	header->query_id = next_unique_query_id;
	header->socket_id = last_pgsocket_id;
	header->used_slots = header->slots - keeper_store.n_free_slot;
	header->used_iobufs = keeper_store.iobufs - keeper_store.n_free_iobuf;
	header->used_units = header->units - keeper_store.free_units;
}

void keeper_loop_end(void)
{
	static usec_t last_statistics, last_beat;
	usec_t now;

	if (!keeper_on)
		return;
	now = get_cached_time();
	keeper_handles_nobody();
	keeper_send_leaving();
	forward_to_peers();
	finish_pending();
	if (n_untold && tell_is_due())
		tell_closed();
	if (n_untold)
		end_loop_soon();
	first_loop = false;
	/* differences: the clock may be set back */
	if (now - last_statistics >= STATISTICS_PERIOD) {
		last_statistics = now;
		keeper_mark_pools();
		if (keeper_store.n_free_slot < LOW)
			make_room();
	}
	if (keeper_store.n_dirty) {
		if (commit_is_due(now))
			keeper_commit(KEEPER_ACT_NONE, 0, 0);
		else
			end_loop_soon();
		at_once = false;
	}
	if (now - last_beat >= BEAT_PERIOD) {
		last_beat = now;
		tell_usage();
		keeper_beat();
	}
}
