"""The test kit: try an agent or an extension without weights. Public; see the how-to page."""
