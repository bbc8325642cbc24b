"""What `scripts/bootstrap` does, step by step. Standard library only, Python 3.8 or newer."""
