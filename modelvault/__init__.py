"""modelvault carries language models across an air gap, verified at every step."""

__version__ = "0.1.0"
