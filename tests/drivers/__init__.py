"""Drivers without libpq, each in a program of its own, while pgbouncer is killed."""
