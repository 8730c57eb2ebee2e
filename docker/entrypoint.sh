#!/bin/sh
# Starts pgbouncer, or pgkeeper beside it, with the configuration that the container was given:
# a mounted /etc/pgbouncer/pgbouncer.ini as it is, or else one made of environment variables.
# docs/containers.md lists them. What makes no sense ends with one line and status 64.
#
# What is made lies in a folder of its own (0700), never in /etc, so that the root filesystem may be
# read-only. Neither values of secrets nor the userlist are ever printed.
set -eu
umask 077

etc=${PGBOUNCER_ETC:-/etc/pgbouncer} run=${PGBOUNCER_RUN:-/run/pgbouncer}
readonly etc run

# The settings of [pgbouncer] that variables may set: POOL_MODE, or PGBOUNCER_POOL_MODE. Not those that
# the container decides (user, pidfile, conffile, syslog, job_name, service_name).
readonly settings='
admin_users application_name_add_host auth_dbname auth_file auth_hba_file auth_ident_file auth_query
auth_type auth_user autodb_idle_timeout cancel_wait_timeout client_idle_timeout client_login_timeout
client_tls_ca_file client_tls_cert_file client_tls_ciphers client_tls_dheparams client_tls_ecdhcurve
client_tls_key_file client_tls_protocols client_tls_sslmode default_pool_size disable_pqexec
dns_max_ttl dns_nxdomain_ttl dns_zone_check_period idle_transaction_timeout
ignore_startup_parameters listen_addr listen_backlog listen_port log_connections log_disconnections
log_pooler_errors log_stats logfile max_client_conn max_db_client_connections max_db_connections
max_packet_size max_prepared_statements max_user_client_connections max_user_connections
min_pool_size peer_id pkt_buf pool_mode query_timeout query_wait_timeout reserve_pool_size
reserve_pool_timeout resolv_conf sbuf_loopcnt server_check_delay server_check_query
server_connect_timeout server_fast_close server_idle_timeout server_lifetime server_login_retry
server_reset_query server_reset_query_always server_round_robin server_tls_ca_file
server_tls_cert_file server_tls_ciphers server_tls_key_file server_tls_protocols
server_tls_sslmode so_reuseport stats_period stats_users suspend_timeout tcp_defer_accept
tcp_keepalive tcp_keepcnt tcp_keepidle tcp_keepintvl tcp_socket_buffer tcp_user_timeout
track_extra_parameters unix_socket_dir unix_socket_group unix_socket_mode verbose'

die() {
	printf 'entrypoint: %s\n' "$*" >&2
	exit 64
}

# Variables. Each function leaves its answer in $value: a subshell would swallow errors.

# A control character would end the line of the ini, and begin another setting.
check_line() {
	case $2 in
		*[[:cntrl:]]*) die "$1 contains a control character" ;;
	esac
}

# $1, or the content of the file that $1_FILE names.
lookup() {
	eval "value=\${$1-} file=\${$1_FILE-}"
	if [ -n "$file" ]; then
		[ -z "$value" ] || die "$1 and $1_FILE are both set"
		[ -r "$file" ] && [ ! -d "$file" ] || die "$1_FILE: cannot read $file"
		value=$(cat "$file")
	fi
	case $1:$value in
		# what Kubernetes sets for a Service of that name, and is not meant for us
		PGBOUNCER_PORT:tcp://* | POSTGRESQL_PORT:tcp://*) value= ;;
		PGBOUNCER_USERLIST:*) ;; # the one that may have many lines
		*) check_line "$1" "$value" ;;
	esac
}

# The first of several names for the same thing; two that disagree are refused.
lookup_any() {
	chosen=
	for name in "$@"; do
		lookup "$name"
		if [ -n "$value" ]; then
			[ -z "$chosen" ] || [ "$value" = "$chosen_value" ] || die "$chosen and $name disagree"
			chosen=$name chosen_value=$value
		fi
	done
	value=${chosen:+$chosen_value}
}

