"""The admin socket: how the command line talks to the hanger."""
