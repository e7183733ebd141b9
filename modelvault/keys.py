"""Signing keys and trusted keys: Ed25519, kept in the vault's ``keys/``.

```
keys/<name>.key           private, PKCS #8 PEM, 0600
keys/<name>.pub           its public half, SubjectPublicKeyInfo PEM
keys/trusted/<name>.pub   a public key that was trusted by typing its fingerprint
keys/site/<name>.key      private, for receipts; and its public half
keys/sites/<site>.pub     the trusted public key of a site
```

A key has one role: it signs bundles, or it signs what rides back. It counts in that role only. A key's identity is its fingerprint, the SHA-256 of its SubjectPublicKeyInfo in DER; names are for people. Specified in
``docs/formats/keys.md``.
"""

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from modelvault import fsio
from modelvault.artifact import Digest
from modelvault.errors import ModelvaultError, TrustRefused, UsageProblem

MAX_KEY_FILE = 16 << 10
"""Bytes that a key file may have at most; an Ed25519 key takes 120."""


class Role(StrEnum):
    """What a key signs: bundles, or the receipts and requests of a site."""

    BUNDLE = "bundle"
    RECEIPT = "receipt"


FIRST_KEY = "default"
"""What the key for bundles is called where nobody said so."""

_OWN = {Role.BUNDLE: ".", Role.RECEIPT: "site"}
_TRUSTED = {Role.BUNDLE: "trusted", Role.RECEIPT: "sites"}
"""Where the keys of a role lie within ``keys/``."""
_UNKNOWN = {
    Role.BUNDLE: "trust the signing key first: modelvault keys trust FILE --fingerprint FINGERPRINT",
    Role.RECEIPT: "trust the site's key first: modelvault keys trust FILE --role receipt --fingerprint FINGERPRINT",
}
_CHOOSE = {Role.BUNDLE: "choose one with --key NAME", Role.RECEIPT: "choose one with --site NAME"}
_MAKE = {Role.BUNDLE: "modelvault keys new NAME", Role.RECEIPT: "modelvault keys new NAME --role receipt"}

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SEPARATORS = re.compile(r"[\s:\-]")
_HEX = re.compile(r"[0-9a-f]{64}")
_PREFIX = "sha256"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """A public key: its name here, its fingerprint as ``sha256:<64 hex>``, whether we hold the private half, its file.

    The name of a trusted key for receipts is that of the site.
    """

    name: str
    fingerprint: str
    own: bool
    path: Path
    role: Role = Role.BUNDLE

    @property
    def spelled(self) -> tuple[str, ...]:
        """The fingerprint as two lines of eight groups, for people to read out and type; the groups are joined by hyphens."""
        digits = self.fingerprint.removeprefix("sha256:")
        groups = [digits[start : start + 4] for start in range(0, len(digits), 4)]
        return "-".join(groups[:8]), "-".join(groups[8:])


class Signer:
    """A private key, ready to sign."""

    def __init__(self, info: KeyInfo, key: Ed25519PrivateKey) -> None:
        """Hold the key and what is known of it."""
        self.info = info
        self._key = key

    @property
    def name(self) -> str:
        """The key's name."""
        return self.info.name

    @property
    def fingerprint(self) -> str:
        """The key's identity."""
        return self.info.fingerprint

    @property
    def public_pem(self) -> bytes:
        """The public half as SubjectPublicKeyInfo PEM."""
        return _public_pem(self._key.public_key())

    def sign(self, message: bytes) -> bytes:
        """Give the 64 bytes of the Ed25519 signature; equal messages give equal signatures."""
        return self._key.sign(message)


@dataclass(frozen=True, slots=True)
class _KeyFile:
    """A file that should hold a key; ``own`` ones are private."""

    path: Path
    role: Role
    own: bool


