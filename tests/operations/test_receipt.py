"""Receipts and requests as files, between an isolated and a connected vault; and what a bundle leaves out for them."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from modelvault.artifact import Digest, FileSpec, Model, ModelName, Origin, Traits
from modelvault.bundle.format import encode
from modelvault.bundle.index import MAX_SEQUENCE, MIN_VOLUME, Index, Span
from modelvault.bundle.papers import PaperRefused, Receipt, Request, encode_receipt, encode_request
from modelvault.bundle.plan import PlanOptions
from modelvault.config import Config
from modelvault.errors import ModelvaultError, TrustRefused, UsageProblem, VaultLocked
from modelvault.keys import KeyRing, Role, Signer
from modelvault.locks import FileLock
from modelvault.operations.contents import BundleUnknown, answer, held_by, keep_index, selection
from modelvault.operations.keys import make_key, new_key, revoke_key, site_signer, trust_key
from modelvault.operations.papers import write_paper
from modelvault.operations.receipt import add_receipt, list_receipts, show_receipt, write_receipt
from modelvault.vault import Vault

OPTIONS = PlanOptions("models", 7, 2 * MIN_VOLUME)


def put(vault: Vault, name: str, files: dict[str, bytes]) -> None:
    """A model in a vault."""
    specs = tuple(FileSpec(path, len(data), vault.store.put_bytes(data)) for path, data in files.items())
    with vault.publishing():
        vault.publish(Model(ModelName(name), Origin("folder"), specs, Traits("gguf")), {})


def opened(root: Path, config: Config) -> Iterator[Vault]:
    with Vault.open(root, config=config) as vault:
        yield vault


@pytest.fixture
def pc(tmp_path: Path) -> Iterator[Vault]:
    """The connected vault, with two models that share a file."""
    for vault in opened(tmp_path / "pc", Config()):
        put(vault, "one", {"config.json": b"{}", "a.gguf": b"a" * 5000})
        put(vault, "two", {"config.json": b"{}", "b.gguf": b"b" * 7000})
        yield vault


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Vault]:
    """The isolated vault, which has the first model."""
    for vault in opened(tmp_path / "lab", Config(site="lab")):
        put(vault, "one", {"config.json": b"{}", "a.gguf": b"a" * 5000})
        yield vault


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    (tmp_path / "drive").mkdir()
    return tmp_path / "drive"


def introduce(pc: Vault, drive: Path, fingerprint: str, name: str = "lab") -> None:
    """Trust a site's key, as a person does who carried its fingerprint."""
    trust_key(pc, drive / f"{name}.pub", None, lambda: fingerprint, Role.RECEIPT)


def carry(lab: Vault, pc: Vault, drive: Path) -> Path:
    """A receipt on the drive, its key trusted on the connected side."""
    written = write_receipt(lab, drive)
    introduce(pc, drive, written.fingerprint)
    return written.path


def refused(work: Callable[[], object], kind: type[ModelvaultError], code: int, match: str) -> ModelvaultError:
    with pytest.raises(kind, match=match) as caught:
        work()
    assert caught.value.exit_code == code
    assert caught.value.hint
    return caught.value


def test_receipt_makes_the_next_bundle_thin(pc: Vault, lab: Vault, drive: Path) -> None:
    """Breaks if a receipt does not say what the site holds, or the next bundle brings that again."""
    written = write_receipt(lab, drive)
    assert (written.site, written.models, written.blobs, written.new_key) == ("lab", 1, 4, True)
    assert sorted(path.name for path in drive.iterdir()) == ["lab.pub", "lab.receipt.json", "lab.receipt.json.sig"]
    introduce(pc, drive, written.fingerprint)
    (drive / "._lab.receipt.json").write_bytes(b"what macOS leaves on a drive")
    added = add_receipt(pc, drive)
    assert [(model.name, model.here) for model in added.models] == [("one", "same")]
    assert add_receipt(pc, written.path).unchanged
    assert not write_receipt(lab, drive).new_key
    index = selection(pc, (), None, "lab", assume_sent=False).plan(OPTIONS)
    assert {blob.size for blob in index.base} == {2, 5000}
    assert 7000 in index.sizes.values()
    assert [line.site for line in list_receipts(pc).receipts] == ["lab"]
    assert show_receipt(pc, "lab").receipt.added_at


