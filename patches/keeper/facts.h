/*
 * pgkeeper - shared by the files of what is no socket: facts.c (reads all of
 * it), globals.c, credentials.c, pools.c, vars.c (tracked parameters).
 *
 * Each function here reads a record.  It says so where that is damaged or
 * speaks of something the configuration no longer has: false, or NULL.
 */
#ifndef KEEPER_FACTS_H
#define KEEPER_FACTS_H

bool keeper_read_global(const struct KeeperCopy *copy);
/* the tracked parameters' names, from the same record */
void keeper_read_var_names(const struct KeeperCopy *copy);
/* the database where they are known alone, if any */
PgCredentials *keeper_read_credentials(const struct KeeperCopy *copy, PgDatabase **db_p);
/* changed: the database was reconfigured */
PgPool *keeper_read_pool(const struct KeeperCopy *copy, bool *changed_p);

#endif
