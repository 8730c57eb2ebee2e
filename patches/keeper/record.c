/*
 * pgkeeper - a socket's record: what seldom changes.  copy.c writes the rest,
 * rebuild.c is the way back.
 */
#include "bouncer.h"

#include "keeper/internal.h"

extern struct AATree pam_user_tree;

/*
 * What records are made of.
 */

enum KeeperCredentials keeper_credentials_kind(PgCredentials *credentials, PgDatabase *db)
{
	struct AANode *node;

	if (!credentials)
		return KEEPER_CRED_NONE;
	if (credentials->mock_auth || !credentials->global_user)
		return KEEPER_CRED_MOCK;
	if (credentials == &credentials->global_user->credentials)
		return KEEPER_CRED_GLOBAL;
	if (db && credentials == db->forced_user_credentials)
		return KEEPER_CRED_FORCED;
	if (db && db->user_tree.root) {
		node = aatree_search(&db->user_tree, (uintptr_t)credentials->name);
		if (node && container_of(node, PgCredentials, tree_node) == credentials)
			return KEEPER_CRED_DYNAMIC;
	}
	node = aatree_search(&pam_user_tree, (uintptr_t)credentials->name);
	if (node && container_of(node, PgCredentials, tree_node) == credentials)
		return KEEPER_CRED_PAM;
	return KEEPER_CRED_MOCK;
}

void keeper_pack_vars(struct KeeperPack *pack, struct PStr **vars)
{
	int i;

	for (i = 0; i < get_num_var_cached(); i++) {
		if (vars[i])
			keeper_pack_bytes(pack, vars[i]->str, strlen(vars[i]->str));
		else
			keeper_pack_bytes(pack, NULL, 0);
	}
}

/* swap in a new blob: the old one is freed once no true copy names it */
void keeper_replace_record(struct KeeperLocal *l, uint32_t unit)
{
	keeper_store_free_blob(&keeper_store, l->record);
	l->record = unit;
	if (!unit)
		l->full = true;
}

static uint32_t scram_blob(struct ScramState *scram)
{
	struct KeeperPack pack = { NULL, 0, 0, false };
	uint32_t unit;

	keeper_pack_string(&pack, scram->client_nonce);
	keeper_pack_string(&pack, scram->client_first_message_bare);
	keeper_pack_string(&pack, scram->client_final_message_without_proof);
	keeper_pack_string(&pack, scram->server_nonce);
	keeper_pack_string(&pack, scram->server_first_message);
	keeper_pack_string(&pack, scram->salt);
	keeper_pack(&pack, &scram->cbind_flag, sizeof(scram->cbind_flag));
	keeper_pack(&pack, &scram->adhoc, sizeof(scram->adhoc));
	keeper_pack(&pack, &scram->iterations, sizeof(scram->iterations));
	keeper_pack(&pack, scram->ClientKey, sizeof(scram->ClientKey));
	keeper_pack(&pack, scram->StoredKey, sizeof(scram->StoredKey));
	keeper_pack(&pack, scram->ServerKey, sizeof(scram->ServerKey));
	unit = keeper_pack_blob(&pack, KEEPER_BLOB_SCRAM);
	free(pack.data);
	return unit;
}

/* a packet that is being buffered whole: what has come since goes to the end of its blob */
static void update_packet(PgSocket *sk, struct KeeperLocal *l)
{
	struct CallbackState *state = &sk->packet_cb_state;
	struct MBuf *data = &state->pkt.data;
	unsigned written = mbuf_written(data);
	uint32_t head[2] = { state->pkt.type, state->pkt.len };
	uint8_t *mirror;

	if (state->flag == l->packet_flag && written == l->packet_written)
		return;
	l->stale = true;
	l->packet_flag = state->flag;
	if (l->packet && (written < l->packet_written || !written)) {
		keeper_store_free_blob(&keeper_store, l->packet);
		l->packet = 0;
		l->packet_written = 0;
	}
	if (written && !l->packet) {
		l->packet = keeper_store_new_blob(&keeper_store, KEEPER_BLOB_PACKET, sizeof(head) + state->pkt.len);
		l->packet_written = 0;
		/* no room for so large a packet: volatile until it is done */
		if (!l->packet)
			return;
		memcpy(keeper_blob_data(keeper_store_blob(&keeper_store, l->packet)), head, sizeof(head));
	}
	if (l->packet) {
		mirror = keeper_blob_data(keeper_store_blob(&keeper_store, l->packet)) + sizeof(head);
		memcpy(mirror + l->packet_written, data->data + l->packet_written, written - l->packet_written);
	}
	l->packet_written = written;
}

/*
 * Socket records are rewritten when one of the things they hold has changed.
 */

static bool vars_changed(PgSocket *sk, struct KeeperLocal *l)
{
	return !l->vars || memcmp(l->vars, sk->vars.var_list, get_num_var_cached() * sizeof(*l->vars)) != 0;
}

