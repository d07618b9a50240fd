"""One client: what it does in a round, and HTTP around it."""
