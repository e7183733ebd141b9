"""One verb a file: each operation wires the stages together and returns a frozen result."""
