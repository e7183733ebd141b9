"""Receipts and requests as files: written beside their signatures, read only from those who may sign them."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from modelvault import fsio
from modelvault.bundle.drive import put
from modelvault.bundle.index import SIGNATURE_SIZE
from modelvault.bundle.papers import MAX_PAPER, Receipt, Request, refused
from modelvault.errors import TrustRefused, UsageProblem
from modelvault.filesystem import no_space_at
from modelvault.keys import KeyInfo, KeyRing, Role, Signer
from modelvault.operations.trust import how_to_trust
from modelvault.vault import Vault

Paper = TypeVar("Paper", Receipt, Request)

RECEIPT_SUFFIX = ".receipt.json"
REQUEST_SUFFIX = ".request.json"


@dataclass(frozen=True, slots=True)
class SignedPaper(Generic[Paper]):
    """A paper whose signature was verified, with its very bytes. The site that it speaks for is the name of the key."""

    paper: Paper
    key: KeyInfo
    raw: bytes
    signature: bytes


def read_paper(vault: Vault, path: Path, decode: Callable[[bytes], Paper], *, suffix: str) -> SignedPaper[Paper]:
    """Read a paper, or the only one in a directory: limits first, then the signature, and only then is it parsed.

    Raises ``UsageProblem`` if it is not there, ``TrustRefused`` unless it is by the key of the site that it speaks for, and what
    ``decode`` raises.
    """
    path = _only(path, suffix) if path.is_dir() else path
    raw, signature = _read(path, MAX_PAPER), _read(path.with_name(f"{path.name}.sig"), SIGNATURE_SIZE)
    return _verified(vault.keys, raw, signature, decode, path)


def _verified(
    keys: KeyRing, raw: bytes, signature: bytes, decode: Callable[[bytes], Paper], path: Path
) -> SignedPaper[Paper]:
    try:
        key = keys.verify(signature, raw, Role.RECEIPT)
    except TrustRefused as error:
        known = (None if error.data else how_to_trust(path.parent, Role.RECEIPT)) or error.hint
        raise TrustRefused(f"{path}: {error.message}", hint=known, path=str(path)) from error
    paper = decode(raw)
    if paper.site != key.name:
        raise TrustRefused(
            f"{path} speaks for the site {paper.site}, but is signed by the key of {key.name}",
            hint=f"a site's key is trusted under the site's name: `modelvault keys revoke {key.name}`, then trust it again "
            f"with `--role receipt --name {paper.site}`",
            site=paper.site,
            key=key.fingerprint,
        )
    return SignedPaper(paper, key, raw, signature)


def _only(directory: Path, suffix: str) -> Path:
    found = sorted(directory.glob(f"[!.]*{suffix}"))  # macOS leaves "._" files on drives that are not its own
    if len(found) != 1:
        names = ", ".join(path.name for path in found)
        raise UsageProblem(
            f"{directory} holds several: {names}" if found else f"{directory} holds no *{suffix}",
            hint="name the file",
            path=str(directory),
        )
    return found[0]


def _read(path: Path, limit: int) -> bytes:
    try:
        return fsio.read_regular(path, limit=limit)
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.suffix == ".sig":
            raise TrustRefused(
                f"{path} is missing: the paper is not signed", hint="carry both files: the paper and its .sig"
            ) from error
        raise UsageProblem(f"there is no {path}", hint="check the path; is the drive mounted?") from error
    except (fsio.NotRegular, fsio.TooLarge) as error:
        raise refused(error.message) from error


def place_of(path: Path, name: str) -> Path:
    """Say which file a paper goes to: ``path``, or ``name`` in it if it is a directory. Raises ``UsageProblem`` for a place that is none."""
    require_place(path)
    return path / name if path.is_dir() else path


def write_paper(path: Path, name: str, raw: bytes, signer: Signer) -> Path:
    """Write a paper, and beside it its signature and the public key, where ``place_of`` says; give the file.

    Raises ``UsageProblem`` for a place that is none or a paper too large, ``NoSpace`` or ``OSError``.
    """
    if len(raw) > MAX_PAPER:
        raise UsageProblem(f"{name} would have {len(raw):,} bytes, more than the {MAX_PAPER:,} that it may have")
    file = place_of(path, name)
    put(file.parent, f"{signer.name}.pub", signer.public_pem)
    put(file.parent, f"{file.name}.sig", signer.sign(raw))
    put(file.parent, file.name, raw)
    return file


def require_place(path: Path) -> None:
    """Raise ``UsageProblem`` unless ``path`` names a place for a paper."""
    if not path.is_dir() and (not path.parent.is_dir() or path.suffix != ".json"):
        raise UsageProblem(
            f"{path} is no directory, nor a file to be that ends in .json",
            hint="mount the drive, or make the directory first",
            path=str(path),
        )


def require_writable(path: Path) -> None:
    """Write to ``path`` on trial, and leave nothing there: what is wrong with the place is better met before hours of work than after.

    Raises ``UsageProblem`` for a place that is none or cannot be written to, ``NoSpace``.
    """
    require_place(path)
    directory = path if path.is_dir() else path.parent
    trial = fsio.temporary_beside(directory / "paper")
    try:
        with no_space_at(directory):
            trial.write_bytes(b"\0")
    except OSError as error:
        raise UsageProblem(
            f"cannot write to {directory}: {(error.strerror or str(error)).lower()}",
            hint="mount the drive so that it can be written to, or name another place",
            path=str(directory),
        ) from error
    finally:
        with contextlib.suppress(OSError):
            trial.unlink()
