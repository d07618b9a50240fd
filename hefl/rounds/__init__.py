"""What the server's side of a run decides. No I/O."""
