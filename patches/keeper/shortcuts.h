/*
 * pgkeeper - shortcuts through work that PgBouncer does for each message or
 * each transaction, which give back what the keeper takes of the processor.
 *
 * Each answers what the upstream code behind it would, or leaves it to that.
 * They have nothing to do with sessions being kept, and are for upstream to
 * take as they are.
 */
#ifndef KEEPER_SHORTCUTS_H
#define KEEPER_SHORTCUTS_H

#include <usual/endian.h>

extern unsigned int cf_max_packet_size;

/*
 * get_header() of what nearly all packets are: a type and a length, both of
 * which have come.  False: look closer.
 */
static inline bool keeper_plain_header(struct MBuf *data, PktHdr *pkt)
{
	const uint8_t *p = data->data + data->read_pos;
	unsigned avail = mbuf_avail_for_read(data);
	uint32_t len;

	if (unlikely(avail < NEW_HEADER_LEN || p[0] == 0))
		return false;
	memcpy(&len, p + 1, sizeof(len));
	/* wire length does not include the type */
	len = be32toh(len) + 1;
	if (unlikely(len < NEW_HEADER_LEN || len > cf_max_packet_size))
		return false;
	if (avail > len)
		avail = len;
	pkt->type = p[0];
	pkt->len = len;
	mbuf_init_fixed_reader(&pkt->data, p, avail);
	pkt->data.read_pos = NEW_HEADER_LEN;
	data->read_pos += avail;
	return true;
}

/* varcache_apply() of two whose values are the same: each value is in memory once */
static inline bool keeper_same_vars(const VarCache *server, const VarCache *client, int n)
{
	int i;

	for (i = 0; i < n; i++) {
		if (server->var_list[i] != client->var_list[i])
			return false;
	}
	return true;
}

/* strchr() of a few types, of which most often the first is meant */
static inline bool keeper_is_among(char type, const char types[])
{
	while (*types && *types != type)
		types++;
	return *types != '\0';
}

#endif