def test_receipts_tell_only_what_is_whole(lab: Vault, drive: Path) -> None:
    """Breaks if a model that lost a file is told to be there: the next bundle would leave out what the site needs."""
    put(lab, "two", {"config.json": b"{}", "b.gguf": b"b" * 7000})
    lab.store.blob_path(Digest.of_bytes(b"b" * 7000)).unlink()
    written = write_receipt(lab, drive)
    assert written.models == 1
    (warning,) = written.warnings
    assert "two is left out" in warning
    document = json.loads(written.path.read_bytes())
    assert str(Digest.of_bytes(b"b" * 7000)) not in document["blobs"]
    assert str(Digest.of_bytes(b"a" * 5000)) in document["blobs"]


def test_places_for_a_receipt(lab: Vault, drive: Path) -> None:
    """Breaks if a receipt lands somewhere else than where the user said, or over something that is none."""
    assert write_receipt(lab, drive / "mine.json").path == drive / "mine.json"
    for bad in (drive / "absent" / "x.json", drive / "absent", drive / "notes.txt"):
        refused(lambda bad=bad: write_receipt(lab, bad), UsageProblem, 2, "no directory")  # type: ignore[misc]
    assert sorted(path.name for path in drive.iterdir()) == ["lab.pub", "mine.json", "mine.json.sig"]


