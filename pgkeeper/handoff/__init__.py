"""Planned replacement of a serving pgbouncer: what to do in which order, and doing it."""
