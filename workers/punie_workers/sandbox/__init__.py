"""The OS sandbox that programs of tools run in: bubblewrap on Linux, sandbox-exec on macOS."""
