"""Keys: made once, trusted only by a fingerprint that a person typed, refused when anything is odd about them."""

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from modelvault.errors import TrustRefused, UsageProblem
from modelvault.keys import KeyInfo, KeyRing, Role, read_key_file

MESSAGE = b"the index of a bundle"


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    return KeyRing(tmp_path / "keys")


@pytest.fixture
def other(tmp_path: Path) -> KeyRing:
    return KeyRing(tmp_path / "other")


def test_new(ring: KeyRing, tmp_path: Path) -> None:
    """A new key signs at once, is private to its owner, and is never overwritten."""
    signer = ring.new("pc")
    private, public = tmp_path / "keys" / "pc.key", tmp_path / "keys" / "pc.pub"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert public.read_bytes() == signer.public_pem
    assert len(signer.sign(MESSAGE)) == 64
    assert ring.verify(signer.sign(MESSAGE), MESSAGE) == signer.info
    assert ring.signer().fingerprint == signer.fingerprint
    with pytest.raises(UsageProblem, match="already"):
        ring.new("pc")
    assert ring.own() == ring.list() == (signer.info,)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "-x", "a b", "x" * 65, "a\n"])
def test_bad_names(ring: KeyRing, name: str) -> None:
    """A key's name becomes a file's name: nothing else gets that far."""
    with pytest.raises(UsageProblem):
        ring.new(name)


def test_openssl_agrees(ring: KeyRing, tmp_path: Path) -> None:
    """Signature and fingerprint are what stock openssl computes: people without modelvault check them that way."""
    signer = ring.new("pc")
    (tmp_path / "m").write_bytes(MESSAGE)
    (tmp_path / "s").write_bytes(signer.sign(MESSAGE))
    public = str(signer.info.path)
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-in", str(tmp_path / "m")]
    subprocess.run([*command, "-sigfile", str(tmp_path / "s")], check=True, capture_output=True)
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", public, "-outform", "DER"], check=True, capture_output=True
    ).stdout
    digest = subprocess.run(["sha256sum"], input=der, check=True, capture_output=True).stdout.split()[0].decode()
    assert signer.fingerprint == f"sha256:{digest}"


def test_several_keys(ring: KeyRing) -> None:
    """With no key or several, the choice is the user's, and the error says so."""
    with pytest.raises(UsageProblem, match="no signing key"):
        ring.signer()
    ring.new("a")
    ring.new("b")
    with pytest.raises(UsageProblem, match="a, b"):
        ring.signer()
    assert ring.signer("b").name == "b"
    with pytest.raises(UsageProblem, match="no signing key c"):
        ring.signer("c")


