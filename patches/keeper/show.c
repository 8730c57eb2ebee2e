/*
 * pgkeeper - SHOW KEEPER: what this process knows about being kept.
 */
#include "bouncer.h"

#include "keeper/internal.h"

/* as scripts rely on it: new columns come last, none changes its name or meaning */
#define COLUMNS	"sqiqqqqqqqqqqqqqqqqqq"

static struct KeeperReady adoption;
static uint64_t outage_us;

void keeper_remember_adoption(const struct KeeperReady *ready, uint64_t down_us)
{
	adoption = *ready;
	outage_us = down_us;
}

struct Held {
	uint64_t clients, servers;	/* would go on if we were killed now */
	uint64_t in_flight;		/* would not: they hold bytes that the ledger does not */
	uint64_t closing;
};

static void count_held(struct Held *held)
{
	uint32_t slot;

	for (slot = 1; slot <= keeper_store.header->slots; slot++) {
		uint8_t kind = keeper_local[slot].kind;

		if (kind == KEEPER_CLOSING)
			held->closing++;
		else if (kind != KEEPER_CLIENT && kind != KEEPER_SERVER)
			continue;
		else if (keeper_store_copy(&keeper_store, slot)->flags & KEEPER_F_VOLATILE)
			held->in_flight++;
		else if (kind == KEEPER_CLIENT)
			held->clients++;
		else
			held->servers++;
	}
}

bool keeper_admin_show(PgSocket *admin, const char *arg)
{
	static const struct KeeperHeader nothing;
	const struct KeeperHeader *header = keeper_store.header ? keeper_store.header : &nothing;
	const char *state = !keeper_on ? "off" : keeper_hanger_connected() ? "connected" : "no hanger";
	struct Held held = { 0, 0, 0, 0 };
	uint64_t lost = 0;
	PktBuf *buf = pktbuf_dynamic(512);
	unsigned i;

	if (!buf) {
		admin_error(admin, "no mem");
		return true;
	}
	if (keeper_store.header)
		count_held(&held);
	for (i = 0; i < KEEPER_LOST_REASONS; i++)
		lost += adoption.lost[i];

	pktbuf_write_RowDescription(buf, COLUMNS,
				    "hanger", "incarnation", "format",
				    "clients", "clients_held", "servers", "servers_held", "in_flight", "closing",
				    "slots", "slots_used", "iobufs", "iobufs_used", "heap_bytes", "heap_bytes_used",
				    "commits",
				    "adopted_clients", "adopted_servers", "adoption_lost", "adoption_us", "outage_us");
	pktbuf_write_DataRow(buf, COLUMNS,
			     state, keeper_store.incarnation, (int)keeper_store.format,
			     (uint64_t)get_active_client_count(), held.clients,
			     (uint64_t)get_active_server_count(), held.servers, held.in_flight, held.closing,
			     (uint64_t)header->slots, (uint64_t)header->slots - keeper_store.n_free_slot,
			     (uint64_t)header->iobufs, (uint64_t)header->iobufs - keeper_store.n_free_iobuf,
			     (uint64_t)header->units * KEEPER_UNIT,
			     ((uint64_t)header->units - keeper_store.free_units) * KEEPER_UNIT,
			     keeper_store.epoch,
			     (uint64_t)adoption.clients, (uint64_t)adoption.servers, lost, adoption.adoption_us,
			     outage_us);
	admin_flush(admin, buf, "SHOW");
	return true;
}
