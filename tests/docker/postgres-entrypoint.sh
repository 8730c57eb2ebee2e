#!/bin/sh
# Makes a cluster on the first start, and runs it.
set -eu
data=/var/lib/postgresql/data
if [ ! -s "$data/PG_VERSION" ]; then
	umask 077
	printf '%s\n' "$POSTGRES_PASSWORD" >/tmp/password
	initdb --pgdata="$data" --username=postgres --pwfile=/tmp/password --auth=scram-sha-256 \
		--no-sync --locale=C.UTF-8 >/dev/null
	rm /tmp/password
	echo 'host all all all scram-sha-256' >>"$data/pg_hba.conf"
fi
exec postgres -D "$data" -c listen_addresses='*' -c max_connections=200 -c fsync=off \
	-c unix_socket_directories=/tmp
