/*
 * pgkeeper - sessions that end because the hanger says so: some, or all of them.
 */
#include "bouncer.h"

#include "keeper/internal.h"

/* has the client received whole messages only, with nothing left to be sent? */
static bool between_messages(PgSocket *client)
{
	const SBuf *source = client->link ? &client->link->sbuf : NULL;

	if (!source || source->dst != &client->sbuf)
		return true;
	if ((source->io && iobuf_amount_pending(source->io)) || mbuf_avail_for_read(&source->extra_packets))
		return false;
	/* of a packet that is skipped in part, the rest is sent */
	return !source->pkt_remain || (source->pkt_action != KEEPER_ACTION_SEND && source->skip_remain);
}

static void end_client(PgSocket *client)
{
	disconnect_client_sqlstate(client, between_messages(client), "57P01",
				   "terminating connection: pgbouncer and pgkeeper are shut down");
}

static void end_clients(struct StatList *list)
{
	struct List *item, *tmp;

	statlist_for_each_safe(item, list, tmp) {
		end_client(container_of(item, PgSocket, head));
	}
}

static void end_server(PgSocket *server)
{
	disconnect_server(server, true, "pgkeeper releases all sessions");
}

static void end_servers(struct StatList *list)
{
	struct List *item, *tmp;

	statlist_for_each_safe(item, list, tmp) {
		end_server(container_of(item, PgSocket, head));
	}
}

/* in the middle of a message nothing is said */
void keeper_end_clients(const struct KeeperTokens *tokens)
{
	uint32_t slot, i;

	for (i = 0; i < tokens->count && i < KEEPER_BATCH; i++) {
		for (slot = 1; slot <= keeper_store.header->slots; slot++) {
			struct KeeperLocal *l = &keeper_local[slot];

			if (l->kind != KEEPER_CLIENT || l->token != tokens->token[i])
				continue;
			disconnect_client_sqlstate(l->object, between_messages(l->object), "57P01",
						   "terminated by the operator (pgkeeper)");
			break;
		}
	}
}

void keeper_end_all(void)
{
	struct List *item;

	log_info("keeper: releasing all sessions");
	/* nobody who waits may be given a server that was just let go */
	cf_pause_mode = P_PAUSE;
	cf_shutdown = SHUTDOWN_IMMEDIATE;
	end_clients(&login_client_list);
	statlist_for_each(item, &pool_list) {
		PgPool *pool = container_of(item, PgPool, head);

		end_clients(&pool->active_client_list);
		end_clients(&pool->waiting_client_list);
		end_clients(&pool->waiting_cancel_req_list);
		end_clients(&pool->active_cancel_req_list);
		end_servers(&pool->active_server_list);
		end_servers(&pool->idle_server_list);
		end_servers(&pool->used_server_list);
		end_servers(&pool->tested_server_list);
		end_servers(&pool->being_canceled_server_list);
	}
	keeper_settle();
}
