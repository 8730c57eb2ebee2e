/*
 * Does a shortcut of patches/keeper/shortcuts.h answer what the upstream function behind it does?
 * test_shortcuts.py puts upstream's get_header() into upstream.h and compiles this with
 * PgBouncer's headers. Prints what differs, and how often each kind of packet was met.
 */
#include "bouncer.h"
#include "scram.h"

#include "keeper/shortcuts.h"

unsigned int cf_max_packet_size = 1000;
int cf_verbose;
enum LogLevel cf_syslog_level, cf_stderr_level;

void log_generic(enum LogLevel level, void *ctx, const char *s, ...)
{
}

#include "upstream.h"

static unsigned n_whole, n_part, n_left;

static bool same(const struct MBuf *a, const struct MBuf *b)
{
	return a->data == b->data && a->read_pos == b->read_pos && a->write_pos == b->write_pos
	       && a->alloc_len == b->alloc_len && a->reader == b->reader && a->fixed == b->fixed;
}

/* what the kept pgbouncer does with them: the shortcut, and upstream's where that leaves it */
static void try_header(const uint8_t *bytes, unsigned from, unsigned to)
{
	struct MBuf upstream_data, ours_data;
	PktHdr upstream, ours;
	bool upstream_says, ours_says;

	memset(&upstream, 0, sizeof(upstream));
	memset(&ours, 0, sizeof(ours));
	mbuf_init_fixed_reader(&upstream_data, bytes, to);
	upstream_data.read_pos = from;
	ours_data = upstream_data;
	upstream_says = upstream_header(&upstream_data, &upstream);
	ours_says = keeper_plain_header(&ours_data, &ours);
	if (!ours_says) {
		n_left++;
		if (!same(&ours_data, &(struct MBuf) { .data = (uint8_t *)bytes, .read_pos = from, .write_pos = to,
						       .alloc_len = to, .reader = true, .fixed = true }))
			printf("not taken, and yet something changed\n");
		return;
	}
	if (ours.data.write_pos == ours.len)
		n_whole++;
	else
		n_part++;
	if (!upstream_says || ours.type != upstream.type || ours.len != upstream.len
	    || !same(&ours.data, &upstream.data) || !same(&ours_data, &upstream_data))
		printf("a packet of %u bytes is read in another way: %02x %02x%02x%02x%02x\n", to - from, bytes[from],
		       bytes[from + 1], bytes[from + 2], bytes[from + 3], bytes[from + 4]);
}

static void try_headers(void)
{
	/* around each border: the header, what is there, the largest packet, 2^31 and 2^32 */
	static const uint32_t lengths[] = {
		0, 1, 3, 4, 5, 6, 15, 16, 17, 254, 255, 256, 997, 998, 999, 1000, 1001,
		0x7ffffffe, 0x7fffffff, 0x80000000, 0x80000001, 0xfffffffe, 0xffffffff
	};
	uint8_t bytes[1100];
	unsigned type, i, from, size;

	memset(bytes, 0, sizeof(bytes));
	for (type = 0; type < 256; type++) {
		for (i = 0; i < ARRAY_NELEM(lengths); i++) {
			uint32_t length = htobe32(lengths[i]);

			for (from = 0; from < 3; from++) {
				memset(bytes, 0, 8);
				bytes[from] = type;
				memcpy(bytes + from + 1, &length, sizeof(length));
				for (size = 0; size < 20; size++)
					try_header(bytes, from, from + size);
				for (size = 990; size < 1010; size++)
					try_header(bytes, from, from + size);
			}
		}
	}
}

static void try_types(void)
{
	static const char *const lists[] = { "", "Q", "SQF", "EE", "\377\200" };
	int type;
	unsigned i;

	for (type = 1; type < 256; type++) {
		for (i = 0; i < ARRAY_NELEM(lists); i++) {
			if (keeper_is_among(type, lists[i]) != (strchr(lists[i], type) != NULL))
				printf("type %d in list %u\n", type, i);
		}
	}
}

static void try_vars(void)
{
	struct PStr *a[4], *b[4];
	VarCache server = { .var_list = a }, client = { .var_list = b };
	static char values[2];
	unsigned way, n, k;

	/* each value: none, or one of two */
	for (way = 0; way < 3 * 3 * 3 * 3 * 3 * 3; way++) {
		bool is_same = true;
		unsigned rest = way;

		for (k = 0; k < 3; k++) {
			a[k] = rest % 3 ? (void *)&values[rest % 3 - 1] : NULL;
			rest /= 3;
			b[k] = rest % 3 ? (void *)&values[rest % 3 - 1] : NULL;
			rest /= 3;
		}
		for (n = 0; n <= 3; n++) {
			if (n)
				is_same = is_same && a[n - 1] == b[n - 1];
			if (keeper_same_vars(&server, &client, n) != is_same)
				printf("parameters, %u of them, in way %u\n", n, way);
		}
	}
}

int main(void)
{
	try_headers();
	try_types();
	try_vars();
	printf("whole %u, in part %u, left to upstream %u\n", n_whole, n_part, n_left);
	return 0;
}
