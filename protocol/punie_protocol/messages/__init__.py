"""Every message between processes, one module per receiver."""
