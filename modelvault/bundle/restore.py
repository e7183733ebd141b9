"""What travels along for a machine without modelvault: ``restore.sh``, and ``restore.list`` for it to work from. Pure.

The list says what the index says, in lines that a shell can take apart without evaluating anything. Specified in
``docs/formats/bundle-v1.md``.
"""

from collections.abc import Iterator
from importlib import resources
from urllib.parse import quote

from modelvault.artifact import Digest
from modelvault.bundle.format import encode
from modelvault.bundle.index import Index, Member

SCRIPT_FILE = "restore.sh"
LIST_FILE = "restore.list"
FORMAT = "modelvault-restore/1"


def restore_script() -> bytes:
    """Give ``restore.sh``: the same bytes in every bundle that this version writes."""
    return resources.files(__package__).joinpath(SCRIPT_FILE).read_bytes()


def restore_list(index: Index) -> bytes:
    """Write ``restore.list``. Equal indexes give equal bytes."""
    return "".join(f"{line}\n" for line in _lines(index)).encode("ascii")


def _lines(index: Index) -> Iterator[str]:
    digest = Digest.of_bytes(encode(index))
    yield FORMAT
    yield f"bundle {index.label} {index.sequence} {digest.hex} {len(index.volumes)}"
    if index.patches is not None:
        yield f"patches {index.patches.hex}"
    for number, entry in enumerate(index.models, 1):
        yield f"model {number} {quote(str(entry.name), safe='/:')}"
        files = entry.stored.model.files
        for blob in entry.blobs[:2]:
            yield f"document {number} {blob.digest.hex} {blob.size}"
        for file in files:
            yield f"file {number} {file.digest.hex} {file.size} {quote(file.path, safe='/')}"
    for blob in index.base:
        yield f"base {blob.digest.hex} {blob.size}"
    for number, members in enumerate(index.volumes, 1):
        for member in members:
            yield _member(number, member, index)
    yield "end"


def _member(number: int, member: Member, index: Index) -> str:
    if not member.is_blob:
        return f"layout {number} {member.digest.hex} {member.size} {member.path}"
    if member.size == index.sizes[member.digest]:
        return f"whole {number} {member.digest.hex} {member.size}"
    return f"slice {number} {member.digest.hex} {member.size} {member.offset}"
