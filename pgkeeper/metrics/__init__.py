"""What Prometheus scrapes: figures, their text, and the HTTP server that gives it."""
