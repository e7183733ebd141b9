"""``keys``: the signing keys of this vault, and the ones whose signatures it accepts."""

from collections.abc import Callable
from pathlib import Path

from modelvault.errors import TrustRefused
from modelvault.keys import KeyInfo, read_key_file
from modelvault.results import KeyLine, KeysResult
from modelvault.vault import Vault


def new_key(vault: Vault, name: str) -> KeysResult:
    """Make a signing key. Raises ``UsageProblem`` if the name is taken or bad."""
    info = vault.keys.new(name).info
    vault.record("key-new", {"key": info.fingerprint, "name": info.name})
    return _result(vault, info)


def list_keys(vault: Vault) -> KeysResult:
    """Give all keys, own ones first."""
    return _result(vault, *vault.keys.list())


def show_keys(vault: Vault, name: str | None) -> KeysResult:
    """Give one key, or all own ones. Raises ``UsageProblem`` for one that is not there."""
    return _result(vault, *([vault.keys.find(name)] if name else (info for info in vault.keys.list() if info.own)))


def trust_key(vault: Vault, file: Path, name: str | None, fingerprint: Callable[[], str | None]) -> KeysResult:
    """Trust the key in ``file`` if it has the fingerprint that was carried separately, which is asked for last.

    Raises ``UsageProblem`` for a file that is no key, ``TrustRefused`` without the right fingerprint.
    """
    data = read_key_file(file)
    given = fingerprint()
    if not given:
        raise TrustRefused(
            f"{file}: a key is trusted only with its fingerprint, which does not travel with it",
            hint="run `modelvault keys show` on the connected side, and give the 64 hex digits that it prints with --fingerprint; "
            "they are asked for only on a terminal, never read from a pipe",
        )
    known = {info.fingerprint for info in vault.keys.list()}
    info = vault.keys.trust(name or file.stem, data, given)
    if info.fingerprint not in known:
        vault.record("trust", {"key": info.fingerprint, "name": info.name})
    return _result(vault, info)


def revoke_key(vault: Vault, reference: str) -> KeysResult:
    """Stop trusting a key. Raises ``UsageProblem`` for an unknown one or an own one."""
    info = vault.keys.revoke(reference)
    vault.record("revoke", {"key": info.fingerprint, "name": info.name})
    return _result(vault, *vault.keys.list(), revoked=_line(info))


def _result(vault: Vault, *infos: KeyInfo, revoked: KeyLine | None = None) -> KeysResult:
    return KeysResult(vault.root, tuple(_line(info) for info in infos), revoked, vault.keys.broken())


def _line(info: KeyInfo) -> KeyLine:
    return KeyLine(info.name, "signs" if info.own else "trusted", info.fingerprint, info.spelled, info.path)
