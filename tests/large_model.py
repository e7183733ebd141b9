"""The repository of the fixture ``large``."""

LARGE = "large-Q8_0.gguf"
SIZE = 150_000_000
"""About how many bytes it has."""
