"""Write the test vectors for bundles, ``tests/vectors/bundles``: ``python scripts/make_vectors.py [DIRECTORY]``.

Everything follows from this file: fixed keys, fixed models, no library that compresses. A test makes them anew and compares.
"""

import base64
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vector_files import Files, Key, Link, Vector, bundle, contents, pack, to_text, volume

from modelvault import modelpack
from modelvault.artifact import Digest, FileSpec, Model, ModelName, Origin, Recipe, Traits
from modelvault.bundle.format import encode
from modelvault.bundle.index import Index, Span
from modelvault.bundle.layout import header
from modelvault.bundle.plan import PlanOptions, SourceModel, plan_index, plan_patch

DIRECTORY = Path(__file__).parent.parent / "tests" / "vectors" / "bundles"
MIB = 1 << 20
KEY = Key("the key of the test vectors")
OTHER = Key("a key that nobody trusts")
# 1 MiB of "modelvault " over and over, by libzstd 1.5.7 at level 3; here as it is, since other versions may find other bytes.
COMPRESSED = base64.b64decode(
    "KLUv/aAAABAAnAAAWG1vZGVsdmF1bHQgAQDy/86LF0wAAAh1AQD8/zkQAkwAAAhlAQD8/zkQAkwAAAggAQD8/zkQAkwAAAhhAQD8/zkQAkwAAAhkAQD8/"
    "zkQAkwAAAh0AQD8/zkQAk0AAAh2AQD8/zkQAg=="
)
VOLUME, TABLE = "volume-0001.tar.zst", "volume-0001.json"


@dataclass(frozen=True)
class Made:
    """Models with their bundle."""

    index: Index
    blobs: dict[Digest, bytes]
    files: Files

    @property
    def raw(self) -> bytes:
        """The bytes of bundle.json."""
        return encode(self.index)


def source(name: str, files: dict[str, bytes], recipe: Recipe | None = None) -> tuple[SourceModel, dict[Digest, bytes]]:
    """Make a model of these files."""
    blobs = {Digest.of_bytes(data): data for data in files.values()}
    specs = tuple(FileSpec(path, len(data), Digest.of_bytes(data)) for path, data in files.items())
    model = Model(ModelName(name), Origin("hub", "org/name", "c" * 40), specs, Traits("gguf"), "mit", recipe)
    manifest, config = modelpack.encode_manifest(model), modelpack.encode_config(model)
    blobs |= {Digest.of_bytes(data): data for data in (manifest, config)}
    return SourceModel(modelpack.store_form(model), manifest, config), blobs


def make(
    *models: tuple[SourceModel, dict[Digest, bytes]], label: str = "vectors", held: tuple[bytes, ...] = ()
) -> Made:
    """Bundle models; ``held`` are files that the site has."""
    blobs = {digest: data for _, files in models for digest, data in files.items()}
    options = PlanOptions(label, 7, 2 * MIB)
    index = plan_index([model for model, _ in models], options, held=[Digest.of_bytes(data) for data in held])
    return Made(index, blobs, bundle(index, blobs, KEY))