def _in_role(key: KeyInfo, role: Role) -> str:
    """Say what to do where a key that is known for one role is wanted in another."""
    another = f"have another key made for {role}s where it comes from: {_MAKE[role]}"
    if key.own:
        return f"a key has one role: {another}"
    return (
        f"if it was trusted for {key.role}s by mistake, take that back with `modelvault keys revoke {key.name}` "
        f"and trust it again with --role {role}; else {another}"
    )


class KeyRing:
    """The keys of one vault. A vault trusts its own keys and those in ``trusted/`` and ``sites/``, each in its role."""

    def __init__(self, directory: Path) -> None:
        """Work on ``directory``, which need not exist yet."""
        self._directory = directory

    def new(self, name: str, role: Role = Role.BUNDLE) -> Signer:
        """Make a key. Raises ``UsageProblem`` for a bad name or one that is taken; nothing is ever overwritten."""
        _check_name(name)
        private, public = self._own_paths(name, role)
        if private.exists() or public.exists():
            raise _taken(name)
        private.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = Ed25519PrivateKey.generate()
        encoded = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        _write_private(private, encoded)
        fsio.atomic_write(public, _public_pem(key.public_key()))
        return Signer(KeyInfo(name, _fingerprint(key.public_key()), own=True, path=public, role=role), key)

    def list(self) -> tuple[KeyInfo, ...]:
        """Give every key by name, own ones first; ``broken`` says what is passed over."""
        return tuple(info for info, _ in self._public_keys())

    def own(self, role: Role = Role.BUNDLE) -> tuple[KeyInfo, ...]:
        """Give the keys that can sign. Raises ``UsageProblem`` if one is broken: another must not quietly take its place."""
        return tuple(_public_key(key)[0] for key in self._files() if key.own and key.role is role)

    def broken(self) -> tuple[str, ...]:
        """Say which files hold no usable key, and why: their signatures do not count."""
        problems = []
        for key in self._files():
            try:
                _public_key(key)
            except UsageProblem as error:
                problems.append(f"{error.message}: it does not count; put a copy of the file back or remove it")
        return tuple(problems)

    def find(self, reference: str) -> KeyInfo:
        """Find a key by name or fingerprint. Raises ``UsageProblem`` if there is none or the name means two."""
        fingerprint = _normalized(reference)
        found = [info for info in self.list() if info.name == reference or info.fingerprint == fingerprint]
        if not found:
            raise UsageProblem(f"there is no key {reference[:120]!r}", hint="`modelvault keys list` shows them")
        if len({info.fingerprint for info in found}) > 1:
            raise _two(reference)
        return found[0]

    def held_in(self, file: Path, role: Role = Role.BUNDLE) -> KeyInfo | None:
        """Find the key of this ring in that role that lies in a file, too; ``None`` if it holds another, or none at all."""
        try:
            fingerprint = _fingerprint(_read_public(file))
        except UsageProblem:
            return None
        return next((info for info in self.list() if (info.fingerprint, info.role) == (fingerprint, role)), None)

    def signer(self, name: str | None = None, role: Role = Role.BUNDLE) -> Signer:
        """Open a private key: the one of that name, or the only one; of several for bundles, the one made first of all, if it is there.

        Raises ``UsageProblem`` if there is none, if there are several to choose from, or if others can read its file.
        """
        if name is None:
            own = self.own(role)
            if not own:
                raise UsageProblem("there is no signing key", hint=f"make one: {_MAKE[role]}")
            if len(own) > 1 and not (role is Role.BUNDLE and FIRST_KEY in {info.name for info in own}):
                names = ", ".join(info.name for info in own)
                raise UsageProblem(f"there are several signing keys: {names}", hint=_CHOOSE[role])
            name = own[0].name if len(own) == 1 else FIRST_KEY
        _check_name(name)
        private, public = self._own_paths(name, role)
        key = _read_private(private)
        if public.exists():
            if _fingerprint(_read_public(public)) != _fingerprint(key.public_key()):
                raise UsageProblem(
                    f"{public} is not the public half of {private}", hint=f"remove {public}: it is written anew"
                )
        else:
            fsio.atomic_write(public, _public_pem(key.public_key()))
        return Signer(KeyInfo(name, _fingerprint(key.public_key()), own=True, path=public, role=role), key)

    def trust(self, name: str, data: bytes, fingerprint: str, role: Role = Role.BUNDLE) -> KeyInfo:
        """Trust the public key in ``data`` if ``fingerprint``, typed by a person, is its own.

        The fingerprint may be grouped, prefixed and in any case, but must be whole. Raises ``TrustRefused``, which never tells
        the right fingerprint: it has to come from the side where the key was made.
        """
        _check_name(name)
        key = parse_public(data, what=f"the key {name}")
        actual = _fingerprint(key)
        if _normalized(fingerprint) != actual:
            raise TrustRefused(
                f"the key {name} does not have the fingerprint that was given: it is not trusted",
                hint="a fingerprint has 64 hex digits, spelled on two lines: give both, as `modelvault keys show` prints them "
                "on the machine where the key was made",
            )
        for info in self.list():
            if info.fingerprint == actual and info.role is not role:
                raise TrustRefused(
                    f"the key {name} is known here as {info.name}, for {info.role}s: a key has one role",
                    hint=_in_role(info, role),
                )
            if info.fingerprint == actual and not info.own and info.name != name:
                raise UsageProblem(
                    f"the key {name} is trusted here as {info.name} already",
                    hint=f"to call it {name}, revoke it first: modelvault keys revoke {info.name}",
                )
            if info.fingerprint == actual:
                return info
        path = self._directory / _TRUSTED[role] / f"{name}.pub"
        if path.exists():
            raise UsageProblem(
                f"another key is trusted under the name {name}",
                hint=f"give this one another name with --name; or, if it takes the other's place, take that back first: modelvault keys revoke {name}",
            )
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        fsio.atomic_write(path, _public_pem(key))
        return KeyInfo(name, actual, own=False, path=path, role=role)

    def revoke(self, reference: str) -> KeyInfo:
        """Stop trusting a key, named by name or fingerprint.

        Raises ``UsageProblem`` for an own key, an unknown one, or a name that means two.
        """
        fingerprint = _normalized(reference)
        trusted = [
            info for info in self.list() if not info.own and (info.name == reference or info.fingerprint == fingerprint)
        ]
        if len(trusted) > 1:
            raise _two(reference)
        for info in trusted:
            info.path.unlink()
            fsio.fsync_directory(info.path.parent)
            return info
        info = self.find(reference)
        raise UsageProblem(
            f"{info.name} is this vault's own key, not one that was trusted",
            hint=f"to retire it for good, remove {info.path.with_suffix('.key')} and {info.path}",
        )

    def verify(self, signature: bytes, message: bytes, role: Role = Role.BUNDLE) -> KeyInfo:
        """Tell whose signature this is. Raises ``TrustRefused`` if no key that is trusted here in that role made it over these bytes."""
        other = None
        for info, key in self._public_keys():
            try:
                key.verify(signature, message)
            except InvalidSignature:
                continue
            if info.role is role:
                return info
            other = info
        if other is not None:
            raise TrustRefused(
                f"the signature is by {other.name}, whose key is for {other.role}s: it does not count for a {role}",
                hint=_in_role(other, role),
                key=other.fingerprint,
            )
        raise TrustRefused(
            "the signature is not by a key that is trusted here, or the signed bytes were changed", hint=_UNKNOWN[role]
        )

    def _own_paths(self, name: str, role: Role) -> tuple[Path, Path]:
        directory = self._directory / _OWN[role]
        return directory / f"{name}.key", directory / f"{name}.pub"

    def _files(self) -> Iterator[_KeyFile]:
        """List the files of all keys, own ones first."""
        for where, own in ((_OWN, True), (_TRUSTED, False)):
            for role, directory in where.items():
                suffix = "key" if own else "pub"
                files = sorted((self._directory / directory).glob(f"*.{suffix}"))
                yield from (_KeyFile(file, role, own) for file in files)

    def _public_keys(self) -> Iterator[tuple[KeyInfo, Ed25519PublicKey]]:
        for file in self._files():
            try:
                found = _public_key(file)
            except UsageProblem:
                continue  # one bad file must not cost the others; `broken` tells of it
            yield found


