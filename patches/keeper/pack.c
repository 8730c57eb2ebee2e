/*
 * pgkeeper - records as bytes: fixed parts and counted strings, there and back.
 */
#include "bouncer.h"

#include "keeper/internal.h"

void keeper_pack(struct KeeperPack *pack, const void *data, size_t len)
{
	if (pack->len + len > pack->size) {
		size_t size = 2 * (pack->len + len) + 256;
		uint8_t *more = realloc(pack->data, size);

		if (!more)
			die("keeper: out of memory");
		pack->data = more;
		pack->size = size;
	}
	memcpy(pack->data + pack->len, data, len);
	pack->len += len;
}

void keeper_pack_bytes(struct KeeperPack *pack, const void *data, size_t len)
{
	uint16_t counted = data ? len : UINT16_MAX;

	if (data && len >= UINT16_MAX) {
		pack->too_long = true;
		return;
	}
	keeper_pack(pack, &counted, sizeof(counted));
	if (data)
		keeper_pack(pack, data, len);
}

void keeper_pack_string(struct KeeperPack *pack, const char *string)
{
	keeper_pack_bytes(pack, string, string ? strlen(string) : 0);
}

uint32_t keeper_pack_blob(struct KeeperPack *pack, enum KeeperBlobKind kind)
{
	uint32_t unit = pack->too_long ? 0 : keeper_store_new_blob(&keeper_store, kind, pack->len);

	pack->too_long = false;
	if (!unit)
		return 0;
	memcpy(keeper_blob_data(keeper_store_blob(&keeper_store, unit)), pack->data, pack->len);
	keeper_store_finish_blob(&keeper_store, unit, pack->len);
	return unit;
}

void keeper_unpack(struct KeeperUnpack *unpack, void *to, size_t len)
{
	if (unpack->failed || len > unpack->len) {
		unpack->failed = true;
		memset(to, 0, len);
		return;
	}
	memcpy(to, unpack->data, len);
	unpack->data += len;
	unpack->len -= len;
}

const uint8_t *keeper_unpack_bytes(struct KeeperUnpack *unpack, size_t *len_p)
{
	const uint8_t *bytes;
	uint16_t len;

	*len_p = 0;
	keeper_unpack(unpack, &len, sizeof(len));
	if (unpack->failed || len == UINT16_MAX)
		return NULL;
	if (len > unpack->len) {
		unpack->failed = true;
		return NULL;
	}
	bytes = unpack->data;
	unpack->data += len;
	unpack->len -= len;
	*len_p = len;
	return bytes;
}

bool keeper_unpack_string(struct KeeperUnpack *unpack, char *to, size_t size)
{
	size_t len;
	const uint8_t *bytes = keeper_unpack_bytes(unpack, &len);

	to[0] = 0;
	if (!bytes)
		return false;
	if (len >= size) {
		unpack->failed = true;
		return false;
	}
	memcpy(to, bytes, len);
	to[len] = 0;
	return true;
}

char *keeper_unpack_strdup(struct KeeperUnpack *unpack)
{
	size_t len;
	const uint8_t *bytes = keeper_unpack_bytes(unpack, &len);
	char *string;

	if (!bytes)
		return NULL;
	string = malloc(len + 1);
	if (!string) {
		unpack->failed = true;
		return NULL;
	}
	memcpy(string, bytes, len);
	string[len] = 0;
	return string;
}
