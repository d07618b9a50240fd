"""The version of hefl."""

__version__ = "0.1.0"
