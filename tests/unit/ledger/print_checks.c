#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "keeper/format.h"

/* each line of input: a slot's number, a KeeperCopy, an entry and a name's length, and the name, all random */
int main(void)
{
	uint32_t slot;
	struct KeeperCopy copy;
	struct KeeperCatalogEntry entry;
	char name[65536];

	while (fread(&slot, sizeof(slot), 1, stdin) == 1) {
		if (fread(&copy, sizeof(copy), 1, stdin) != 1)
			abort();
		if (fread(&entry, sizeof(entry), 1, stdin) != 1)
			abort();
		if (fread(name, 1, entry.name_length, stdin) != entry.name_length)
			abort();
		printf("%llu %u %u %u\n", (unsigned long long)keeper_check(&copy, slot),
		       keeper_blob_check(name, entry.name_length), keeper_entry_check(&entry, name),
		       keeper_head_check(slot, entry.statement, entry.name_length));
	}
	return 0;
}
