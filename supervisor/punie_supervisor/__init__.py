"""The daemon: project registry, router, journal, child supervision, command line."""
