"""The `punie` command."""