SPELLINGS: dict[str, Callable[[str], str]] = {
    "as stored": lambda digits: f"sha256:{digits}",
    "bare": lambda digits: digits,
    "upper case": lambda digits: digits.upper(),
    "prefix in upper case": lambda digits: f"SHA256:{digits}",
    "spaces": lambda digits: " ".join(digits[start : start + 4] for start in range(0, 64, 4)),
    "colons": lambda digits: ":".join(digits[start : start + 2] for start in range(0, 64, 2)),
    "dashes and lines": lambda digits: f"  {digits[:32]}-\n{digits[32:]}\n",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_trust(ring: KeyRing, other: KeyRing, spelling: str) -> None:
    """A fingerprint counts however it is grouped; then the other side's signatures count, and not before."""
    signer = other.new("pc")
    with pytest.raises(TrustRefused):
        ring.verify(signer.sign(MESSAGE), MESSAGE)
    digits = signer.fingerprint.removeprefix("sha256:")
    trusted = ring.trust("pc", signer.public_pem, SPELLINGS[spelling](digits))
    assert (trusted.name, trusted.fingerprint, trusted.own) == ("pc", signer.fingerprint, False)
    assert ring.verify(signer.sign(MESSAGE), MESSAGE) == trusted
    assert ring.list() == (trusted,)
    assert ring.trust("pc", signer.public_pem, " ".join(trusted.spelled)) == trusted


@pytest.mark.parametrize("role", list(Role))
def test_a_trusted_key_keeps_its_name(ring: KeyRing, other: KeyRing, role: Role) -> None:
    """Breaks if a key that is known stays under its old name without a word: for a site, the name decides what it may say."""
    signer = other.new("pc", role)
    ring.trust("pc", signer.public_pem, signer.fingerprint, role)
    with pytest.raises(UsageProblem, match="trusted here as pc") as caught:
        ring.trust("lab", signer.public_pem, signer.fingerprint, role)
    assert "keys revoke pc" in str(caught.value.hint)
    ring.revoke("pc")
    assert ring.trust("lab", signer.public_pem, signer.fingerprint, role).name == "lab"


@pytest.mark.parametrize(
    "given", ["", "sha256:", "0" * 64, "0" * 63, "zz" * 32, "half", "half more", "sha512:" + "0" * 64]
)
def test_trust_refused(ring: KeyRing, other: KeyRing, given: str) -> None:
    """A wrong or partial fingerprint is refused with exit 14, and the refusal does not give the right one away."""
    signer = other.new("pc")
    digits = signer.fingerprint.removeprefix("sha256:")
    typed = {"half": digits[:32], "half more": digits + "00"}.get(given, given)
    with pytest.raises(TrustRefused) as caught:
        ring.trust("pc", signer.public_pem, typed)
    assert caught.value.exit_code == 14
    shown = f"{caught.value.message} {caught.value.hint} {caught.value.data}".replace(" ", "")
    assert not any(digits[start : start + 8] in shown for start in range(56))
    assert ring.list() == ()


def test_signatures_that_do_not_count(ring: KeyRing) -> None:
    """A changed message, a changed signature, one of another length: exit 14."""
    signature = ring.new("pc").sign(MESSAGE)
    for bad in (signature[:-1], signature + b"\0", b"", bytes(64), bytes([signature[0] ^ 1]) + signature[1:]):
        with pytest.raises(TrustRefused):
            ring.verify(bad, MESSAGE)
    with pytest.raises(TrustRefused):
        ring.verify(signature, MESSAGE + b"\n")


def test_revoke(ring: KeyRing, other: KeyRing) -> None:
    """A revoked key no longer counts; an own key is not thrown away by that verb."""
    mine = ring.new("mine")
    signer = other.new("pc")
    ring.trust("pc", signer.public_pem, signer.fingerprint)
    assert ring.revoke("pc").fingerprint == signer.fingerprint
    with pytest.raises(TrustRefused):
        ring.verify(signer.sign(MESSAGE), MESSAGE)
    ring.trust("pc", signer.public_pem, signer.fingerprint)
    ring.revoke(" ".join(signer.info.spelled))
    assert ring.list() == (mine.info,)
    with pytest.raises(UsageProblem, match="own key"):
        ring.revoke("mine")
    with pytest.raises(UsageProblem, match="no key"):
        ring.revoke("nobody")
    assert ring.signer().sign(MESSAGE) == mine.sign(MESSAGE)


def test_names_that_clash(ring: KeyRing, other: KeyRing, tmp_path: Path) -> None:
    """A second key under a trusted name does not replace the first; one name for two keys is asked back."""
    first, second = other.new("pc"), KeyRing(tmp_path / "third").new("pc")
    ring.trust("pc", first.public_pem, first.fingerprint)
    with pytest.raises(UsageProblem, match="another key"):
        ring.trust("pc", second.public_pem, second.fingerprint)
    assert ring.find("pc").fingerprint == first.fingerprint
    ring.new("pc")
    with pytest.raises(UsageProblem, match="two keys"):
        ring.find("pc")
    assert ring.find(first.fingerprint).own is False


def test_crash_between_the_two_files(ring: KeyRing, tmp_path: Path) -> None:
    """A private key whose public half was never written works, and gets it back."""
    signer = ring.new("pc")
    public = tmp_path / "keys" / "pc.pub"
    public.unlink()
    assert ring.verify(signer.sign(MESSAGE), MESSAGE).fingerprint == signer.fingerprint
    ring.signer()
    assert public.read_bytes() == signer.public_pem


def test_public_half_of_another(ring: KeyRing, other: KeyRing, tmp_path: Path) -> None:
    """A .pub that is not the .key's is found out before anything is signed under the wrong name."""
    ring.new("pc")
    (tmp_path / "keys" / "pc.pub").write_bytes(other.new("x").public_pem)
    with pytest.raises(UsageProblem, match="not the public half"):
        ring.signer("pc")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_open_permissions(ring: KeyRing, tmp_path: Path, mode: int) -> None:
    """A private key that others can read or write does not sign."""
    ring.new("pc")
    (tmp_path / "keys" / "pc.key").chmod(mode)
    with pytest.raises(UsageProblem, match="others can") as caught:
        ring.signer()
    assert "chmod 600" in (caught.value.hint or "")


def _pem(key: "rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey") -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _foreign_keys() -> dict[str, bytes]:
    mine = ed25519.Ed25519PrivateKey.generate()
    private = mine.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {
        "rsa": _pem(rsa.generate_private_key(65537, 2048).public_key()),
        "ec": _pem(ec.generate_private_key(ec.SECP256R1()).public_key()),
        "private": private,
        "empty": b"",
        "text": b"not a key\n",
        "torn": _pem(mine.public_key())[:60],
        "large": _pem(mine.public_key()) + b"\n" * 20_000,
        "binary": os.urandom(100),
    }


@pytest.mark.parametrize("kind", ["rsa", "ec", "private", "empty", "text", "torn", "large", "binary"])
def test_files_that_are_no_key(ring: KeyRing, tmp_path: Path, kind: str) -> None:
    """Anything but an Ed25519 public key is refused on trusting it; among the trusted it is named and costs no other key."""
    data = _foreign_keys()[kind]
    with pytest.raises(UsageProblem):
        ring.trust("pc", data, "0" * 64)
    trusted = tmp_path / "keys" / "trusted"
    trusted.mkdir(parents=True)
    (trusted / "odd.pub").write_bytes(data)
    signer = ring.new("pc")
    assert ring.verify(signer.sign(MESSAGE), MESSAGE).name == "pc"
    assert [info.name for info in ring.list()] == ["pc"]
    (problem,) = ring.broken()
    assert "odd.pub" in problem


def test_a_broken_own_key_is_not_replaced_by_another(ring: KeyRing, tmp_path: Path) -> None:
    """A damaged signing key stops signing: a new one, made in its place without a word, would not be trusted anywhere."""
    ring.new("old")
    (tmp_path / "keys" / "old.pub").write_bytes(b"")
    with pytest.raises(UsageProblem, match=r"old\.pub"):
        ring.signer()
    ring.new("new")
    with pytest.raises(UsageProblem, match=r"old\.pub"):
        ring.signer()
    assert ring.signer("new").name == "new"
    assert [info.name for info in ring.list()] == ["new"]


def test_private_keys_that_are_none(ring: KeyRing, tmp_path: Path) -> None:
    """A private key of another kind, encrypted or garbled does not sign, and the error names the file."""
    ring.new("pc")
    path = tmp_path / "keys" / "pc.key"
    encrypted = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )
    foreign = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for data in (encrypted, foreign, b"", b"garbage"):
        path.write_bytes(data)
        with pytest.raises(UsageProblem, match=r"pc\.key"):
            ring.signer()