yes() {
	case $1 in
		1 | [Yy] | [Yy][Ee][Ss] | [Tt][Rr][Uu][Ee] | [Oo][Nn]) return 0 ;;
		'' | 0 | [Nn] | [Nn][Oo] | [Ff][Aa][Ll][Ss][Ee] | [Oo][Ff][Ff]) return 1 ;;
		*) die "$2 must be yes or no" ;;
	esac
}

check_port() {
	case $2 in
		'' | *[!0-9]* | ??????*) die "$1 must be a port number" ;;
	esac
	[ "$2" -ge 1 ] && [ "$2" -le 65535 ] || die "$1 must be a port number"
}

# Values and how files quote them.

# $1 with each $2 replaced by $3, in $value.
replace() {
	rest=$1 value=
	while :; do
		case $rest in
			*"$2"*) value=$value${rest%%"$2"*}$3 rest=${rest#*"$2"} ;;
			*) break ;;
		esac
	done
	value=$value$rest
}

# As a value of a connection string: pgbouncer doubles its single quotes.
quote() {
	replace "$1" "'" "''"
	value="'$value'"
}

# %41 becomes A, in a part of a URL; $2 names the part.
decode() {
	rest=$1 value=
	while :; do
		case $rest in
			*%*) ;;
			*) break ;;
		esac
		value=$value${rest%%%*} rest=${rest#*%}
		hex=${rest%"${rest#??}"}
		case $hex in
			00 | [!0-9A-Fa-f]? | ?[!0-9A-Fa-f] | ? | '') die "$2 has a broken percent sign" ;;
		esac
		rest=${rest#??}
		# the dot keeps a newline, which would be cut off
		octal=$(printf '%o' "0x$hex")
		byte=$(printf "\\$octal.")
		value=$value${byte%.}
	done
	value=$value$rest
	check_line "$2" "$value"
}

# Takes postgres://user:password@host:port/database?sslmode=... apart, into $url_*.
parse_url() {
	case $1 in
		postgres://* | postgresql://*) ;;
		*) die "$2 must begin with postgres:// or postgresql://" ;;
	esac
	url=${1#*://} url_user= url_password= url_host= url_port= url_name= url_sslmode=
	case $url in
		*\?*)
			query=${url#*\?} url=${url%%\?*}
			case $query in
				'') ;;
				*\&*) die "$2 has options other than sslmode" ;;
				sslmode=*) url_sslmode=${query#sslmode=} ;;
				*) die "$2 has options other than sslmode" ;;
			esac
			;;
	esac
	case $url in
		*/*) decode "${url#*/}" "$2"; url_name=$value url=${url%%/*} ;;
	esac
	case $url in
		*@*)
			credentials=${url%@*} url=${url##*@}
			case $credentials in
				*:*) decode "${credentials#*:}" "$2"; url_password=$value ;;
			esac
			decode "${credentials%%:*}" "$2"
			url_user=$value
			;;
	esac
	case $url in
		\[*\]) url_host=${url#\[} url_host=${url_host%\]} ;;
		\[*\]:*) url_host=${url#\[} url_host=${url_host%%\]*} url_port=${url##*:} ;;
		*:*:*) die "$2: an IPv6 address stands in brackets" ;;
		*:*) url_host=${url%:*} url_port=${url##*:} ;;
		*) url_host=$url ;;
	esac
	decode "$url_host" "$2"
	url_host=$value
	[ -n "$url_host" ] || die "$2 names no host"
	if [ -n "$url_port" ]; then check_port "the port of $2" "$url_port"; fi
}

# What is collected: lines of [databases] and of the userlist.

databases= users=
readonly newline='
'

add_database() { databases=$databases$1$newline; }

add_user() {
	replace "$1" '"' '""'
	user=$value
	replace "$2" '"' '""'
	case $newline$users in
		*"$newline\"$user\" "*) return 0 ;; # the first one counts, as with pgbouncer's own
	esac
	users="$users\"$user\" \"$value\"$newline"
}

