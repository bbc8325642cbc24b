"""Clients of the daemon: the connection, starting it, one turn."""
