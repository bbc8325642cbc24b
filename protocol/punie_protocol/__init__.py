"""Messages between the processes of Punie: definitions, codec, errors, limits."""
