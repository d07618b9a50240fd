"""The server's page: shows an operator the run."""