# host, port, name at the server or nothing, name for the clients, further parts
add_server() {
	quote "$1"
	line="host=$value port=$2"
	if [ -n "$3" ]; then
		quote "$3"
		line="$line dbname=$value"
	fi
	case $4 in
		*[!A-Za-z0-9_.*-]*) die "pgbouncer.ini cannot name this database: $4" ;;
	esac
	add_database "$4 = $line$5"
}

# The lists ADMIN_USERS and ADMIN_PASSWORDS, entry by entry; $1 is ADMIN or STATS, $2 the users.
add_listed_users() {
	lookup_any "$1_PASSWORDS" "$1_PASSWORD"
	[ -n "$value" ] || return 0
	[ -n "$2" ] || die "$1_PASSWORDS is set, but not $1_USERS"
	names=$2, passwords=$value,
	while [ -n "$names" ] && [ -n "$passwords" ]; do
		add_user "${names%%,*}" "${passwords%%,*}"
		names=${names#*,} passwords=${passwords#*,}
	done
	[ -z "$names$passwords" ] || die "$1_USERS and $1_PASSWORDS differ in length"
}

# Reads DATABASE_URL or DATABASE_URLS, DB_*, as images of this kind have them.
read_db_family() {
	lookup_any DATABASE_URLS DATABASE_URL
	if [ -n "$value" ]; then
		urls=$value, variable=$chosen sslmode=
		while [ -n "$urls" ]; do
			next=${urls%%,*}
			# one URL may have commas, of many each ends at one
			if [ "$variable" = DATABASE_URL ]; then next=${urls%,}; fi
			urls=${urls#"$next",}
			parse_url "$next" "$variable"
			auth_user=
			if [ -n "$url_user" ]; then
				quote "$url_user"
				auth_user=" auth_user=$value"
				if [ -n "$url_password" ]; then add_user "$url_user" "$url_password"; fi
			fi
			add_server "$url_host" "${url_port:-5432}" '' "${url_name:-*}" "$auth_user$parameters"
			sslmode=${url_sslmode:-$sslmode}
		done
		return 0
	fi
	lookup DB_HOST
	host=$value
	[ -n "$host" ] || die "no configuration: mount $etc/pgbouncer.ini," \
		"or set DATABASE_URL, DB_HOST or POSTGRESQL_HOST"
	lookup DB_PORT
	port=${value:-5432}
	check_port DB_PORT "$port"
	lookup DB_NAME
	name=${value:-*}
	lookup DB_USER
	user_name=${value:-postgres}
	quote "$user_name"
	add_server "$host" "$port" '' "$name" " auth_user=$value$parameters"
	[ -n "$secrets" ] || return 0
	lookup DB_PASSWORD
	if [ -n "$value" ]; then add_user "$user_name" "$value"; fi
}

# Reads POSTGRESQL_* and PGBOUNCER_*, likewise.
read_postgresql_family() {
	lookup POSTGRESQL_HOST
	host=${value:-postgresql}
	lookup POSTGRESQL_PORT
	port=${value:-5432}
	check_port POSTGRESQL_PORT "$port"
	lookup PGBOUNCER_DATABASE
	name=${value:-postgres}
	lookup POSTGRESQL_DATABASE
	remote=${value:-$name}
	if [ "$name" = '*' ]; then remote=; fi
	lookup POSTGRESQL_USERNAME
	user_name=${value:-postgres}
	more=
	lookup PGBOUNCER_SET_DATABASE_USER
	if yes "$value" PGBOUNCER_SET_DATABASE_USER; then
		quote "$user_name"
		more="$more user=$value"
	fi
	lookup PGBOUNCER_SET_DATABASE_PASSWORD
	if yes "$value" PGBOUNCER_SET_DATABASE_PASSWORD && [ -n "$secrets" ]; then
		lookup POSTGRESQL_PASSWORD
		quote "$value"
		more="$more password=$value"
	fi
	lookup PGBOUNCER_CONNECT_QUERY
	if [ -n "$value" ]; then
		quote "$value"
		more="$more connect_query=$value"
	fi
	add_server "$host" "$port" "$remote" "$name" "$more"
	number=0
	while :; do
		lookup "PGBOUNCER_DSN_$number"
		[ -n "$value" ] || break
		case $value in
			?*=?*) add_database "$value" ;;
			*) die "PGBOUNCER_DSN_$number must be NAME=host=... port=..." ;;
		esac
		number=$((number + 1))
	done
	[ -n "$secrets" ] || return 0
	lookup POSTGRESQL_PASSWORD
	if [ -n "$value" ]; then add_user "$user_name" "$value"; fi
	lookup PGBOUNCER_USERLIST
	if [ -n "$value" ]; then users=$users$value$newline; fi
}

