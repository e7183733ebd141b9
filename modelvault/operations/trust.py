"""Opening a bundle with the keys of a vault: whose is it, and if nobody's, was that allowed?"""

import shlex
from pathlib import Path

from modelvault.bundle.index import INDEX_FILE, BundleRefused
from modelvault.bundle.reader import OpenBundle, open_bundle
from modelvault.errors import TrustRefused
from modelvault.keys import KeyRing, Role
from modelvault.vault import Vault

FINISH = "run the same bundle command again on the PC that wrote it: it goes on where it stopped"
"""What to do about an unfinished bundle."""


def how_to_trust(directory: Path, role: Role = Role.BUNDLE) -> str | None:
    """Say how to trust the public key that lies beside what it signed; ``None`` if there is none."""
    carried = carried_keys(directory)
    if not carried:
        return None
    options = () if role is Role.BUNDLE else ("--role", role.value)
    return f"if you know whose it is: `{shlex.join(['modelvault', 'keys', 'trust', str(carried[0]), *options])}`"


def carried_keys(directory: Path) -> list[Path]:
    """List the public keys that lie in a directory; macOS leaves ``._`` files on drives that are not its own."""
    return sorted(directory.glob("[!.]*.pub"))


def open_trusted(path: Path, keys: KeyRing | None, *, allow_unsigned: bool) -> tuple[OpenBundle, tuple[str, ...]]:
    """Open a bundle; the second value warns where a missing or unknown signature was let pass.

    Raises ``TrustRefused`` where it was not, and whatever is wrong with the bundle itself.
    """
    try:
        if keys is not None:
            return open_bundle(path, keys.verify), keys.broken()
        if not allow_unsigned:
            raise TrustRefused(
                f"nobody is trusted on this machine yet, so that it cannot be told whose signature {path} carries",
                hint=f"{how_to_trust(path) or 'no public key lies beside it'}; --allow-unsigned looks at its integrity alone; "
                "a vault that is elsewhere is named by MODELVAULT_HOME",
            )
    except TrustRefused as error:
        if not allow_unsigned:
            raise _refusal(path, keys, error) from error
    return open_bundle(path, None), (
        f"{path} is not signed by anyone trusted here: integrity only, no proof of origin",
    )


def _refusal(path: Path, keys: KeyRing | None, error: TrustRefused) -> TrustRefused:
    """Say of which bundle it is true, and what can be told from the key that lies beside it."""
    if isinstance(error, BundleRefused) or keys is None or "path" in error.data:
        return error
    carried = carried_keys(path)
    if error.data or not carried:
        return TrustRefused(f"{path}: {error.message}", hint=error.hint, path=str(path))
    known = next((key.name for key in map(keys.held_in, carried) if key), None)
    if known is None:
        return TrustRefused(f"{path}: {error.message}", hint=how_to_trust(path), path=str(path))
    return TrustRefused(
        f"{path}: the signature does not fit {INDEX_FILE}: it was changed after {known} signed it, or {known} did not sign it",
        hint="have it copied or written again on the PC that it came from: `modelvault verify PATH` there tells whether it is whole",
        path=str(path),
    )


def check_news(vault: Vault, bundle: OpenBundle, *, allow_older: bool) -> None:
    """Refuse a signed bundle that is older than one that was completely imported. Raises ``TrustRefused`` (exit 14)."""
    if bundle.signer is None or allow_older:
        return
    if vault.history_lost:
        raise TrustRefused(
            "the vault's event log lacks what was in it once, so it is not known what was imported before",
            hint="compare the bundle's sequence with your own records, then import once with --allow-older",
        )
    index, key = bundle.index, bundle.signer.fingerprint
    newest = vault.events.high_water().get((key, index.label), 0)
    if index.sequence < newest:
        raise TrustRefused(
            f"{bundle.places[0]} has sequence {index.sequence}, but {newest} of label {index.label} was imported already",
            hint="import the newest bundle, or this one with --allow-older",
            sequence=index.sequence,
            newest=newest,
        )
    known = vault.events.imported(key, index.label, index.sequence)
    if known and bundle.digest.hex not in known:
        raise TrustRefused(
            f"{bundle.places[0]} is not the bundle of label {index.label} and sequence {index.sequence} that was imported already: "
            "its content is another",
            hint="find out where each comes from: a vault gives no sequence twice unless it is told to; --allow-older imports it",
            sequence=index.sequence,
        )
