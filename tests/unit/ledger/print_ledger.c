#include <stdio.h>
#include <stdlib.h>
#include "keeper/store.h"

int main(int argc, char **argv)
{
	uint32_t n[4];
	struct KeeperHeader *header;
	size_t size;
	int i;

	for (i = 0; i < 4 && i + 1 < argc; i++)
		n[i] = strtoul(argv[i + 1], NULL, 10);
	size = keeper_store_size(n[0], n[1], n[2], n[3]);
	header = aligned_alloc(4096, size);
	for (i = 0; (size_t)i < size; i++)
		((char *)header)[i] = 0;
	keeper_store_format(header, n[0], n[1], n[2], n[3]);
	fwrite(header, 1, size, stdout);
	free(header);
	return 0;
}
