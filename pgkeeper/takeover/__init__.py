"""Replacing the hanger: the old one gives all it has to a new one, unseen by pgbouncer."""
