"""Searching the catalog by words: a name, a language, a license, a format, or a memory size. Pure."""

import re
from collections.abc import Iterable, Sequence

from modelvault.catalog.entries import CatalogEntry
from modelvault.catalog.languages import language_code
from modelvault.catalog.schema import FORMATS
from modelvault.config import parse_size

_MEMORY = re.compile(r"[0-9]+(\.[0-9]+)?[kmgt]i?b?", re.IGNORECASE)  # 70b is no size, but a part of a name


def search(entries: Iterable[CatalogEntry], words: Sequence[str]) -> tuple[CatalogEntry, ...]:
    """Give the entries that every word fits. Raises ``UsageProblem`` for a size that is none."""
    return tuple(entry for entry in entries if all(fits(entry, word) for word in words))


def fits(entry: CatalogEntry, word: str) -> bool:
    """Tell whether one word fits: a memory size holds the weights; other words are formats, languages, or parts of name, title, license."""
    if _MEMORY.fullmatch(word):
        return entry.size <= parse_size(word)
    folded = word.casefold()
    if folded in FORMATS:
        return entry.format == folded
    code = language_code(word)
    if code is not None:
        return code in entry.languages
    return any(folded in text.casefold() for text in (entry.name.text, entry.title, entry.license, entry.repository))
