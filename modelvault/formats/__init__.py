"""How weight files are laid out: what ``inspect`` checks, and what ``engines`` have to read to serve them."""
