"""Object storage: what is too big for the journal."""
