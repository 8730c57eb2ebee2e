"""`pgkeeper top`: sessions to watch, in a terminal."""
