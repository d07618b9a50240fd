"""What a file is, and whether it fits the others."""
