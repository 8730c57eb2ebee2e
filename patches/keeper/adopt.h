/*
 * pgkeeper - shared by the files of adoption: adopt.c (the order of things),
 * judge.c (who can go on), facts.c (what is no socket), rebuild.c (sockets).
 */
#ifndef KEEPER_ADOPT_H
#define KEEPER_ADOPT_H

/* a slot in the hands of adoption */
struct KeeperAdoptee {
	struct KeeperCopy copy;		/* ours to adjust by the kernel's figures */
	int fd;
	const struct KeeperHeld *held;	/* where it is from */
	bool damaged;			/* nothing but the token is left of the copy */
	bool lost;			/* cannot go on */
	enum KeeperLost reason;
	uint64_t read, written;		/* kernel's figures, from registration on */
	bool recv_due;			/* goes on with a recv: its socket may have ended, whatever is in its IOBuf */
	bool torn;			/* which do not fit: nobody knows what of its outbox is out */
	uint32_t iobuf;			/* kept, but nobody's yet */
	uint32_t handed, handed_done, handed_end;	/* IOBuf whose bytes have not all been sent to it */
	PgSocket *sk;			/* once rebuilt */
};

extern struct KeeperAdoptee *keeper_adoptee;	/* by slot */

/* make room for all of them, unless there is */
void keeper_adoptees_begin(void);

static inline bool keeper_is_socket(const struct KeeperCopy *copy)
{
	return copy->kind == KEEPER_CLIENT || copy->kind == KEEPER_SERVER;
}

/*
 * plausible.c
 */

/* could PgBouncer have written this copy of a slot in use? */
bool keeper_plausible(const struct KeeperCopy *copy, uint32_t slot);
/* is it in the middle of handing bytes on to its dst? */
bool keeper_is_sending(const struct KeeperCopy *copy);

/*
 * judge.c
 */

/* take the true copies and the descriptors that belong to them */
void keeper_read_slots(void);
/* this one cannot go on */
void keeper_lose(uint32_t slot, enum KeeperLost reason);
/* compare with the kernel's figures; pools must have been read */
void keeper_judge(uint32_t slot, const struct KeeperActRecord *act);
/* who depends on a lost one is lost as well */
void keeper_judge_links(void);
/* how much of a closing socket's last words is out already, of its outbox */
void keeper_settle_closing(uint32_t slot, const struct KeeperActRecord *act);
/* does this client's stream stand between two messages, with nothing left to send? */
bool keeper_at_boundary(const struct KeeperAdoptee *a);

/*
 * facts.c, credentials.c, vars.c
 */

/* users and pools; pools whose database was reconfigured are listed */
void keeper_read_facts(PgPool **changed_pool, unsigned *n_changed);
bool keeper_open_record(const struct KeeperCopy *copy, struct KeeperUnpack *unpack);
PgCredentials *keeper_find_credentials(enum KeeperCredentials kind, const char *name, PgDatabase *db);
/* values of tracked parameters; false: damaged */
bool keeper_read_vars(struct KeeperUnpack *unpack, unsigned n, VarCache *cache);
/* are the same parameters tracked as when they were recorded, in the same order? */
bool keeper_vars_recorded_alike(void);

/*
 * catalog_read.c
 */

/* around the reading of all of them */
void keeper_catalogs_begin(void);
void keeper_catalogs_end(void);
/* read a socket's catalog, a client's folded; false: damaged */
bool keeper_catalog_read(PgSocket *sk, uint32_t blob, uint32_t used);
PgServerPreparedStatement *keeper_closing_statement(uint32_t blob);

/*
 * rebuild.c
 */

/* our own notes about a slot, with the blobs that its true copy names */
void keeper_adopt_local(uint32_t slot);
/* a PgSocket in no list yet; NULL: lost, with the reason set */
PgSocket *keeper_rebuild(uint32_t slot);
/* as if it had been counted when it came */
void keeper_rebuild_counts(PgSocket *sk, uint32_t flags);
/* take apart what was rebuilt in vain */
void keeper_discard(PgSocket *sk);

#endif