# The names under which setting $1 may be set, in $names; $2 is its name in capitals.
names_of() {
	names="$2 PGBOUNCER_$2"
	case $1 in
		listen_port) names="$names PGBOUNCER_PORT" ;;
		listen_addr) names="$names PGBOUNCER_LISTEN_ADDRESS" ;;
		unix_socket_dir) names="$names PGBOUNCER_SOCKET_DIR" ;;
		unix_socket_mode) names="$names PGBOUNCER_SOCKET_MODE" ;;
		unix_socket_group) names="$names PGBOUNCER_SOCKET_GROUP" ;;
		logfile) names="$names PGBOUNCER_LOG_FILE" ;;
	esac
}

# What is true where no variable says otherwise: as in the images whose variables these are.
default_of() {
	case $1:$family in
		listen_addr:*) value=0.0.0.0 ;;
		listen_port:db) value=5432 ;;
		listen_port:*) value=6432 ;;
		auth_type:db) value=md5 ;;
		auth_type:*) value=scram-sha-256 ;;
		admin_users:db) value=postgres ;;
		admin_users:*) value=$user_name ;;
		auth_file:*) value=$auth_file ;;
		ignore_startup_parameters:*) value=extra_float_digits ;;
		server_tls_sslmode:db) value=$sslmode ;;
		server_tls_sslmode:*) value=disable ;;
		unix_socket_dir:*) value= empty=yes ;; # clients come by TCP
		*) value= ;;
	esac
}

check_setting() {
	case $1:$2 in
		listen_port:*) check_port "$3" "$2" ;;
		pool_mode:session | pool_mode:transaction | pool_mode:statement) ;;
		pool_mode:*) die "$3 must be session, transaction or statement" ;;
		auth_type:any | auth_type:trust | auth_type:plain | auth_type:md5 | auth_type:cert) ;;
		auth_type:hba | auth_type:pam | auth_type:scram-sha-256) ;;
		auth_type:*) die "$3 must be any, trust, plain, md5, scram-sha-256, cert, hba or pam" ;;
		auth_file:* | auth_hba_file:* | auth_ident_file:* | *_tls_*_file:*)
			[ -z "$secrets" ] || [ -r "$2" ] || die "$3: cannot read $2"
			;;
	esac
}

add_settings() {
	# one process for all of them: the start of this container is a pause for its sessions
	capitals=$(printf %s "$settings" | tr '[:lower:]' '[:upper:]')
	for setting in $settings; do
		# shellcheck disable=SC2086 # words without blanks
		set -- $capitals
		names_of "$setting" "$1"
		shift
		capitals=$*
		# shellcheck disable=SC2086 # as above
		lookup_any $names
		empty=
		if [ -n "$chosen" ]; then
			check_setting "$setting" "$value" "$chosen"
		else
			default_of "$setting"
		fi
		if [ -n "$value$empty" ]; then ini="$ini$setting = $value$newline"; fi
		case $setting in
			admin_users) admin_users=$value ;;
			stats_users) stats_users=$value ;;
		esac
	done
}