def _public_key(file: _KeyFile) -> tuple[KeyInfo, Ed25519PublicKey]:
    public = file.path.with_suffix(".pub")
    # A crash between the two writes of `new` leaves a private key alone; its public half follows from it.
    key = _read_public(public) if public.exists() or not file.own else _read_private(file.path).public_key()
    return KeyInfo(file.path.stem, _fingerprint(key), own=file.own, path=public, role=file.role), key


def _taken(name: str) -> UsageProblem:
    return UsageProblem(f"there is a key {name} already", hint="choose another name: modelvault keys new NAME")


def _two(reference: str) -> UsageProblem:
    return UsageProblem(f"two keys are called {reference}", hint="name the key by its fingerprint")


def parse_public(data: bytes, *, what: str) -> Ed25519PublicKey:
    """Read a public key in PEM. Raises ``UsageProblem`` for anything but an Ed25519 key."""
    try:
        if len(data) > MAX_KEY_FILE:
            raise ValueError("too large")
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _no_key(what) from error
    if not isinstance(key, Ed25519PublicKey):
        raise _no_key(what)
    return key


def read_key_file(path: Path) -> bytes:
    """Read a key file under limits. Raises ``UsageProblem`` for a symlink, a FIFO, a large file or one that cannot be read."""
    try:
        return fsio.read_regular(path, limit=MAX_KEY_FILE)
    except OSError as error:
        raise UsageProblem(f"cannot read the key {path}: {(error.strerror or str(error)).lower()}") from error
    except ModelvaultError as error:
        raise UsageProblem(f"{path} is not a key: {error.message}") from error


