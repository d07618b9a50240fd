"""The key authority, and the files and certificates that it issues."""
