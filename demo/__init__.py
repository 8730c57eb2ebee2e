"""`python -m demo`: ten sessions, one `kill -9`, with pgkeeper and without."""
