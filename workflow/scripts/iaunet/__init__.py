"""The library that all steps share."""

__version__ = "0.1.0"
