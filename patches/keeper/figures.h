/*
 * pgkeeper - what the kernel says a socket has carried.
 */
#ifndef KEEPER_FIGURES_H
#define KEEPER_FIGURES_H

#include <stdbool.h>
#include <stdint.h>

/*
 * Bytes that any holder of this TCP socket has read from it and written to it,
 * up to a constant that a baseline taken at registration removes.  False where
 * the kernel does not tell.
 */
bool keeper_figures(int fd, uint64_t *read_p, uint64_t *written_p);

#endif
