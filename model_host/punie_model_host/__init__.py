"""The model host: the one process that owns the weights and generates tokens."""
