"""pgkeeper: PostgreSQL sessions that outlive the PgBouncer that carries them."""
