"""``keys``: the signing keys of this vault, and the ones whose signatures it accepts."""

import re
import shlex
import socket
from collections.abc import Callable
from pathlib import Path

from modelvault.bundle.papers import check_site
from modelvault.errors import TrustRefused, UsageProblem
from modelvault.keys import FIRST_KEY, KeyInfo, Role, Signer, read_key_file
from modelvault.results.papers import KeyLine, KeysResult
from modelvault.vault import Vault

_MAX_SITE = 64  # characters of a site's name
_MADE = {Role.BUNDLE: "the connected side", Role.RECEIPT: "the isolated side"}
"""Where the keys of a role are made, as a rule."""


def new_key(vault: Vault, name: str | None, role: Role = Role.BUNDLE) -> KeysResult:
    """Make a signing key. Raises ``UsageProblem`` if the name is taken or bad."""
    name = name or (site_name(vault) if role is Role.RECEIPT else FIRST_KEY)
    return _result(vault, make_key(vault, name, role).info)


def make_key(vault: Vault, name: str, role: Role) -> Signer:
    """Make a signing key, for whoever needs one, and record it; a key for receipts is named as its site."""
    if role is Role.RECEIPT:
        check_site(name)
    signer = vault.keys.new(name, role)
    vault.record("key-new", _fact(signer.info))
    return signer


def list_keys(vault: Vault) -> KeysResult:
    """Give all keys, own ones first."""
    return _result(vault, *vault.keys.list())


def show_keys(vault: Vault, name: str | None) -> KeysResult:
    """Give one key, or all own ones. Raises ``UsageProblem`` for one that is not there."""
    return _result(vault, *([vault.keys.find(name)] if name else (info for info in vault.keys.list() if info.own)))


def site_name(vault: Vault) -> str:
    """Say what this place calls itself where nobody said so: as configured, else after the host."""
    host = re.sub(r"[^A-Za-z0-9._-]+", "-", socket.gethostname())[:_MAX_SITE].strip("._-")
    return vault.config.site or host or "site"


def site_signer(vault: Vault, name: str | None) -> tuple[Signer, bool]:
    """Open the key that signs what rides back; the second value says whether it had to be made, as the first time.

    ``name`` is the site's, if the user gave it. Raises ``UsageProblem`` if the site has another name, or several to choose from.
    """
    own = vault.keys.own(Role.RECEIPT)
    if not own:
        return make_key(vault, name or site_name(vault), Role.RECEIPT), True
    wanted = name or vault.config.site
    names = [info.name for info in own]
    if wanted is not None and wanted not in names:
        raise UsageProblem(
            f"this site is called {' or '.join(names)}, not {wanted[:120]}",
            hint=f"a site keeps its name; for another one make another key: modelvault keys new {shlex.quote(wanted)} --role receipt",
        )
    return vault.keys.signer(wanted, Role.RECEIPT), False


def require_site(vault: Vault, name: str | None) -> None:
    """Raise what ``site_signer`` would, before hours of work; no key is made."""
    if vault.keys.own(Role.RECEIPT):
        site_signer(vault, name)
    else:
        check_site(name or site_name(vault))


def trust_key(
    vault: Vault, file: Path, name: str | None, fingerprint: Callable[[], str | None], role: Role = Role.BUNDLE
) -> KeysResult:
    """Trust the key in ``file`` if it has the fingerprint that was carried separately, which is asked for last.

    Raises ``UsageProblem`` for a file that is no key, ``TrustRefused`` without the right fingerprint.
    """
    if file.is_dir():
        raise _no_key_but(file)
    data = read_key_file(file)
    if b"PRIVATE KEY" in data:
        raise UsageProblem(
            f"{file} is the private key: it stays where it is, and nobody else may have it",
            hint=f"give its public half: modelvault keys trust {shlex.quote(str(file.with_suffix('.pub')))}",
            path=str(file),
        )
    name = name or file.stem
    if role is Role.RECEIPT:
        check_site(name)
    given = fingerprint()
    if not given:
        raise TrustRefused(
            f"{file}: a key is trusted only with its fingerprint, which does not travel with it",
            hint=f"run `modelvault keys show` on {_MADE[role]}, and give the 64 hex digits that it prints with --fingerprint; "
            "they are asked for only on a terminal, never read from a pipe",
        )
    known = {info.fingerprint for info in vault.keys.list()}
    info = vault.keys.trust(name, data, given, role)
    if info.fingerprint not in known:
        vault.record("trust", _fact(info))
    return _result(vault, info)


def _no_key_but(directory: Path) -> UsageProblem:
    """Name the key in a directory that was given in its place."""
    keys = sorted(directory.glob("*.pub"))
    given = f"modelvault keys trust {shlex.quote(str(keys[0] if len(keys) == 1 else directory / 'NAME.pub'))}"
    return UsageProblem(f"{directory} is a directory, not a key", hint=f"name the file: {given}", path=str(directory))


def revoke_key(vault: Vault, reference: str) -> KeysResult:
    """Stop trusting a key. Raises ``UsageProblem`` for an unknown one or an own one."""
    info = vault.keys.revoke(reference)
    vault.record("revoke", _fact(info))
    return _result(vault, *vault.keys.list(), revoked=_line(info))


def _result(vault: Vault, *infos: KeyInfo, revoked: KeyLine | None = None) -> KeysResult:
    return KeysResult(vault.root, tuple(_line(info) for info in infos), revoked, vault.keys.broken())


def _fact(info: KeyInfo) -> dict[str, str]:
    return {"key": info.fingerprint, "name": info.name, "role": info.role.value}


def _line(info: KeyInfo) -> KeyLine:
    return KeyLine(info.name, info.role.value, info.own, info.fingerprint, info.spelled, info.path)