CONFIG = b'{"model_type":"tiny"}'
WEIGHTS = bytes(range(256)) * 2 + b"weights"
PLAIN = source("tiny", {"config.json": CONFIG, "tiny.gguf": WEIGHTS})
LONG = b"a" * (MIB + MIB // 2) + b"b" * (2 * MIB) + b"the end"
SLICED = source("sliced", {"model.safetensors": LONG, "config.json": CONFIG})
REPEATED = (b"modelvault " * (MIB // 11 + 1))[:MIB]


Case = tuple[str, str, Files]
"""The name of a vector, why it is there, its files."""


def canonical(document: object) -> bytes:
    """The canonical form."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def edited(made: Made, change: Callable[[Any], object]) -> Files:
    """Change the index and sign it again."""
    document = json.loads(made.raw)
    change(document)
    return made.files | KEY.sign("bundle.json", canonical(document))


def part(files: Files, name: str) -> bytes:
    """Give one file."""
    content = files[name]
    assert isinstance(content, bytes)
    return content


def retabled(made: Made, change: Callable[[Any], object], key: Key = KEY) -> Files:
    """Change the first table and sign it again."""
    document = json.loads(part(made.files, TABLE))
    change(document)
    return made.files | key.sign(TABLE, canonical(document))


def recontent(made: Made, change: Callable[[bytes], bytes], store: Callable[[bytes], bytes] = pack) -> Files:
    """Write the one frame of volume 1 with other content, and everything else as it should be."""
    (content,) = contents(made.index, 1, made.blobs)
    return made.files | volume(made.raw, 1, [change(content)], KEY, store)


def flipped(files: Files, name: str, position: int) -> Files:
    """Turn one bit of a file around."""
    data = bytearray(part(files, name))
    data[position] ^= 0x10
    return files | {name: bytes(data)}


def without(files: Files, *names: str) -> Files:
    """Take files away."""
    return {name: data for name, data in files.items() if name not in names}


def good() -> Iterator[Case]:
    """Name, why and files of the vectors that are to be read."""
    plain = make(PLAIN)
    yield "plain", "one model in one volume", plain.files
    yield (
        "other-files",
        "files that the format does not name mean nothing",
        plain.files
        | {
            "SHA256SUMS": b"nobody reads this",
            "volume-0002.tar.zst": b"nor this",
        },
    )
    packed = make(source("packed", {"model.gguf": REPEATED, "config.json": CONFIG}))
    yield (
        "compressed",
        "a frame that libzstd compressed, beside others of raw and RLE blocks",
        bundle(packed.index, packed.blobs, KEY, lambda content: COMPRESSED if content == REPEATED else pack(content)),
    )
    yield "sliced", "a file in slices over three volumes", make(SLICED).files
    second = source(
        "org/second:Q4_K_M", {"config.json": CONFIG, "empty": b"", "sub/ümlaut 1.txt": b"x"}, Recipe("second")
    )
    yield (
        "models",
        "two models that share a file; an empty file, a recipe, a name beyond ASCII",
        make(PLAIN, second).files,
    )
    thin = make(PLAIN, label="thin", held=(WEIGHTS,))
    yield (
        "thin",
        "a thin bundle; what it leaves out is in base",
        thin.files | {f"base/{Digest.of_bytes(WEIGHTS).hex}": WEIGHTS},
    )
    original = make(SLICED)
    lost = [Span(member.digest, member.offset, member.size) for member in original.index.volumes[0][2:]]
    yield (
        "patch",
        "a patch with what was in a volume that its original lost",
        patched(original, lost, without(original.files, VOLUME)),
    )
    yield (
        "patch-frame",
        "a patch with the one frame of its original that is damaged",
        patched(original, [Span(Digest.of_bytes(LONG), MIB, MIB)], flipped(original.files, "volume-0002.tar.zst", 230)),
    )


def patched(original: Made, lost: list[Span], left: Files) -> Files:
    """Make a patch, beside what is left of its original."""
    options = PlanOptions("vectors-patch", 8, 2 * MIB)
    index = plan_patch(original.index, Digest.of_bytes(original.raw), lost, options)
    beside = {f"original/{name}": content for name, content in left.items()}
    return bundle(index, original.blobs, KEY) | beside


def untrusted(plain: Made) -> Iterator[Case]:
    """What is not signed by the key."""
    signature = "bundle.json.sig"
    yield "signature-flipped", "one bit of the signature is wrong", flipped(plain.files, signature, 9)
    yield "signature-short", "the signature has 63 bytes", plain.files | {signature: part(plain.files, signature)[:63]}
    yield "signature-missing", "the index is not signed", without(plain.files, signature)
    yield "other-key", "all is well, but signed by a key that is not trusted", bundle(plain.index, plain.blobs, OTHER)
    yield (
        "index-edited",
        "the index was changed after it was signed",
        plain.files | {"bundle.json": plain.raw.replace(b'"sequence":7', b'"sequence":8')},
    )


def too_new(plain: Made) -> Iterator[Case]:
    """What a later version reads."""
    yield (
        "requires-unknown",
        "it requires what no reader of this version knows",
        edited(plain, lambda index: index.update(requires=["holograms/9.1"])),
    )
    yield "format-2", "another format", edited(plain, lambda index: index.update(format="modelvault-bundle/2"))


def refused(plain: Made, sliced: Made, thin: Made) -> Iterator[Case]:
    """Indexes that are signed and break a rule."""
    raw = plain.raw

    def signed(data: bytes) -> Files:
        return plain.files | KEY.sign("bundle.json", data)

    yield "json-spaces", "white space: not the canonical form", signed(raw.replace(b'"sequence":7', b'"sequence": 7'))
    yield (
        "json-order",
        "keys out of order: not the canonical form",
        signed(b'{"volumes":[],' + raw[1:-1].rpartition(b',"volumes"')[0] + b"}"),
    )
    yield "json-twice", "a key twice", signed(raw.replace(b'"sequence":7', b'"sequence":7,"sequence":7'))
    yield "json-float", "a number with a fraction", signed(raw.replace(b'"sequence":7', b'"sequence":7.0'))
    yield "json-mark", "a byte order mark", signed(b"\xef\xbb\xbf" + raw)
    yield "json-cut", "the document ends too soon", signed(raw[:-1])
    yield "json-deep", "nested a thousand levels deep", signed(b"[" * 1000 + b"]" * 1000)
    yield "key-unknown", "a key that the format does not name", edited(plain, lambda index: index.update(more=1))
    yield "sequence-zero", "the sequence is zero", edited(plain, lambda index: index.update(sequence=0))
    yield "label-path", "the label is a path", edited(plain, lambda index: index.update(label="../models"))
    yield (
        "requires-without",
        "it requires thin and has no base",
        edited(plain, lambda index: index.update(requires=["thin/0.2.0"])),
    )
    yield "models-none", "no models", edited(plain, lambda index: index.update(models=[], blobs=[]))
    yield (
        "models-case",
        "two models whose names differ only in case",
        edited(plain, lambda index: index["models"].append(index["models"][0] | {"name": "TINY"})),
    )
    yield (
        "config-other",
        "a config that is not the one of the manifest",
        edited(plain, lambda index: index["models"][0].update(config="{}")),
    )
    yield "blob-missing", "a file of the model is not listed", edited(plain, lambda index: index["blobs"].pop())
    yield (
        "blob-more",
        "a blob that no model needs",
        edited(
            plain,
            lambda index: index["blobs"].append({"digest": f"sha256:{hashlib.sha256(b'more').hexdigest()}", "size": 4}),
        ),
    )
    yield (
        "blob-size",
        "a blob of another size than the manifest says",
        edited(plain, lambda index: index["blobs"][-1].update(size=5)),
    )
    yield (
        "blob-algorithm",
        "a blob that is named by another digest",
        edited(plain, lambda index: index["blobs"][-1].update(digest="sha512:" + "0" * 64)),
    )

    def member(made: Made, place: int, **values: object) -> Files:
        return edited(made, lambda index: index["volumes"][0]["members"][place].update(values))

    yield "path-up", "a member whose path leads out of the directory", member(plain, -1, path="../../etc/passwd")
    yield "path-absolute", "a member with an absolute path", member(plain, -1, path="/etc/passwd")
    yield "path-other", "a member with the path of another blob", member(plain, -1, path="blobs/sha256/" + "0" * 64)
    yield (
        "layout-missing",
        "volume 1 does not begin with oci-layout",
        edited(plain, lambda index: index["volumes"][0]["members"].pop(0)),
    )
    yield (
        "layout-other",
        "oci-layout has another digest than it can have",
        member(plain, 0, digest="sha256:" + "0" * 64),
    )
    yield (
        "volume-empty",
        "a volume with nothing in it",
        edited(plain, lambda index: index["volumes"].append({"members": []})),
    )
    yield (
        "volume-long",
        "a volume that is longer than its volume_size",
        edited(plain, lambda index: index["volumes"][0]["members"][-1].update(size=3 * MIB)),
    )
    yield "slice-gap", "a gap between two slices", edited(sliced, lambda index: index["volumes"].pop(1))
    yield (
        "slice-twice",
        "a slice that is there twice",
        edited(sliced, lambda index: index["volumes"].append(index["volumes"][1])),
    )
    yield (
        "thin-twice",
        "a blob that is left out and here at once",
        edited(thin, lambda index: index["base"].append(index["blobs"][-1])),
    )
    yield (
        "thin-manifest",
        "a thin bundle that leaves a manifest out",
        edited(thin, lambda index: index["base"].append(index["blobs"].pop(0))),
    )


def damaged(plain: Made, sliced: Made) -> Iterator[Case]:
    """Volumes and tables that are not what the index asks for."""
    files = plain.files
    stored = part(files, VOLUME)
    yield "frame-flipped", "one bit of a frame is wrong", flipped(files, VOLUME, 700)
    yield "volume-cut", "the volume ends too soon", files | {VOLUME: stored[:-1]}
    yield "volume-more", "the volume goes on after its last frame", files | {VOLUME: stored + b"more"}
    yield "volume-missing", "the volume is missing", without(files, VOLUME)
    yield "volume-link", "the volume is a symbolic link", files | {VOLUME: Link("bundle.json")}
    yield (
        "volume-swapped",
        "two volumes have each other's names",
        sliced.files
        | {
            VOLUME: sliced.files["volume-0002.tar.zst"],
            "volume-0002.tar.zst": sliced.files[VOLUME],
        },
    )
    yield "table-missing", "the frame table is missing", without(files, TABLE)
    yield "table-link", "the frame table is a symbolic link", files | {TABLE: Link("bundle.json")}
    yield "table-unsigned", "the frame table is not signed", without(files, f"{TABLE}.sig")
    yield "table-edited", "the frame table was changed after it was signed", flipped(files, TABLE, 200)
    yield "table-key", "the frame table is signed by a key that is not trusted", retabled(plain, lambda _: None, OTHER)
    yield (
        "table-bundle",
        "the frame table is of another bundle",
        retabled(plain, lambda table: table.update(index="sha256:" + "0" * 64)),
    )
    yield "table-volume", "the frame table is of another volume", retabled(plain, lambda table: table.update(volume=2))
    yield "table-spaces", "the frame table is not in canonical form", files | KEY.sign(TABLE, part(files, TABLE) + b" ")
    yield (
        "table-more",
        "the frame table has a frame too many",
        retabled(plain, lambda table: table["frames"].append(table["frames"][0])),
    )
    yield (
        "table-size",
        "the frame table says another size than its frames have",
        retabled(plain, lambda table: table.update(size=table["size"] + 1)),
    )

    def row(place: int, value: object) -> Files:
        return retabled(plain, lambda table: table["frames"][0].__setitem__(place, value))

    yield "frame-offset", "the first frame does not begin at 0", row(0, 1)
    yield "frame-stored", "the frame table has another digest of the stored bytes", row(2, "0" * 64)
    yield "frame-length", "the frame table has another length of the content than the index implies", row(3, 512)
    yield "frame-content", "the frame table has another digest of the content", row(4, "0" * 64)
    long_name = plain.index.volumes[0][-1].path

    def other_header(content: bytes) -> bytes:
        size = plain.index.volumes[0][-1].size
        return content.replace(header(long_name, size), header("../" + long_name[3:], size))

    yield (
        "tar-header",
        "a tar header names another file; digests and signatures are right",
        recontent(plain, other_header),
    )
    yield "tar-end", "the tar does not end with zeros", recontent(plain, lambda content: content[:-1] + b"x")
    yield (
        "blob-other",
        "a file has other bytes than its name says",
        recontent(plain, lambda content: content.replace(WEIGHTS, WEIGHTS[::-1])),
    )
    yield "zstd-not", "the frame is no zstd frame", recontent(plain, lambda content: content, lambda content: content)
    yield (
        "zstd-more",
        "the frame says that it has more content than the table says",
        recontent(plain, lambda content: content, lambda content: pack(content + b"x")),
    )
    yield (
        "zstd-two",
        "two zstd frames where one should be",
        recontent(plain, lambda content: content, lambda content: pack(content[:512]) + pack(content[512:])),
    )
    yield (
        "zstd-sizeless",
        "the frame does not say how much content it has",
        recontent(plain, lambda content: content, lambda content: b"\x28\xb5\x2f\xfd\x00\x38" + pack(content)[10:]),
    )


def vectors() -> dict[str, tuple[Vector, Vector | None]]:
    """Make all: name → the vector, and the one that it is like."""
    plain, sliced, thin = make(PLAIN), make(SLICED), make(PLAIN, label="thin", held=(WEIGHTS,))
    kinds = {
        "ok": good(),
        "untrusted": untrusted(plain),
        "too-new": too_new(plain),
        "refused": refused(plain, sliced, thin),
        "damaged": damaged(plain, sliced),
    }
    made: dict[str, tuple[Vector, Vector | None]] = {}
    for expect, cases in kinds.items():
        for name, why, files in cases:
            like = None
            if expect != "ok":
                near = "sliced" if "volume-0002.json" in files else "plain"
                like = made["thin" if name.startswith("thin-") else near][0]
            made[name] = Vector(name, expect, why, KEY.der, files), like
    return made


def main(directory: Path) -> None:
    """Write them all, and nothing else into that directory."""
    made = vectors()
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.glob("*.vector"):
        old.unlink()
    for name, (vector, like) in made.items():
        (directory / f"{name}.vector").write_text(to_text(vector, like), encoding="ascii")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DIRECTORY)