def test_links_and_fifos(ring: KeyRing, other: KeyRing, tmp_path: Path) -> None:
    """A link or a FIFO in the place of a key does not count, and does not hang."""
    target = other.new("x").info.path
    trusted = tmp_path / "keys" / "trusted"
    trusted.mkdir(parents=True)
    (trusted / "link.pub").symlink_to(target)
    os.mkfifo(trusted / "pipe.pub")
    assert ring.list() == ()
    link, pipe = ring.broken()
    assert ("link.pub" in link, "pipe.pub" in pipe) == (True, True)
    with pytest.raises(UsageProblem):
        read_key_file(tmp_path / "absent")


def test_spelled() -> None:
    """People type what is shown: groups of four, and the spelling is accepted as it stands."""
    info = KeyInfo("pc", "sha256:" + "0123456789abcdef" * 4, own=True, path=Path("x"))
    assert info.spelled == ("0123-4567-89ab-cdef-0123-4567-89ab-cdef",) * 2


def test_a_key_counts_in_its_role_only(ring: KeyRing, other: KeyRing) -> None:
    """Breaks if a site's key can sign bundles, or a bundle key speaks for a site: the refusal says whose key it is."""
    site, sender = other.new("lab", Role.RECEIPT), other.new("pc")
    ring.trust("lab", site.public_pem, site.fingerprint, Role.RECEIPT)
    ring.trust("pc", sender.public_pem, sender.fingerprint)
    assert ring.verify(site.sign(MESSAGE), MESSAGE, Role.RECEIPT).name == "lab"
    assert ring.verify(sender.sign(MESSAGE), MESSAGE, Role.BUNDLE).name == "pc"
    for signer, role in ((site, Role.BUNDLE), (sender, Role.RECEIPT)):
        with pytest.raises(
            TrustRefused, match=f"by {signer.name}, whose key is for .*not count for a {role}"
        ) as caught:
            ring.verify(signer.sign(MESSAGE), MESSAGE, role)
        assert caught.value.exit_code == 14
        with pytest.raises(TrustRefused, match="a key has one role"):
            ring.trust("again", signer.public_pem, signer.fingerprint, role)
    assert [(info.name, info.role) for info in ring.list()] == [("pc", Role.BUNDLE), ("lab", Role.RECEIPT)]


