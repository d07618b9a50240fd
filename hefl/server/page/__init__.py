"""The server's own page: what an operator may see of a run, and nothing that a client has not chosen to tell."""
