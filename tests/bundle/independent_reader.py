"""A second reader of format v1, written from docs/formats/bundle-v1.md. It shares no code with modelvault, on purpose.

Usage: independent_reader.py BUNDLE KEY.pub OUT [OTHER]. Restores every blob into OUT. OTHER is a directory of blobs for a thin bundle,
the bundle that it mends for a patch. Needs zstd and openssl. Raises ValueError: untrusted, too-new, refused, damaged.
"""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

KEYS = {"format", "requires", "label", "sequence", "volume_size", "models", "blobs", "volumes"}
LABEL = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9_-])?"
FEATURES = {"thin/0.2.0": "base", "patch/0.2.0": "patches"}
Part = bytes | tuple[str, int, int]  # of a frame: literal bytes, or digest, offset and length of a blob's


def need(true: object, problem: str) -> None:
    if not true:
        raise ValueError(problem)


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def signed(path: Path, key: Path, unsigned: str, malformed: str) -> tuple[Any, str]:
    """Check the signature of a document with openssl, then parse it."""
    need(path.is_file() and not path.is_symlink(), f"{unsigned}: {path.name}")
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-rawin", "-inkey", str(key), "-in", str(path)]
    ran = subprocess.run([*command, "-sigfile", f"{path}.sig"], capture_output=True, check=False)
    need(ran.returncode == 0, f"{unsigned}: {path.name}.sig")
    try:
        document, data = json.loads(path.read_bytes()), path.read_bytes()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{malformed}: {path.name} is no JSON") from error
    canonical = json.dumps(document, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()
    need(canonical == data and isinstance(document, dict), f"{malformed}: {path.name} is not canonical")
    return document, sha256(data)


def check(index: dict[str, Any]) -> None:
    patch, names = "patches" in index, {model["name"].casefold() for model in index["models"]}
    need(index.keys() == KEYS | {FEATURES[feature] for feature in index["requires"]}, "refused: keys")
    need(re.fullmatch(LABEL, index["label"]) and index["sequence"], "refused: label or sequence")
    need(names and len(names) == len(index["models"]) and type(index["sequence"]) is int, "refused: models")
    blobs, base = ({blob["digest"]: blob["size"] for blob in index.get(key, [])} for key in ("blobs", "base"))
    need(len(index["blobs"] + index.get("base", [])) == len(blobs | base), "refused: a blob twice")
    needed: dict[str, int] = {}
    for model in index["models"]:
        texts = [model["manifest"].encode(), model["config"].encode()]
        own, manifest = {sha256(text): len(text) for text in texts}, json.loads(texts[0])
        need(manifest["config"]["digest"] == sha256(texts[1]) and not own.keys() & base.keys(), "refused: config")
        needed |= {layer["digest"]: layer["size"] for layer in [manifest["config"], *manifest["layers"]]} | own
    need({name: size for name, size in needed.items() if name in blobs or not patch} == blobs | base, "refused: blobs")
    first, *others = [volume["members"] for volume in index["volumes"]]
    need([member["path"] for member in first[:2]] == ["oci-layout", "index.json"] and all(others), "refused: volumes")
    need(first[0]["digest"] == sha256(b'{"imageLayoutVersion":"1.0.0"}'), "refused: oci-layout")
    lengths = [sum(512 + -(-member["size"] // 512) * 512 for member in members) for members in (first, *others)]
    need(max(lengths) + 1024 <= index["volume_size"], "refused: a volume is too long")
    ends: dict[str, int] = {}
    for member in sum(others, first[2:]):
        name, size, offset = member["digest"], member["size"], member.get("offset", 0)
        path = f"blobs/sha256/{name[7:]}" if size == blobs.get(name) else f"slices/sha256/{name[7:]}/{offset:016d}"
        need(member["path"] == path and name in blobs and (size or name not in ends), "refused: a member")
        need(offset == (end := ends.get(name, 0)) or (patch and offset > end), "refused: a gap, or something twice")
        ends[name] = offset + size
    need(ends == blobs or (patch and all(0 < ends.get(name, 0) <= blobs[name] for name in blobs)), "refused: the ends")


def header(path: str, size: int) -> bytes:
    start = path.encode("ascii").ljust(100, b"\0") + b"0000444\0" + 2 * b"0000000\0" + b"%011o\0%011o\0" % (size, 0)
    rest = b"0" + bytes(100) + b"ustar\x0000" + bytes(64) + 2 * b"0000000\0" + bytes(167)
    return start + b"%06o\0 " % sum(start + b" " * 8 + rest) + rest


def span(parts: list[Part]) -> int:
    return sum(len(part) if isinstance(part, bytes) else part[2] for part in parts)


def frames(members: list[dict[str, Any]]) -> list[list[Part]]:
    """What each frame of a volume holds."""
    result: list[list[Part]] = [[]]
    units: list[tuple[Part, ...]] = []
    for member in members:
        data = (member["digest"], member.get("offset", 0), member["size"])
        head, pad = header(member["path"], member["size"]), bytes(-member["size"] % 512)
        units += [(head,), (data,), (pad,)] if member["size"] >= 1 << 20 else [(head, data, pad)]
    for unit in [*units, (bytes(1024),)]:
        if len(unit) == 1 and isinstance(unit[0], tuple):
            name, offset, size = unit[0]
            result.extend([(name, offset + at, min(16 << 20, size - at))] for at in range(0, size, 16 << 20))
            result.append([])
        elif span([*result[-1], *unit]) > 16 << 20:
            result.append([*unit])
        else:
            result[-1] += unit
    return [parts for parts in result if span(parts)]


def inflate(stored: bytes, length: int) -> bytes:
    """The content of one zstd frame that says its length itself, and has neither dictionary nor checksum; or nothing."""
    single, width = stored[4] >> 5 & 1, 1 << (stored[4] >> 6)
    size = int.from_bytes(stored[6 - single : 6 - single + width], "little") + 256 * (width == 2)
    sound = stored[:4] == b"\x28\xb5\x2f\xfd" and not stored[4] & 7 and (single or width > 1) and size == length
    return subprocess.run(["zstd", "-dcq"], input=stored, capture_output=True, check=False).stdout if sound else b""


def restore(bundle: Path, key: Path, out: Path, other: Path | None = None, *, lenient: bool = False) -> None:
    """Restore every blob; all but what is damaged, if ``lenient``."""
    index, digest = signed(bundle / "bundle.json", key, "untrusted", "refused")
    need(index.get("format") == "modelvault-bundle/1" and FEATURES.keys() >= set(index["requires"]), "too-new: format")
    check(index)
    if "patches" in index and other:
        need(sha256((other / "bundle.json").read_bytes()) == index["patches"], "refused: a patch of another bundle")
        restore(other, key, out, lenient=True)
    for blob in index["blobs"]:
        (out / blob["digest"][7:]).touch()
    for blob in index.get("base", []):
        (out / blob["digest"][7:]).write_bytes(((other or out) / blob["digest"][7:]).read_bytes())
    for number, volume in enumerate(index["volumes"], 1):
        path, plan = bundle / f"volume-{number:04d}.tar.zst", frames(volume["members"])
        table, _ = signed(bundle / f"volume-{number:04d}.json", key, "damaged", "damaged")
        rows, expected = table["frames"], ["modelvault-frames/1", digest, number, [*map(span, plan)]]
        found = [*map(table.get, ("format", "index", "volume")), [row[3] for row in rows]]
        need(found == expected, f"damaged: the table of {path.name}")
        data, offset = path.read_bytes() if path.is_file() and not path.is_symlink() else b"", 0
        for parts, (start, length, stored_sha256, _, content_sha256) in zip(plan, rows, strict=True):
            need(start == offset, f"damaged: {path.name}: a gap")
            stored, offset = data[start : start + length], start + length
            content = inflate(stored, span(parts)) if sha256(stored)[7:] == stored_sha256 else b""
            sound = len(content) == span(parts) and sha256(content)[7:] == content_sha256
            need(sound or lenient, f"damaged: {path.name} at {start}")
            for place, part in enumerate(parts if sound else []):
                read = content[span(parts[:place]) : span(parts[: place + 1])]
                need(not isinstance(part, bytes) or read == part, f"damaged: {path.name}: header or padding")
                if isinstance(part, tuple) and (file := out / part[0][7:]).exists():
                    old, at = file.read_bytes(), part[1]
                    file.write_bytes(old[:at].ljust(at, b"\0") + read + old[at + len(read) :])
        need(offset == table["size"] and (lenient or offset == len(data)), f"damaged: {path.name}: its length")
    for file in [] if lenient else out.iterdir():
        need(sha256(file.read_bytes())[7:] == file.name, f"damaged: {file.name}")


if __name__ == "__main__":
    restore(*map(Path, sys.argv[1:]))
