"""The patched PgBouncer: how it is built, started and watched."""
