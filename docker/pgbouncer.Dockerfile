# PgBouncer with pgkeeper's patches: a drop-in for the images that are made of environment variables.
# Built from the repository's root:
#
#   docker build -f docker/pgbouncer.Dockerfile -t pgkeeper-pgbouncer .
#
# The source is what patches/BASE pins by SHA-256, from the distribution or upstream; a tarball that
# lies in docker/ is used instead. Debian's packages are those of its stable release; to have the
# same ones another day, name the base image by its digest: --build-arg DEBIAN=debian@sha256:...
ARG DEBIAN=debian:trixie-slim

FROM ${DEBIAN} AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends \
      ca-certificates gcc libc-ares-dev libc6-dev libevent-dev libpam0g-dev libssl-dev make patch \
      pkg-config python3 python3-click \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY docker/pgbouncer.Dockerfile docker/pgbouncer*.tar.gz docker/
COPY patches patches
# no more than `pgkeeper build` needs, so that nothing else makes it run again
COPY pgkeeper/__init__.py pgkeeper/errors.py pgkeeper/version.py pgkeeper/
COPY pgkeeper/cli/__init__.py pgkeeper/cli/build.py pgkeeper/cli/
COPY pgkeeper/bouncer pgkeeper/bouncer
# --vanilla is PgBouncer without pgkeeper's patches, to compare with
ARG VARIANT=
RUN export PGKEEPER_CACHE=/build PGKEEPER_PATCHES=/src/patches PGKEEPER_SOURCE \
 && for tarball in docker/*.tar.gz; do if [ -e "$tarball" ]; then PGKEEPER_SOURCE=$tarball; fi; done \
 && python3 -c 'from pgkeeper.cli import main; main()' build ${VARIANT} >/build.path \
 && strip -o /pgbouncer "$(tail -n 1 /build.path)"

FROM ${DEBIAN}
RUN apt-get update \
 && apt-get install -y --no-install-recommends \
      ca-certificates libc-ares2 libevent-2.1-7t64 libpam0g libssl3t64 \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 6432 pgbouncer \
 && useradd --uid 6432 --gid 6432 --no-create-home --home-dir / --shell /usr/sbin/nologin pgbouncer \
 && install -d -o 6432 -g 6432 -m 0755 /etc/pgbouncer \
 && install -d -o 6432 -g 6432 -m 0700 /run/pgbouncer /run/pgkeeper
COPY --from=build /pgbouncer /usr/bin/pgbouncer
COPY docker/entrypoint.sh docker/healthcheck.sh /usr/local/bin/
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="pgbouncer" \
      org.opencontainers.image.description="PgBouncer whose sessions outlive it, next to pgkeeper" \
      org.opencontainers.image.licenses="ISC" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER 6432:6432
EXPOSE 5432 6432
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["healthcheck.sh"]
ENTRYPOINT ["entrypoint.sh"]
CMD ["pgbouncer"]
