"""What goes into a bundle: models of the vault, less what the site has already; or the pieces that a site asked for."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from modelvault import fsio, modelpack
from modelvault.artifact import Digest, ModelName
from modelvault.bundle.format import decode, encode
from modelvault.bundle.index import MAX_INDEX, Index
from modelvault.bundle.papers import decode_request, refused
from modelvault.bundle.plan import PlanOptions, SourceModel, patch_label, plan_index, plan_patch
from modelvault.errors import SourceUnavailable, UsageProblem
from modelvault.operations.papers import read_paper
from modelvault.operations.receipt import newest_receipt
from modelvault.vault import Vault

_INDEX_MODE = 0o444


class BundleUnknown(SourceUnavailable):
    """A request is for a bundle that this vault did not write, or does not have the files of any more."""

    slug = "bundle-unknown"


@dataclass(frozen=True, slots=True)
class Contents:
    """What to write: how the series is called, what makes an index of it, and for which site it is, if that was said."""

    label: str
    plan: Callable[[PlanOptions], Index]
    site: str | None = None


def selection(
    vault: Vault, names: tuple[ModelName, ...], label: str | None, site: str | None, *, assume_sent: bool
) -> Contents:
    """Choose models by name, or all; for a site, less the files that are there. Raises as ``held_by`` does, and ``UsageProblem``."""
    if assume_sent and site is None:
        raise UsageProblem("--assume-sent needs a site", hint="say which: modelvault bundle --for SITE --assume-sent")
    models = vault.select(names)
    held = held_by(vault, site, assume_sent=assume_sent) if site else frozenset()

    def plan(options: PlanOptions) -> Index:
        sources = []
        for stored in models:
            manifest = vault.store.read_document(stored.manifest)
            config, _ = modelpack.config_digest(manifest)
            sources.append(SourceModel(stored, manifest, vault.store.read_document(config)))
        return plan_index(sources, options, held=held)

    return Contents(label or vault.config.label, plan, site)


def held_by(vault: Vault, site: str, *, assume_sent: bool) -> frozenset[Digest]:
    """Tell which blobs a site has: by its newest receipt, and with ``assume_sent`` by what this vault sent there, too.

    Without a receipt, and without ``assume_sent``, nothing is known: ``UsageProblem``. Raises ``TrustRefused`` if the receipt is not by
    a key that still counts.
    """
    receipt = newest_receipt(vault, site)
    if receipt is None and not assume_sent:
        raise UsageProblem(
            f"there is no receipt of {site}: what is there is not known",
            hint="have one written there with `modelvault receipt write`, and add it here with `modelvault receipt add`; "
            "for a site that lets nothing out, --assume-sent goes by what was sent there before",
            site=site,
        )
    held = frozenset(receipt.blobs) if receipt else frozenset()
    return held.union(*_sent(vault, site)) if assume_sent else held


def _sent(vault: Vault, site: str) -> Iterator[frozenset[Digest]]:
    """Give the blobs of each bundle that went to a site, with those that it left out since the site had them."""
    for data in _written(vault):
        if data.get("site") == site and "patches" not in data:
            index = _written_index(vault, str(data["index"]))
            if index is not None:
                yield frozenset(blob.digest for blob in (*index.blobs, *index.base))


def _written(vault: Vault) -> Iterator[Mapping[str, object]]:
    return (event.data for event in vault.events.read() if event.kind == "bundle-written")


def known_to_go_to(vault: Vault, site: str, index: Digest) -> bool:
    """Tell whether it is recorded that the bundle with this index was written for a site."""
    return any((data.get("site"), data.get("index")) == (site, index.hex) for data in _written(vault))


def keep_index(vault: Vault, index: Index) -> None:
    """Keep the index of a bundle that was written, to know later what went where and to answer requests."""
    raw = encode(index)
    digest = Digest.of_bytes(raw).hex
    if _written_index(vault, digest) is None:
        vault.bundles.mkdir(exist_ok=True)
        fsio.atomic_write(vault.bundles / f"{digest}.json", raw, mode=_INDEX_MODE)


def _written_index(vault: Vault, digest: str) -> Index | None:
    """Read the index of a bundle that was written; one that is lost or was changed since is as good as none."""
    try:
        raw = fsio.read_regular(vault.bundles / f"{digest}.json", limit=MAX_INDEX)
    except FileNotFoundError:
        return None
    return decode(raw) if Digest.of_bytes(raw).hex == digest else None


def answer(vault: Vault, path: Path, label: str | None) -> Contents:
    """Choose the pieces that a site asked for in the request at ``path``.

    Raises ``TrustRefused`` if the request is not by that site, or asks for what the bundle does not have, or for pieces of a patch; ``BundleUnknown`` if this vault
    did not write the bundle, or lacks a file of it now.
    """
    request = read_paper(vault, path, decode_request, suffix=".request.json").paper
    original = _written_index(vault, request.index.hex)
    if original is None:
        raise BundleUnknown(
            f"{path} asks for pieces of {request.bundle_name}, which this vault did not write",
            hint="answer it on the PC that wrote that bundle; if that is gone, write the models anew with `modelvault bundle`",
            index=str(request.index),
        )
    if original.patches is not None:
        raise refused(f"{request.bundle_name} is a patch, and a request is for the bundle that it mends")
    _require_blobs(vault, original, {piece.blob for piece in request.pieces})

    def plan(options: PlanOptions) -> Index:
        return plan_patch(original, request.index, request.pieces, options)

    return Contents(label or patch_label(original.label), plan, request.site)


def _require_blobs(vault: Vault, original: Index, wanted: set[Digest]) -> None:
    gone = [blob for blob in original.blobs if blob.digest in wanted and not vault.store.has(blob.digest, blob.size)]
    if gone:
        models = ", ".join(str(name) for name in original.needing({blob.digest for blob in gone}))
        more = f", nor are {len(gone) - 1} other files that were asked for" if len(gone) > 1 else ""
        raise BundleUnknown(
            f"{original.called(gone[0].digest)} is not in the vault any more{more}",
            hint=f"pull or add again, at the same revision: {models}",
            missing=[str(blob.digest) for blob in gone],
        )
