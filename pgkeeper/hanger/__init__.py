"""The host-level process that holds sockets and ledger and decides which pgbouncer is active."""