def _no_key(what: str) -> UsageProblem:
    return UsageProblem(f"{what} is not an unencrypted ed25519 key in PEM", hint="modelvault keys new makes one")


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise UsageProblem(f"not a key name: {name[:120]!r}", hint="use letters, digits, '.', '_' and '-', at most 64")


def _write_private(path: Path, encoded: bytes) -> None:
    """Write a private key where there is none: of two processes that make one of the same name, one fails."""
    temporary = fsio.temporary_beside(path)
    fsio.atomic_write(temporary, encoded, mode=0o600)
    try:
        os.link(temporary, path)
    except FileExistsError as error:
        raise _taken(path.stem) from error
    finally:
        temporary.unlink()
    fsio.fsync_directory(path.parent)


def _normalized(text: str) -> str | None:
    """Bring a typed fingerprint into the form ``sha256:<64 hex>``; ``None`` if it is no whole fingerprint."""
    digits = _SEPARATORS.sub("", text).lower().removeprefix(_PREFIX)
    return f"{_PREFIX}:{digits}" if _HEX.fullmatch(digits) else None


def _fingerprint(key: Ed25519PublicKey) -> str:
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return str(Digest.of_bytes(der))


def _public_pem(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _read_public(path: Path) -> Ed25519PublicKey:
    return parse_public(read_key_file(path), what=str(path))


def _read_private(path: Path) -> Ed25519PrivateKey:
    if not path.exists():
        raise UsageProblem(f"there is no signing key {path.stem}", hint="modelvault keys list shows the keys")
    data = read_key_file(path)
    if os.stat(path, follow_symlinks=False).st_mode & _OTHERS:
        raise UsageProblem(f"others can read or write the private key {path}", hint=f"chmod 600 {path}")
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_key(str(path)) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(str(path))
    return key
