/*
 * pgkeeper - values of tracked parameters, read back at adoption.
 */
#include "bouncer.h"

#include "keeper/internal.h"
#include "keeper/adopt.h"
#include "keeper/facts.h"

/* tracked parameters were recorded by position: their names at that time */
static char recorded_var[UINT8_MAX][128];
static unsigned n_recorded_vars;
static bool recorded_alike;
/* the values of the socket that was read last: mostly those of the next one as well */
static struct PStr *last_value[UINT8_MAX];

void keeper_read_var_names(const struct KeeperCopy *copy)
{
	struct KeeperUnpack unpack;
	struct KeeperGlobalRecord record;
	unsigned i;

	n_recorded_vars = 0;
	recorded_alike = false;
	if (!keeper_open_record(copy, &unpack))
		return;
	keeper_unpack(&unpack, &record, sizeof(record));
	while (n_recorded_vars < record.n_vars && !unpack.failed) {
		keeper_unpack_string(&unpack, recorded_var[n_recorded_vars], sizeof(recorded_var[0]));
		n_recorded_vars++;
	}
	if (unpack.failed)
		n_recorded_vars = 0;
	recorded_alike = n_recorded_vars == (unsigned)get_num_var_cached();
	for (i = 0; recorded_alike && i < n_recorded_vars; i++)
		recorded_alike = strcmp(recorded_var[i], varcache_name(i)) == 0;
}

bool keeper_vars_recorded_alike(void)
{
	return recorded_alike;
}

/* true: it was the same as last time */
static bool set_last_value(VarCache *cache, unsigned i, const uint8_t *value, size_t len)
{
	struct PStr *last = last_value[i];

	if (!recorded_alike || !last || cache->var_list[i]
	    || last->len != len || memcmp(last->str, value, len) != 0)
		return false;
	strpool_incref(last);
	cache->var_list[i] = last;
	return true;
}

/* false: damaged; cache may be NULL, only to check */
bool keeper_read_vars(struct KeeperUnpack *unpack, unsigned n, VarCache *cache)
{
	unsigned i;

	if (n > n_recorded_vars)
		return false;
	for (i = 0; i < n; i++) {
		size_t len;
		const uint8_t *bytes = keeper_unpack_bytes(unpack, &len);
		char *value;

		if (!bytes || !cache || set_last_value(cache, i, bytes, len))
			continue;
		value = strndup((const char *)bytes, len);
		if (!value)
			return false;
		varcache_set(cache, recorded_var[i], value);
		if (recorded_alike)
			last_value[i] = cache->var_list[i];
		free(value);
	}
	return !unpack->failed;
}
