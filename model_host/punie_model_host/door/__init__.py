"""The HTTP door: OpenAI's API on the same engine, for other tools of this user on this machine."""
