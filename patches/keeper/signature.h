/*
 * Made by: python -m protocol.ledger_signature
 *
 * FNV-1a of the names, offsets and sizes of all fields of format.h.
 */
#ifndef KEEPER_SIGNATURE_H
#define KEEPER_SIGNATURE_H

#define KEEPER_SIGNATURE	0xc549145d847a1dbeULL

#endif