write() {
	printf %s "$2" >"$run/$1.new" && mv "$run/$1.new" "$run/$1" || die "cannot write to $run"
}

# Makes the configuration of variables. Without $secrets only what pgkeeper reads of it.
make_configuration() {
	family=db user_name=postgres sslmode= parameters=
	for variable in POSTGRESQL_HOST POSTGRESQL_USERNAME POSTGRESQL_PASSWORD POSTGRESQL_DATABASE \
		PGBOUNCER_DATABASE PGBOUNCER_DSN_0; do
		eval "value=\${$variable-}\${${variable}_FILE-}"
		if [ -n "$value" ]; then family=postgresql; fi
	done
	for variable in DATABASE_URL DATABASE_URLS DB_HOST; do
		eval "value=\${$variable-}\${${variable}_FILE-}"
		if [ -n "$value" ]; then family=db; fi
	done
	lookup CLIENT_ENCODING
	if [ -n "$value" ]; then quote "$value"; parameters=" client_encoding=$value"; fi
	lookup TIMEZONE
	if [ -n "$value" ]; then quote "$value"; parameters="$parameters timezone=$value"; fi
	if [ "$family" = db ]; then read_db_family; else read_postgresql_family; fi

	auth_file=$run/userlist.txt made=yes
	if [ -e "$etc/userlist.txt" ]; then auth_file=$etc/userlist.txt made=; fi
	ini= admin_users= stats_users=
	add_settings
	[ -d "$run" ] || mkdir -p "$run" 2>/dev/null || :
	[ -w "$run" ] ||
		die "cannot write to $run: mount a tmpfs there that uid $(id -u) may write to"
	if [ -n "$secrets" ]; then
		add_listed_users ADMIN "$admin_users"
		add_listed_users STATS "$stats_users"
		if [ -n "$made" ]; then
			write userlist.txt "$users"
		elif [ ! -r "$auth_file" ]; then
			die "uid $(id -u) cannot read $auth_file"
		fi
	fi
	write pgbouncer.ini "[databases]$newline$databases${newline}[pgbouncer]$newline$ini"
	configuration=$run/pgbouncer.ini
}

# Where the configuration is, in $configuration.
configure() {
	if [ -e "$etc/pgbouncer.ini" ]; then
		[ -r "$etc/pgbouncer.ini" ] || die "uid $(id -u) cannot read $etc/pgbouncer.ini"
		configuration=$etc/pgbouncer.ini
	else
		make_configuration
	fi
}

# Nothing of it is needed any more: children and /proc need not show it either.
forget_secrets() {
	unset DATABASE_URL DATABASE_URLS DB_PASSWORD POSTGRESQL_PASSWORD PGBOUNCER_USERLIST \
		ADMIN_PASSWORD ADMIN_PASSWORDS STATS_PASSWORD STATS_PASSWORDS
}

secrets=yes
case ${1-} in
	'') set -- pgbouncer "$etc/pgbouncer.ini" ;;
	-*) set -- pgbouncer "$@" "$etc/pgbouncer.ini" ;; # options alone are pgbouncer's
	pgbouncer | */pgbouncer) if [ $# = 1 ]; then set -- "$1" "$etc/pgbouncer.ini"; fi ;;
	pgkeeper | */pgkeeper)
		secrets=
		case "${2-} $*" in
			"run "*--ini*) ;;
			"run "*)
				if [ -z "${PGKEEPER_INI-}" ]; then
					configure
					export PGKEEPER_INI="$configuration"
				fi
				;;
		esac
		;;
esac
# The ini's place stands for the one that is made where none is mounted.
for argument; do
	shift
	if [ "$argument" = "$etc/pgbouncer.ini" ]; then
		configure
		argument=$configuration
	fi
	set -- "$@" "$argument"
done
forget_secrets
exec "$@"
