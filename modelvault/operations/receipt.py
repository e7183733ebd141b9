"""``receipt``: what a site holds, written there and added on the connected side, so that the next bundle brings only the rest."""

import time
from collections.abc import Iterator
from pathlib import Path

from modelvault import fsio
from modelvault.artifact import Digest
from modelvault.bundle.papers import Receipt, check_site, decode_receipt, encode_receipt
from modelvault.bundle.plan import next_sequence
from modelvault.errors import ModelvaultError, TrustRefused, UsageProblem
from modelvault.eventlog import Event
from modelvault.operations.keys import site_signer
from modelvault.operations.papers import RECEIPT_SUFFIX, SignedPaper, read_paper, write_paper
from modelvault.results import ReceiptLine, ReceiptResult, ReceiptsResult, ReceiptWritten, SiteModel
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
    receipt = Receipt(
        site=signer.name,
        sequence=next_sequence(_newest(vault, _WRITTEN, signer.name)[0], time.time()),
        models=tuple(sorted(models, key=lambda model: model[0].text)),
        blobs=tuple(sorted(blobs, key=str)),
    )
    raw = encode_receipt(receipt)
    file = write_paper(path, receipt.file_name, raw, signer)
    vault.record(_WRITTEN, {**_facts(receipt, raw, signer.fingerprint), "path": str(file)})
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
    """Take in the receipt of a site, in place of an older one.

    Raises ``TrustRefused`` if it is not by the trusted key of that site, or older than one that was added before.
    """
    signed = read_paper(vault, path, decode_receipt, suffix=RECEIPT_SUFFIX)
    receipt = signed.paper
    file = vault.receipts / f"{receipt.site}.json"
    signature = file.with_name(f"{file.name}.sig")
    newest, digest = _newest(vault, _ADDED, receipt.site)
    known = _is(file, signed.raw) and _is(signature, signed.signature)
    if not known:
        same = Digest.of_bytes(signed.raw).hex == digest
        if receipt.sequence <= newest and not same and not allow_older:
            raise TrustRefused(
                f"{path} has sequence {receipt.sequence}, but {newest} of {receipt.site} was added already",
                hint="have a new one written at the site; if it was set up anew, add this one with --allow-older",
                sequence=receipt.sequence,
                newest=newest,
            )
        vault.receipts.mkdir(exist_ok=True)
        fsio.atomic_write(signature, signed.signature)
        fsio.atomic_write(file, signed.raw)
        vault.record(_ADDED, _facts(receipt, signed.raw, signed.key.fingerprint))
    return _result(vault, signed, unchanged=known)


def _is(file: Path, raw: bytes) -> bool:
    return file.exists() and file.read_bytes() == raw


def list_receipts(vault: Vault) -> ReceiptsResult:
    """Give the newest receipt of each site."""
    lines, warnings = [], []
    for file in sorted(vault.receipts.glob("*.json")):
        try:
            lines.append(_line(vault, read_paper(vault, file, decode_receipt, suffix=RECEIPT_SUFFIX)))
        except ModelvaultError as error:
            warnings.append(f"{error.message}: it does not count")
    return ReceiptsResult(vault.root, tuple(lines), tuple(warnings))


def show_receipt(vault: Vault, site: str) -> ReceiptResult:
    """Give the newest receipt of a site. Raises ``UsageProblem`` if there is none, ``TrustRefused`` if its key does not count any more."""
    file = vault.receipts / f"{check_site(site)}.json"
    if not file.exists():
        raise UsageProblem(f"there is no receipt of {site}", hint="modelvault receipt list shows what there is")
    return _result(vault, read_paper(vault, file, decode_receipt, suffix=RECEIPT_SUFFIX))


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
    times = [event.time for event in _about(vault, _ADDED, receipt.site) if event.data.get("digest") == digest]
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


def _about(vault: Vault, kind: str, site: str) -> Iterator[Event]:
    return (event for event in vault.events.read() if event.kind == kind and event.data.get("site") == site)


def _newest(vault: Vault, kind: str, site: str) -> tuple[int, str]:
    """Give sequence and digest of the newest receipt of a site that was written (or added) here; 0 if there was none."""
    seen = ((int(event.data["sequence"]), str(event.data["digest"])) for event in _about(vault, kind, site))
    return max(seen, default=(0, ""))
