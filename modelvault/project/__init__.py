"""A project's models: ``modelvault.toml`` says which are wanted, ``modelvault.lock`` what they are, to the byte."""
