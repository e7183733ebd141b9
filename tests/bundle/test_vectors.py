"""The test vectors, read by modelvault and by the reader that shares no code with it."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import make_vectors
import pytest
from cryptography.exceptions import InvalidSignature
from vector_files import Vector, from_text

from modelvault.bundle.check import verify_bundle
from modelvault.bundle.index import BundleRefused, BundleTooNew, KeyIdentity
from modelvault.bundle.reader import open_bundle
from modelvault.errors import TrustRefused
from modelvault.keys import parse_public
from modelvault.progress import NoProgress

VECTORS = sorted(make_vectors.DIRECTORY.glob("*.vector"))
OUTCOMES = {"ok", "untrusted", "too-new", "refused", "damaged"}
READER = Path(__file__).with_name("independent_reader.py")


@dataclass(frozen=True)
class TheKey:
    """The one key that a vector trusts."""

    name: str = "vectors"
    fingerprint: str = "sha256:" + "0" * 64


def by_modelvault(bundle: Path, key: Path) -> str:
    """Give the outcome of reading a bundle with modelvault."""
    public = parse_public(key.read_bytes(), what="the key")

    def verify(signature: bytes, message: bytes) -> KeyIdentity:
        try:
            public.verify(signature, message)
        except InvalidSignature as error:
            raise TrustRefused("another key") from error
        return TheKey()

    try:
        opened = open_bundle(bundle, verify)
    except BundleTooNew:
        return "too-new"
    except BundleRefused:
        return "refused"
    except TrustRefused:
        return "untrusted"
    return "ok" if verify_bundle(opened, NoProgress(), threads=1).sound else "damaged"


def by_the_other(directory: Path, bundle: Path) -> str:
    """Give the outcome of reading it with the independent reader."""
    out = directory / "out"
    out.mkdir()
    other = [str(directory / name) for name in ("base", "original") if (directory / name).exists()]
    command = [sys.executable, "-I", str(READER), str(bundle), str(directory / "key.pub"), str(out), *other]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    return ran.stderr.splitlines()[-1].removeprefix("ValueError: ").partition(":")[0] if ran.returncode else "ok"


def test_there_are_vectors_of_every_kind() -> None:
    """An empty folder, or one without good or bad bundles, must not pass as tested."""
    assert {from_text(path).expect for path in VECTORS} == OUTCOMES


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_both_readers_agree_with_the_vector(path: Path, tmp_path: Path) -> None:
    """Breaks if modelvault reads a bundle in another way than the specification says, or refuses what it allows."""
    vector = from_text(path)
    bundle = vector.write(tmp_path)
    assert by_modelvault(bundle, tmp_path / "key.pub") == vector.expect, vector.why
    assert by_the_other(tmp_path, bundle) == vector.expect, vector.why


def test_the_vectors_follow_from_the_script(tmp_path: Path) -> None:
    """Breaks if format, planning or the script changed without the vectors, or they were edited by hand."""
    make_vectors.main(tmp_path)
    assert {path.name: path.read_text() for path in sorted(tmp_path.iterdir())} == {
        path.name: path.read_text() for path in VECTORS
    }


def test_the_other_reader_is_short_and_on_its_own() -> None:
    """Breaks if the second opinion borrows from the first, or grows until nobody reads it."""
    text = READER.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 150
    assert "from modelvault" not in text
    assert "import modelvault" not in text


def test_vectors_survive_their_text_form(tmp_path: Path) -> None:
    """Breaks if a vector reads back as other files than were written."""
    vector: Vector
    for name, (vector, _) in make_vectors.vectors().items():
        assert from_text(make_vectors.DIRECTORY / f"{name}.vector") == vector
