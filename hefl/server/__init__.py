"""The server: HTTP, disk and clock around what ``rounds`` decides."""
