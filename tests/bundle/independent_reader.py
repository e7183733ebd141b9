"""A second reader of format v1, written from docs/formats/bundle-v1.md. It shares no code with modelvault, on purpose.

Usage: independent_reader.py BUNDLE KEY.pub OUT. Verifies the signatures and restores every blob into OUT. Standard library, zstd
and openssl only. Raises ``ValueError`` for anything that is not as the specification says.
"""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

MIB = 1 << 20


def need(true: object, what: str) -> None:
    """Insist."""
    if not true:
        raise ValueError(what)


def signed(bundle: Path, name: str, key: Path) -> Any:
    """Check the signature of a document with openssl, then parse it."""
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(key), "-rawin", "-in", str(bundle / name)]
    checked = subprocess.run([*command, "-sigfile", str(bundle / f"{name}.sig")], capture_output=True, check=False)
    need(checked.returncode == 0, f"{name}: bad signature")
    data = (bundle / name).read_bytes()
    document = json.loads(data)
    canonical = json.dumps(document, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()
    need(canonical == data, f"{name}: not canonical")
    return document


def header(path: str, size: int) -> bytes:
    """The tar header of a member."""
    block = bytearray(512)
    for offset, value in (
        (0, path.encode("ascii")),
        (100, b"0000444"),
        (108, b"0000000"),
        (116, b"0000000"),
        (124, f"{size:011o}".encode()),
        (136, b"00000000000"),
        (148, b"        "),
        (156, b"0"),
        (257, b"ustar\x0000"),
        (329, b"0000000"),
        (337, b"0000000"),
    ):
        block[offset : offset + len(value)] = value
    block[148:155] = f"{sum(block):06o}\0".encode()
    return bytes(block)


def cut(members: list[dict[str, Any]]) -> list[int]:
    """The content lengths of a volume's frames."""
    frames, shared = [], 0
    for member in members:
        size, pad = member["size"], -member["size"] % 512
        for unit in [512, -size, pad] if size >= MIB else [512 + size + pad]:
            if unit < 0:
                frames += [shared] if shared else []
                frames += [16 * MIB] * (size // (16 * MIB)) + ([size % (16 * MIB)] if size % (16 * MIB) else [])
                shared = 0
            elif shared + unit > 16 * MIB:
                frames.append(shared)
                shared = unit
            else:
                shared += unit
    if shared + 1024 > 16 * MIB:
        frames.append(shared)
        shared = 0
    return [*frames, shared + 1024]


def volume(bundle: Path, number: int, index: str, members: list[dict[str, Any]], key: Path) -> bytes:
    """The tar of a volume, every frame verified. (In memory: this reader is for tests.)"""
    name = f"volume-{number:04d}"
    table = signed(bundle, f"{name}.json", key)
    need(table["format"] == "modelvault-frames/1", "format")
    need((table["index"], table["volume"]) == (index, number), f"{name}: of another bundle")
    need([row[3] for row in table["frames"]] == cut(members), f"{name}: other frames")
    data, offset, tar = (bundle / f"{name}.tar.zst").read_bytes(), 0, b""
    for start, stored, stored_sha256, length, sha256 in table["frames"]:
        frame = data[start : start + stored]
        need(start == offset and len(frame) == stored, f"{name}: gap")
        need(hashlib.sha256(frame).hexdigest() == stored_sha256, f"{name}: damaged")
        content = subprocess.run(["zstd", "-dc"], input=frame, capture_output=True, check=True).stdout
        need(len(content) == length and hashlib.sha256(content).hexdigest() == sha256, f"{name}: content")
        offset, tar = offset + stored, tar + content
    need(offset == table["size"] == len(data), f"{name}: size")
    return tar


def restore(bundle: Path, key: Path, out: Path) -> dict[str, int]:
    """Restore every blob; gives their sizes by digest."""
    document = signed(bundle, "bundle.json", key)
    need(document["format"] == "modelvault-bundle/1" and document["requires"] == [], "another format")
    index = "sha256:" + hashlib.sha256((bundle / "bundle.json").read_bytes()).hexdigest()
    sizes = {blob["digest"]: blob["size"] for blob in document["blobs"]}
    for number, part in enumerate(document["volumes"], 1):
        tar, position = volume(bundle, number, index, part["members"], key), 0
        for member in part["members"]:
            size, digest, offset = member["size"], member["digest"], member.get("offset", 0)
            need(tar[position : position + 512] == header(member["path"], size), f"{member['path']}: header")
            data = tar[position + 512 : position + 512 + size]
            position += 512 + size + -size % 512
            hexadecimal = digest.removeprefix("sha256:")
            need(re.fullmatch("[0-9a-f]{64}", hexadecimal), "digest")
            if member["path"] in {"oci-layout", "index.json"}:
                need(hashlib.sha256(data).hexdigest() == hexadecimal, member["path"])
                continue
            with (out / hexadecimal).open("ab") as file:
                need(file.tell() == offset, f"{member['path']}: out of order")
                file.write(data)
        need(tar[position:] == bytes(1024), "end")
    for digest, size in sizes.items():
        data = (out / digest.removeprefix("sha256:")).read_bytes()
        need(len(data) == size and "sha256:" + hashlib.sha256(data).hexdigest() == digest, digest)
    return sizes


if __name__ == "__main__":
    restore(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
