"""The project half: standard library only, synchronous, runs in an own-GIL interpreter."""