def test_a_stick_that_knows_no_modes(lab: Vault, drive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a paper cannot be written to a FAT or exFAT stick that root mounted: nobody else may set a mode there."""
    make_key(lab, "lab", Role.RECEIPT)

    def refuse(*_: object) -> NoReturn:
        raise PermissionError(errno.EPERM, "operation not permitted")

    monkeypatch.setattr(os, "fchmod", refuse)
    assert write_receipt(lab, drive).path.exists()


def test_site_names(lab: Vault, drive: Path) -> None:
    """Breaks if a site changes its name by a flag, or takes one that is no file name: its key is trusted under the old one."""
    refused(lambda: site_signer(lab, "../x"), UsageProblem, 2, "not a site's name")
    write_receipt(lab, drive)
    refused(lambda: write_receipt(lab, drive, "elsewhere"), UsageProblem, 2, "is called lab, not elsewhere")
    refused(lambda: new_key(lab, "lab.", Role.RECEIPT), UsageProblem, 2, "not a site's name")


def test_sequences_grow_when_the_clock_goes_back(lab: Vault, drive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a receipt written after the clock was set back counts as older than the one before."""
    first = write_receipt(lab, drive).sequence
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    assert write_receipt(lab, drive).sequence == first + 1


def test_receipts_that_are_refused(pc: Vault, lab: Vault, drive: Path) -> None:
    """Breaks if a receipt counts that is not signed, not by a known key, or was edited."""
    written = write_receipt(lab, drive)
    error = refused(lambda: add_receipt(pc, drive), TrustRefused, 14, "not by a key that is trusted")
    assert f"keys trust {drive / 'lab.pub'} --role receipt" in str(error.hint)
    introduce(pc, drive, written.fingerprint)
    raw = written.path.read_bytes()
    written.path.write_bytes(raw.replace(b'"sequence":1', b'"sequence":2'))
    refused(lambda: add_receipt(pc, drive), TrustRefused, 14, "signed bytes were changed")
    written.path.write_bytes(raw)
    signature = written.path.with_name("lab.receipt.json.sig")
    kept = signature.read_bytes()
    signature.unlink()
    refused(lambda: add_receipt(pc, drive), TrustRefused, 14, "not signed")
    signature.write_bytes(kept + b"\0")
    refused(lambda: add_receipt(pc, drive), TrustRefused, 14, "refused")
    signature.write_bytes(kept)
    assert not pc.receipts.exists()
    (drive / "other.receipt.json").write_bytes(b"")
    refused(lambda: add_receipt(pc, drive), UsageProblem, 2, "several")
    refused(lambda: add_receipt(pc, drive / "absent.json"), UsageProblem, 2, "there is no")
    written.path.unlink()
    written.path.symlink_to(drive / "lab.pub")
    refused(lambda: add_receipt(pc, written.path), TrustRefused, 14, "not a regular file")


def test_wrong_role(pc: Vault, lab: Vault, drive: Path) -> None:
    """Breaks if the key that signs bundles can also speak for a site."""
    signer = lab.keys.new("default")
    receipt = Receipt("default", 1, (), ())
    write_paper(drive, receipt.file_name, encode_receipt(receipt), signer)
    trust_key(pc, drive / "default.pub", None, lambda: signer.fingerprint)
    error = refused(lambda: add_receipt(pc, drive), TrustRefused, 14, "whose key is for bundles")
    assert "--role receipt" in str(error.hint)


def test_another_sites_name(pc: Vault, lab: Vault, drive: Path) -> None:
    """Breaks if one site can speak for another, or a key trusted under a wrong name passes for that site."""
    written = write_receipt(lab, drive)
    trust_key(pc, drive / "lab.pub", "annex", lambda: written.fingerprint, Role.RECEIPT)
    error = refused(lambda: add_receipt(pc, drive), TrustRefused, 14, "speaks for the site lab, but is signed")
    assert "--name lab" in str(error.hint)


def test_older_receipts(pc: Vault, lab: Vault, drive: Path, tmp_path: Path) -> None:
    """Breaks if an old receipt takes the place of a newer one unasked: the site may have removed what it lists."""
    old = shutil.copytree(drive, tmp_path / "old", dirs_exist_ok=True)
    carry(lab, pc, old)
    put(lab, "two", {"config.json": b"{}", "b.gguf": b"b" * 7000})
    write_receipt(lab, drive)
    add_receipt(pc, drive)
    refused(lambda: add_receipt(pc, old), TrustRefused, 14, "was added already")
    assert show_receipt(pc, "lab").receipt.models == 2
    assert add_receipt(pc, old, allow_older=True).receipt.models == 1
    assert show_receipt(pc, "lab").receipt.models == 1
    (pc.receipts / f"{Digest.of_bytes((old / 'lab.receipt.json').read_bytes()).hex}.json.sig").unlink()
    refused(lambda: show_receipt(pc, "lab"), TrustRefused, 14, "not signed")
    assert not add_receipt(pc, old).unchanged
    assert add_receipt(pc, drive).receipt.models == 2
    assert len(list(pc.receipts.glob("*.json"))) == 1


def signed(signer: Signer, sequence: int, folder: Path) -> Path:
    """A receipt of any sequence, as whoever has the site's key can write it."""
    folder.mkdir(exist_ok=True)
    receipt = Receipt("lab", sequence, (), ())
    return write_paper(folder, receipt.file_name, encode_receipt(receipt), signer)


def test_the_mark_of_a_site_can_be_lowered(pc: Vault, tmp_path: Path) -> None:
    """Breaks if whoever had a site's key for a moment can shut that site out for good with one receipt from far ahead."""
    key = KeyRing(tmp_path / "site").new("lab", Role.RECEIPT)
    pc.keys.trust("lab", key.public_pem, key.fingerprint, Role.RECEIPT)
    add_receipt(pc, signed(key, MAX_SEQUENCE, tmp_path / "far"))
    older = signed(key, 400, tmp_path / "older")
    refused(lambda: add_receipt(pc, older), TrustRefused, 14, "was added already")
    add_receipt(pc, older, allow_older=True)
    add_receipt(pc, signed(key, 500, tmp_path / "newer"))
    refused(lambda: add_receipt(pc, older), TrustRefused, 14, "but 500 of lab")
    add_receipt(pc, tmp_path / "far")
    revoke_key(pc, "lab")
    fresh = KeyRing(tmp_path / "again").new("lab", Role.RECEIPT)
    pc.keys.trust("lab", fresh.public_pem, fresh.fingerprint, Role.RECEIPT)
    assert add_receipt(pc, signed(fresh, 600, tmp_path / "fresh")).receipt.sequence == 600


def test_killed_at_every_write(pc: Vault, tmp_path: Path) -> None:
    """Breaks if SIGKILL anywhere in `receipt add` leaves a receipt that is half the old one, or that counts without a mark against older ones."""
    key = KeyRing(tmp_path / "site").new("lab", Role.RECEIPT)
    pc.keys.trust("lab", key.public_pem, key.fingerprint, Role.RECEIPT)
    add_receipt(pc, signed(key, 1, tmp_path / "r1"))
    died, newest, steps = True, 1, 0
    while died:
        sequence = newest + 10
        file = signed(key, sequence, tmp_path / f"r{sequence}")
        died = dies_at(steps, pc.root, file)
        counts = show_receipt(pc, "lab").receipt.sequence
        assert counts in {newest, sequence}
        if counts == sequence:
            refused(lambda: add_receipt(pc, tmp_path / "r1"), TrustRefused, 14, "was added already")
        assert add_receipt(pc, file).receipt.sequence == sequence
        refused(lambda: add_receipt(pc, tmp_path / "r1"), TrustRefused, 14, f"but {sequence} of lab")
        newest, steps = sequence, steps + 1
    assert steps > 5


_DYING = """
import os, signal, sys
from pathlib import Path
from modelvault.operations.receipt import add_receipt
from modelvault.vault import Vault

left = int(sys.argv[3])

def count(event, arguments):
    global left
    flags = arguments[2] if event == "open" else 0
    writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
    if writes or event in {"os.rename", "os.remove", "os.mkdir", "os.truncate"}:
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

with Vault.existing(Path(sys.argv[1])) as vault:
    vault.registry, vault.keys
    sys.addaudithook(count)
    add_receipt(vault, Path(sys.argv[2]))
"""


def dies_at(step: int, vault: Path, file: Path) -> bool:
    """Add a receipt in a process that kills itself just before one of the steps at which it touches the disk; tell whether it did."""
    command = [sys.executable, "-c", _DYING, str(vault), str(file), str(step)]
    code = subprocess.run(command, timeout=60, check=False).returncode
    assert code in {0, -signal.SIGKILL}
    return code != 0


def test_receipts_one_after_the_other(pc: Vault, tmp_path: Path) -> None:
    """Breaks if two commands take in receipts at the same moment: the older could stay."""
    key = KeyRing(tmp_path / "site").new("lab", Role.RECEIPT)
    pc.keys.trust("lab", key.public_pem, key.fingerprint, Role.RECEIPT)
    file = signed(key, 1, tmp_path / "r1")
    pc.receipts.mkdir()
    hurried = Vault.existing(pc.root, config=Config(lock_wait=0))
    with FileLock(pc.receipts / "lock"):
        refused(lambda: add_receipt(hurried, file), VaultLocked, 11, "in use")
    assert add_receipt(pc, file)


def test_revoked_sites(pc: Vault, lab: Vault, drive: Path) -> None:
    """Breaks if the receipt of a site whose key was taken back still decides what is left out."""
    add_receipt(pc, carry(lab, pc, drive))
    revoke_key(pc, "lab")
    refused(lambda: held_by(pc, "lab", assume_sent=False), TrustRefused, 14, "not by a key")
    listed = list_receipts(pc)
    assert listed.receipts == ()
    assert "does not count" in listed.warnings[0]


def test_sites_that_were_never_heard_of(pc: Vault) -> None:
    """Breaks if a misspelled site gets everything, or nothing, without a word."""
    error = refused(lambda: held_by(pc, "lab", assume_sent=False), UsageProblem, 2, "no receipt of lab")
    assert "--assume-sent" in str(error.hint)
    refused(lambda: held_by(pc, "../x", assume_sent=True), UsageProblem, 2, "not a site's name")
    refused(lambda: selection(pc, (), None, None, assume_sent=True), UsageProblem, 2, "needs a site")
    refused(lambda: show_receipt(pc, "lab"), UsageProblem, 2, "no receipt of lab")


def sent(pc: Vault, index: Index, **data: str) -> Digest:
    """Record a bundle as ``bundle`` does."""
    keep_index(pc, index)
    digest = Digest.of_bytes(encode(index))
    pc.record("bundle-written", {"index": digest.hex, "label": index.label, "sequence": index.sequence, **data})
    return digest


def test_what_was_sent(pc: Vault) -> None:
    """Breaks if a site that lets nothing out gets everything every time, or less than it was sent; other sites' bundles do not count."""
    assert held_by(pc, "lab", assume_sent=True) == frozenset()
    first = selection(pc, (ModelName("one"),), None, "lab", assume_sent=True).plan(OPTIONS)
    assert not first.base
    sent(pc, first, site="lab")
    sent(pc, selection(pc, (ModelName("two"),), None, "annex", assume_sent=True).plan(OPTIONS), site="annex")
    second = selection(pc, (), None, "lab", assume_sent=True).plan(OPTIONS)
    assert {blob.size for blob in second.base} == {2, 5000}
    sent(pc, second, site="lab")
    third = selection(pc, (), None, "lab", assume_sent=True).plan(OPTIONS)
    assert {blob.size for blob in third.base} == {2, 5000, 7000}


def test_lost_records_leave_nothing_out(pc: Vault) -> None:
    """Breaks if a lost or edited record of a bundle stops the next one, or leaves out what was never sent."""
    index = selection(pc, (ModelName("one"),), None, None, assume_sent=False).plan(OPTIONS)
    digest = sent(pc, index, site="lab")
    kept = pc.bundles / f"{digest.hex}.json"
    assert kept.stat().st_mode & 0o777 == 0o444
    kept.chmod(0o644)
    kept.write_bytes(kept.read_bytes().replace(b'"models"', b'"modelz"'))
    assert held_by(pc, "lab", assume_sent=True) == frozenset()
    keep_index(pc, index)
    assert held_by(pc, "lab", assume_sent=True)
    kept.unlink()
    assert held_by(pc, "lab", assume_sent=True) == frozenset()


def ask(lab: Vault, drive: Path, index: Digest, *pieces: Span) -> Path:
    """A request on the drive."""
    signer, _ = site_signer(lab, None)
    request = Request(signer.name, index, "models", 7, pieces)
    return write_paper(drive, request.file_name, encode_request(request), signer)


def test_answers(pc: Vault, lab: Vault, drive: Path) -> None:
    """Breaks if a request is not answered with just the pieces it asks for, whichever side's key signed the bundle."""
    original = selection(pc, (), None, None, assume_sent=False).plan(OPTIONS)
    digest = sent(pc, original)
    wanted = Span(Digest.of_bytes(b"b" * 7000), 512, 100)
    file = ask(lab, drive, digest, wanted)
    refused(lambda: answer(pc, file, None), TrustRefused, 14, "not by a key")
    introduce(pc, drive, site_signer(lab, None)[0].fingerprint)
    found = answer(pc, drive, None)
    assert (found.label, found.site) == ("models-patch", "lab")
    index = found.plan(OPTIONS)
    assert (index.patches, [entry.name.text for entry in index.models]) == (digest, ["two"])
    assert [(member.digest, member.offset, member.size) for member in index.volumes[0][2:]] == [(wanted.blob, 512, 100)]


def test_requests_that_are_refused(pc: Vault, lab: Vault, drive: Path) -> None:
    """Breaks if a request gets an answer that cannot be right: for another bundle, beyond a blob, for what is gone, or edited."""
    original = selection(pc, (), None, None, assume_sent=False).plan(OPTIONS)
    digest = sent(pc, original)
    blob = Digest.of_bytes(b"b" * 7000)
    introduce_once = ask(lab, drive, digest, Span(blob, 0, 10))
    introduce(pc, drive, site_signer(lab, None)[0].fingerprint)
    assert answer(pc, introduce_once, None).plan(OPTIONS)
    other = Digest.of_bytes(b"of another PC")
    error = refused(
        lambda: answer(pc, ask(lab, drive, other, Span(blob, 0, 10)), None), BundleUnknown, 10, "did not write"
    )
    assert "the PC that wrote" in str(error.hint)
    for span in (Span(blob, 6999, 2), Span(blob, 1 << 50, 1), Span(other, 0, 1)):
        file = ask(lab, drive, digest, span)
        refused(lambda file=file: answer(pc, file, None).plan(OPTIONS), PaperRefused, 14, "does not have")  # type: ignore[misc]
    file = ask(lab, drive, digest, Span(blob, 0, 10))
    file.write_bytes(file.read_bytes().replace(b",0,10]", b",0,20]"))
    refused(lambda: answer(pc, file, None), TrustRefused, 14, "changed")
    receipt = write_receipt(lab, drive).path
    refused(lambda: answer(pc, receipt, None), PaperRefused, 14, "is wanted")
    refused(lambda: add_receipt(pc, ask(lab, drive, digest, Span(blob, 0, 10))), PaperRefused, 14, "is wanted")
    mending = answer(pc, ask(lab, drive, digest, Span(blob, 0, 10)), None)
    patch = sent(pc, mending.plan(OPTIONS), patches=digest.hex)
    of_patch = ask(lab, drive, patch, Span(blob, 0, 10))
    refused(lambda: answer(pc, of_patch, None), PaperRefused, 14, "is a patch")
    pc.store.blob_path(blob).unlink()
    file = ask(lab, drive, digest, Span(blob, 0, 10))
    error = refused(lambda: answer(pc, file, None), BundleUnknown, 10, r"b\.gguf of two is not in the vault any more")
    assert "pull or add again" in str(error.hint)
