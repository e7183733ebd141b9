"""Drives made of one: volumes moved or copied from a bundle into directories that carry the same index."""

import shutil
from collections.abc import Collection
from pathlib import Path

from modelvault.bundle.index import INDEX_FILE, SUMS_FILE, table_name, volume_name


def volume_files(number: int) -> tuple[str, ...]:
    """The files of a volume: itself, its frame table and that one's signature."""
    return volume_name(number), table_name(number), f"{table_name(number)}.sig"


def carry(bundle: Path, drive: Path, numbers: Collection[int]) -> Path:
    """Copy some volumes of a bundle onto a drive of their own, with all that every drive carries."""
    directory = drive / bundle.name
    directory.mkdir(parents=True, exist_ok=True)
    every = [INDEX_FILE, f"{INDEX_FILE}.sig", SUMS_FILE, *(path.name for path in bundle.glob("*.pub"))]
    for name in (*every, *(name for number in numbers for name in volume_files(number))):
        shutil.copy2(bundle / name, directory / name)
    return directory


def lose(bundle: Path, number: int) -> None:
    """Take a volume away."""
    for name in volume_files(number):
        (bundle / name).unlink()
