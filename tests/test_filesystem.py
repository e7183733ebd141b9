"""Full disks are told with what is missing."""

import os
from pathlib import Path

import pytest
from machines import small_disk

from modelvault import filesystem, fsio
from modelvault.errors import NoSpace


@pytest.mark.root
def test_no_space_says_how_much(tmp_path: Path, as_root: None) -> None:
    """Breaks if a full file system is not recognised or not measured."""
    with small_disk(tmp_path / "image", tmp_path / "disk", 8 << 20) as disk:
        with pytest.raises(NoSpace) as caught:
            filesystem.require_space(disk, 1 << 30)
        assert caught.value.data["missing"] > 1 << 29
        source = tmp_path / "large"
        source.write_bytes(bytes(9 << 20))
        with pytest.raises(NoSpace):
            fsio.copy_bytes(source, disk / "copy")
        assert not (disk / "copy").exists()


def test_preallocate_takes_the_room(tmp_path: Path) -> None:
    """Breaks if a full disk were met in the tenth hour of a pull instead of the first second."""
    with (tmp_path / "file").open("wb") as file:
        filesystem.preallocate(file.fileno(), 1 << 20)
        assert os.fstat(file.fileno()).st_blocks * 512 >= 1 << 20
