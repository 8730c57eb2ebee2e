#!/bin/bash
# Whether a pgbouncer answers on the port of this container's configuration: it is asked for TLS
# (SSLRequest) and says yes or no. Where several containers share one network, whoever serves answers.
set -u

ini=${PGBOUNCER_ETC:-/etc/pgbouncer}/pgbouncer.ini
if [[ ! -e $ini ]]; then ini=${PGBOUNCER_RUN:-/run/pgbouncer}/pgbouncer.ini; fi
# setting NAME DEFAULT: the last one counts, as with pgbouncer
setting() {
	local found
	found=$(sed -n "s/^[[:space:]]*$1[[:space:]]*=[[:space:]]*\([^,[:space:]]*\).*/\1/p" "$ini" | tail -n 1)
	printf %s "${found:-$2}"
}

port=$(setting listen_port 6432)
address=$(setting listen_addr '*')
if [[ $address == '*' || $address == 0.0.0.0 || $address == :: ]]; then address=127.0.0.1; fi
if ! exec 3<>"/dev/tcp/$address/$port"; then exit 1; fi
printf '\0\0\0\10\4\322\26\57' >&3
if ! read -r -t 4 -N 1 -u 3 answer || [[ $answer != [NS] ]]; then
	echo "nobody answers on $address, port $port"
	exit 1
fi
