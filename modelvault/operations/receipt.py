"""``receipt``: what a site holds, written there and added on the connected side, so that the next bundle brings only the rest."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from modelvault.artifact import Digest
from modelvault.bundle.drive import put
from modelvault.bundle.papers import Receipt, check_site, decode_receipt, encode_receipt
from modelvault.bundle.plan import next_sequence
from modelvault.errors import ModelvaultError, TrustRefused, UsageProblem
from modelvault.eventlog import Event
from modelvault.locks import locked_directory
from modelvault.operations.keys import site_signer
from modelvault.operations.papers import RECEIPT_SUFFIX, SignedPaper, place_of, read_paper, write_paper
from modelvault.results.papers import ReceiptLine, ReceiptResult, ReceiptsResult, ReceiptWritten, SiteModel
from modelvault.vault import Vault

_WRITTEN = "receipt-written"
_ADDED = "receipt-added"


def write_receipt(vault: Vault, path: Path, site: str | None = None) -> ReceiptWritten:
    """Write what this vault holds to ``path``, a file or a directory, signed by the key of this site.

    A model of which a blob is missing or cut off is left out, with a warning; nothing is hashed. Raises ``UsageProblem`` for a place that
    is none or another site's name, ``NoSpace``, ``OSError``.
    """
    path = path.absolute()
    with vault.holding():
        signer, made = site_signer(vault, site)
        stored, damaged = vault.store.survey()
        warnings = [f"{entry.name} is left out: {error.message}" for entry, error in damaged.items()]
        models, blobs = [], dict[Digest, int]()
        for model in stored:
            needed = vault.store.blobs_of(model.manifest)
            here = {blob: size for blob, size in needed.items() if vault.store.has(blob, size)}
            blobs |= here
            if here == needed:
                models.append((model.model.name, model.manifest))
            else:
                warnings.append(f"{model.model.name} is left out: {len(needed) - len(here)} of its files are not whole")
    with _alone(vault):
        receipt = Receipt(
            site=signer.name,
            sequence=next_sequence(_newest_written(vault, signer.name), time.time()),
            models=tuple(sorted(models, key=lambda model: model[0].text)),
            blobs=tuple(sorted(blobs, key=str)),
        )
        raw = encode_receipt(receipt)
        file = place_of(path, receipt.file_name)
        # The event first: a sequence that was told to anyone is never given again.
        vault.record(_WRITTEN, {**_facts(receipt, raw, signer.fingerprint), "path": str(file)})
        write_paper(file, receipt.file_name, raw, signer)
    return ReceiptWritten(
        vault=vault.root,
        path=file,
        site=receipt.site,
        sequence=receipt.sequence,
        models=len(models),
        blobs=len(blobs),
        size=sum(blobs.values()),
        fingerprint=signer.fingerprint,
        spelled=signer.info.spelled,
        new_key=made,
        warnings=tuple(warnings),
    )


def add_receipt(vault: Vault, path: Path, *, allow_older: bool = False) -> ReceiptResult:
    """Take in the receipt of a site, in place of an older one: it counts from its event on, when both of its files are there.

    Raises ``TrustRefused`` if it is not by the trusted key of that site, or older than the last that this key had added.
    """
    signed = read_paper(vault, path, decode_receipt, suffix=RECEIPT_SUFFIX)
    receipt, facts = signed.paper, _facts(signed.paper, signed.raw, signed.key.fingerprint)
    with _alone(vault):
        added = _added(vault, receipt.site)
        current = bool(added) and added[-1].data["digest"] == facts["digest"]
        by_key = [event.data for event in added if event.data["key"] == signed.key.fingerprint]
        newest = int(by_key[-1]["sequence"]) if by_key else 0
        if receipt.sequence <= newest and by_key[-1]["digest"] != facts["digest"] and not allow_older:
            raise TrustRefused(
                f"{path} has sequence {receipt.sequence}, but {newest} of {receipt.site} was added already",
                hint="have a new one written at the site; if it was set up anew, add this one with --allow-older",
                sequence=receipt.sequence,
                newest=newest,
            )
        file = _file(vault, str(facts["digest"]))
        kept = [put(vault.receipts, f"{file.name}.sig", signed.signature), put(vault.receipts, file.name, signed.raw)]
        if not current:
            vault.record(_ADDED, facts)
            for old in {_file(vault, event.data["digest"]) for event in added} - {file}:
                for gone in (old.with_name(f"{old.name}.sig"), old):
                    if gone.exists():
                        gone.unlink()
    return _result(vault, signed, unchanged=current and not any(kept))


def _alone(vault: Vault) -> contextlib.AbstractContextManager[None]:
    """Have the receipts, and the events about them, to ourselves."""
    return locked_directory(vault.receipts, wait=vault.config.lock_wait, what="the receipts of the vault")


def _file(vault: Vault, digest: str) -> Path:
    return vault.receipts / f"{digest}.json"


def list_receipts(vault: Vault) -> ReceiptsResult:
    """Give the newest receipt of each site."""
    lines, warnings = [], []
    for site in sorted({str(event.data["site"]) for event in _about(vault, _ADDED)}):
        try:
            lines.append(_line(vault, _newest(vault, site)))
        except ModelvaultError as error:
            warnings.append(f"{error.message}: it does not count")
    return ReceiptsResult(vault.root, tuple(lines), tuple(warnings))


def show_receipt(vault: Vault, site: str) -> ReceiptResult:
    """Give the newest receipt of a site. Raises ``UsageProblem`` if there is none, ``TrustRefused`` if its key does not count any more."""
    return _result(vault, _newest(vault, check_site(site)))


def newest_receipt(vault: Vault, site: str) -> Receipt | None:
    """Give the receipt of a site that was added last, or ``None``. Raises as ``show_receipt`` does."""
    return _newest(vault, site).paper if _added(vault, check_site(site)) else None


def _newest(vault: Vault, site: str) -> SignedPaper[Receipt]:
    added = _added(vault, site)
    if not added:
        raise UsageProblem(f"there is no receipt of {site}", hint="modelvault receipt list shows what there is")
    file = _file(vault, added[-1].data["digest"])
    if not file.exists():
        raise UsageProblem(
            f"the receipt of {site} is gone from {file.parent}", hint="add it again: modelvault receipt add PATH"
        )
    try:
        return read_paper(vault, file, decode_receipt, suffix=RECEIPT_SUFFIX)
    except ModelvaultError as error:
        error.message = f"the receipt of {site}: {error.message}"
        raise


def _result(vault: Vault, signed: SignedPaper[Receipt], *, unchanged: bool = False) -> ReceiptResult:
    here = {entry.name: entry.manifest for entry in vault.store.entries()}

    def standing(manifest: Digest, ours: Digest | None) -> str:
        return "none" if ours is None else "same" if ours == manifest else "other"

    models = (
        SiteModel(name.text, manifest, standing(manifest, here.get(name))) for name, manifest in signed.paper.models
    )
    return ReceiptResult(vault.root, _line(vault, signed), tuple(models), unchanged)


def _line(vault: Vault, signed: SignedPaper[Receipt]) -> ReceiptLine:
    receipt, digest = signed.paper, Digest.of_bytes(signed.raw).hex
    times = [event.time for event in _added(vault, receipt.site) if event.data["digest"] == digest]
    return ReceiptLine(
        site=receipt.site,
        sequence=receipt.sequence,
        models=len(receipt.models),
        blobs=len(receipt.blobs),
        fingerprint=signed.key.fingerprint,
        added_at=times[-1] if times else None,
    )


def _facts(receipt: Receipt, raw: bytes, key: str) -> dict[str, object]:
    return {
        "site": receipt.site,
        "sequence": receipt.sequence,
        "key": key,
        "digest": Digest.of_bytes(raw).hex,
        "models": [name.text for name, _ in receipt.models],
    }


def _about(vault: Vault, kind: str) -> Iterator[Event]:
    return (event for event in vault.events.read() if event.kind == kind)


def _added(vault: Vault, site: str) -> list[Event]:
    return [event for event in _about(vault, _ADDED) if event.data["site"] == site]


def _newest_written(vault: Vault, site: str) -> int:
    """Give the sequence of the newest receipt that was written here; 0 if there was none."""
    return max(
        (int(event.data["sequence"]) for event in _about(vault, _WRITTEN) if event.data["site"] == site), default=0
    )
