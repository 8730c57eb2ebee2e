# pgkeeper: the process that holds the sessions, as a sidecar of pgbouncer. Built from the repository's root:
#
#   docker build -f docker/pgkeeper.Dockerfile -t pgkeeper .
#
# Python and the libraries are Debian's, of its stable release; see pgbouncer.Dockerfile about digests.
ARG DEBIAN=debian:trixie-slim

FROM ${DEBIAN} AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-pip python3-setuptools python3-wheel \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY docs docs
COPY patches patches
COPY protocol protocol
COPY pgkeeper pgkeeper
RUN python3 -m pip install --root=/install --break-system-packages --root-user-action=ignore \
      --no-index --no-deps --no-build-isolation .

FROM ${DEBIAN}
RUN apt-get update \
 && apt-get install -y --no-install-recommends \
      python3 python3-click python3-construct python3-prometheus-client python3-structlog \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 6432 pgkeeper \
 && useradd --uid 6432 --gid 6432 --no-create-home --home-dir / --shell /usr/sbin/nologin pgkeeper \
 && install -d -o 6432 -g 6432 -m 0755 /etc/pgbouncer \
 && install -d -o 6432 -g 6432 -m 0700 /run/pgbouncer /run/pgkeeper
COPY --from=build /install/ /
COPY docker/entrypoint.sh /usr/local/bin/
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="pgkeeper" \
      org.opencontainers.image.description="Holds PostgreSQL sessions while PgBouncer is replaced" \
      org.opencontainers.image.licenses="ISC" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV PGKEEPER_SOCKET=/run/pgkeeper/keeper.sock PYTHONUNBUFFERED=1
USER 6432:6432
EXPOSE 5432 6432
STOPSIGNAL SIGTERM
# 1 says that pgkeeper answers, and that no pgbouncer serves at the moment
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s \
  CMD pgkeeper status >/dev/null || [ $? -eq 1 ]
ENTRYPOINT ["entrypoint.sh"]
CMD ["pgkeeper", "run", "--no-supervise"]