static void remember_vars(PgSocket *sk, struct KeeperLocal *l)
{
	int i;

	if (!l->vars) {
		l->vars = calloc(get_num_var_cached(), sizeof(*l->vars));
		if (!l->vars)
			die("keeper: out of memory");
	}
	for (i = 0; i < get_num_var_cached(); i++) {
		struct PStr *now = sk->vars.var_list[i];

		if (now)
			strpool_incref(now);
		if (l->vars[i])
			strpool_decref(l->vars[i]);
		l->vars[i] = now;
	}
}

static bool record_changed(PgSocket *sk, struct KeeperLocal *l)
{
	PgDatabase *db = is_server_socket(sk) ? NULL : sk->db;

	if (sk->scram_state.server_nonce && !l->scram) {
		l->scram = scram_blob(&sk->scram_state);
		l->full |= !l->scram;
		l->stale = true;
	} else if (!sk->scram_state.server_nonce && l->scram) {
		keeper_store_free_blob(&keeper_store, l->scram);
		l->scram = 0;
		l->stale = true;
	}
	if (sk->packet_cb_state.flag != CB_NONE || l->packet_flag != CB_NONE)
		update_packet(sk, l);
	return l->stale || l->credentials != sk->login_user_credentials || l->db != db
	       || l->auth_type != sk->client_auth_type || l->replication != (int)sk->replication
	       || memcmp(l->cancel_key, sk->cancel_key, sizeof(l->cancel_key)) != 0 || vars_changed(sk, l);
}

void keeper_remember_record(PgSocket *sk, struct KeeperLocal *l)
{
	l->credentials = sk->login_user_credentials;
	l->db = is_server_socket(sk) ? NULL : sk->db;
	l->auth_type = sk->client_auth_type;
	l->replication = sk->replication;
	memcpy(l->cancel_key, sk->cancel_key, sizeof(l->cancel_key));
	remember_vars(sk, l);
}

static void write_record(PgSocket *sk, struct KeeperLocal *l)
{
	struct KeeperSocketRecord record;
	PgDatabase *db = is_server_socket(sk) ? NULL : sk->db;
	/* a peer's pool has neither users nor a database */
	PgDatabase *credentials_db = db ? db : sk->pool && !sk->pool->db->peer_id ? sk->pool->db : NULL;
	static struct KeeperPack pack;

	memset(&record, 0, sizeof(record));
	record.id = sk->id;
	record.connect_time = sk->connect_time;
	memcpy(record.cancel_key, sk->cancel_key, sizeof(record.cancel_key));
	record.catalog = l->catalog.blob;
	record.catalog_used = l->catalog.used;
	record.packet = l->packet;
	record.packet_flag = l->packet_flag;
	record.packet_used = l->packet ? 2 * sizeof(uint32_t) + l->packet_written : 0;
	record.scram = l->scram;
	record.cred_kind = keeper_credentials_kind(sk->login_user_credentials, credentials_db);
	record.auth_type = sk->client_auth_type;
	record.replication = sk->replication;
	record.n_vars = get_num_var_cached();

	pack.len = 0;
	keeper_pack(&pack, &record, sizeof(record));
	keeper_pack_string(&pack, sk->login_user_credentials ? sk->login_user_credentials->name : NULL);
	keeper_pack_string(&pack, credentials_db && !credentials_db->fake ? credentials_db->name : NULL);
	keeper_pack_string(&pack, db && !db->fake ? db->name : NULL);
	keeper_pack_string(&pack, sk->startup_options);
	keeper_pack_vars(&pack, sk->vars.var_list);
	keeper_replace_record(l, keeper_pack_blob(&pack, KEEPER_BLOB_RECORD));

	l->stale = false;
	keeper_remember_record(sk, l);
}

/* who it is was decided at the login, and nothing of that changes any more */
static bool is_logged_in(const PgSocket *sk)
{
	if (is_server_socket(sk))
		return sk->state != SV_ACTIVE_CANCEL;
	return sk->state == CL_ACTIVE || (sk->state == CL_WAITING && !sk->wait_for_welcome);
}

bool keeper_update_record(PgSocket *sk, struct KeeperLocal *l)
{
	if (record_changed(sk, l))
		write_record(sk, l);
	l->vars_changes = keeper_vars_changes;
	return is_logged_in(sk) && l->record;
}

void keeper_forget(struct KeeperLocal *l)
{
	const uint32_t blobs[] = {
		l->outbox, l->extra, l->requests, l->record, l->doom, l->scram, l->packet, l->catalog.blob
	};
	unsigned i;

	for (i = 0; i < ARRAY_NELEM(blobs); i++)
		keeper_store_free_blob(&keeper_store, blobs[i]);
	if (l->vars) {
		for (i = 0; i < (unsigned)get_num_var_cached(); i++) {
			if (l->vars[i])
				strpool_decref(l->vars[i]);
		}
		free(l->vars);
	}
	memset(l, 0, sizeof(*l));
}
