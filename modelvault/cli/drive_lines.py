"""How the drives of a bundle are shown."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from modelvault.cli.console import human_size
from modelvault.cli.tables import table

if TYPE_CHECKING:
    from modelvault.results.bundles import BundleDrive


def drive_table(drives: "Sequence[BundleDrive]") -> Iterator[str]:
    """Show which drive takes, or has, which volumes."""
    from modelvault.bundle.index import name_volumes

    rows = [
        (
            str(drive.path),
            drive.file_system or "-",
            "-" if drive.free is None else human_size(drive.free),
            name_volumes(drive.volumes).split(" ", 1)[1] if drive.volumes else "none",
            human_size(drive.size),
            _state(drive),
        )
        for drive in drives
    ]
    yield from table(("drive", "type", "free", "volumes", "size", "state"), rows, right=(2, 4))


def _state(drive: "BundleDrive") -> str:
    if drive.problem:
        return "failed"
    if not drive.finished:
        return "-" if drive.here else "not here"
    return "read back" if drive.read_back else "written"
