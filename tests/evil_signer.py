"""What a bundle could be made into by whoever has its key."""

import json
from collections.abc import Callable
from pathlib import Path

import zstandard
from bundle_world import World

from modelvault.artifact import Digest
from modelvault.bundle.format import canonical_json


def rewritten(bundle: Path, world: World, number: int, change: Callable[[int, bytes], bytes]) -> None:
    """Play the evil signer: rewrite every frame of a volume through ``change(position, content)`` and sign the new table."""
    name = f"volume-{number:04d}"
    document = json.loads((bundle / f"{name}.json").read_bytes())
    volume = (bundle / f"{name}.tar.zst").read_bytes()
    stored = b""
    for position, row in enumerate(document["frames"]):
        content = zstandard.ZstdDecompressor().decompress(volume[row[0] : row[0] + row[1]])
        content = change(position, content)
        packed = zstandard.ZstdCompressor().compress(content)
        row[:] = [
            len(stored),
            len(packed),
            Digest.of_bytes(packed).hex,
            row[3],
            Digest.of_bytes(content).hex,
        ]
        stored += packed
    document["size"] = len(stored)
    table = canonical_json(document)
    (bundle / f"{name}.tar.zst").write_bytes(stored)
    (bundle / f"{name}.json").write_bytes(table)
    (bundle / f"{name}.json.sig").write_bytes(world.signer.sign(table))
