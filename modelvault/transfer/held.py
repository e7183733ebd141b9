"""What earlier runs brought of a file, without touching anything: for plans."""

from pathlib import Path

from modelvault.transfer.partial import Partial
from modelvault.transfer.values import Wanted


def held_bytes(partial: Path, wanted: Wanted) -> int:
    """Tell how many bytes of a file lie in ``partial/`` as its journal claims; a transfer still compares them."""
    return Partial(partial / wanted.key, wanted).reused