def test_keys_of_both_roles_side_by_side(ring: KeyRing, other: KeyRing, tmp_path: Path) -> None:
    """Breaks if a site's key takes the place of the signing key, by lying in the same vault or under the same name."""
    bundles, receipts = ring.new("lab"), ring.new("lab", Role.RECEIPT)
    assert ring.signer().fingerprint == bundles.fingerprint
    assert ring.signer(None, Role.RECEIPT).fingerprint == receipts.fingerprint
    assert ring.own() == (bundles.info,)
    assert ring.own(Role.RECEIPT) == (receipts.info,)
    assert stat.S_IMODE((tmp_path / "keys" / "site" / "lab.key").stat().st_mode) == 0o600
    with pytest.raises(UsageProblem, match="two keys"):
        ring.find("lab")
    one, two = other.new("x"), other.new("x", Role.RECEIPT)
    ring.trust("x", one.public_pem, one.fingerprint)
    ring.trust("x", two.public_pem, two.fingerprint, Role.RECEIPT)
    with pytest.raises(UsageProblem, match="two keys"):
        ring.revoke("x")
    assert ring.revoke(two.fingerprint).role is Role.RECEIPT
    assert ring.revoke("x").fingerprint == one.fingerprint


def test_a_site_with_a_new_key(ring: KeyRing, other: KeyRing, tmp_path: Path) -> None:
    """Breaks if a site that was set up anew takes over its old name without a person's word."""
    old, new = other.new("lab", Role.RECEIPT), KeyRing(tmp_path / "third").new("lab", Role.RECEIPT)
    ring.trust("lab", old.public_pem, old.fingerprint, Role.RECEIPT)
    with pytest.raises(TrustRefused, match="not by a key"):
        ring.verify(new.sign(MESSAGE), MESSAGE, Role.RECEIPT)
    with pytest.raises(UsageProblem, match="another key") as caught:
        ring.trust("lab", new.public_pem, new.fingerprint, Role.RECEIPT)
    assert "revoke lab" in (caught.value.hint or "")
    ring.revoke("lab")
    ring.trust("lab", new.public_pem, new.fingerprint, Role.RECEIPT)
    assert ring.verify(new.sign(MESSAGE), MESSAGE, Role.RECEIPT).name == "lab"
    with pytest.raises(TrustRefused):
        ring.verify(old.sign(MESSAGE), MESSAGE, Role.RECEIPT)


def test_hints_lead_out(ring: KeyRing, other: KeyRing) -> None:
    """Breaks if the one command that an error names would revoke a key that is good, or send somebody away for a new one for nothing."""
    first, second = other.new("default"), other.new("second")
    ring.trust("default", first.public_pem, first.info.fingerprint)
    with pytest.raises(UsageProblem) as caught:
        ring.trust("default", second.public_pem, second.info.fingerprint)
    assert "--name" in str(caught.value.hint)
    with pytest.raises(TrustRefused) as refused:
        ring.verify(first.sign(MESSAGE), MESSAGE, Role.RECEIPT)
    assert "modelvault keys revoke default" in str(refused.value.hint)
    assert "--role receipt" in str(refused.value.hint)
