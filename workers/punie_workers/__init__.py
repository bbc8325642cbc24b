"""The worker process: coding agents, their tools, and one interpreter per project."""
