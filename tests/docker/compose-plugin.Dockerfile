# Debian's plugin for `docker compose`, which older releases of Debian do not have.
ARG DEBIAN=debian:trixie-slim
FROM ${DEBIAN}
WORKDIR /tmp
RUN apt-get update && apt-get download docker-compose && dpkg-deb -x docker-compose*.deb . \
 && cp usr/libexec/docker/cli-plugins/docker-compose /docker-compose && rm -rf /tmp/* /var/lib/apt/lists/*
CMD ["/docker-compose"]
