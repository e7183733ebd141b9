"""``add --from-hf-cache``: a model that the Hub's client downloaded on this machine becomes one of the vault's."""

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path

from modelvault.artifact import ModelName, Origin, SourceFile
from modelvault.catalog import Catalog
from modelvault.errors import DigestMismatch, SourceUnavailable, UsageProblem
from modelvault.operations.adopt import Adoption, take_over
from modelvault.operations.catalog import the_catalog
from modelvault.operations.choosing import settle
from modelvault.operations.copies import hub_cache_here
from modelvault.operations.licenses import Asking, Terms, source_page, texts_listed
from modelvault.operations.upstream import Upstream, open_source, resolve
from modelvault.progress import Progress
from modelvault.results.models import AddResult
from modelvault.sources import Snapshot, require_same_content
from modelvault.sources.hub_cache import HubCache
from modelvault.sources.selection import Wish, select
from modelvault.vault import Vault


@dataclass(frozen=True, slots=True)
class HubCacheAdoption:
    """What the user asked for: ``wanted`` is ``org/name[:QUANT]`` or a name of the catalog; in the vault it gets ``name``, else that."""

    wanted: ModelName
    revision: str | None = None
    cache: Path | None = None
    name: ModelName | None = None
    license: str | None = None
    allow_pickle: bool = False
    accept_license: bool = False
    consent: Callable[[str], bool] | None = None


def adopt_from_hub_cache(vault: Vault, request: HubCacheAdoption, progress: Progress) -> AddResult:
    """Take a model over from the cache of the Hub's client, compared with what the Hub lists where that can be asked.

    Else the cache's own names vouch for the files, which the client made of what the Hub told it. Raises ``SourceUnavailable`` for
    what the cache lacks, ``QuantizationWanted`` where it has several, and as ``take_over`` does.
    """
    cache = HubCache(request.cache or hub_cache_here())
    upstream = _upstream(request, the_catalog(vault.config))
    snapshot = cache.snapshot(upstream.repository, request.revision or upstream.revision)
    upstream = upstream.settled(settle(snapshot, upstream.wish, None))
    files = select(snapshot.files, upstream.wish).files
    told = _ask_hub(vault, upstream, snapshot.commit, progress)
    warnings: list[str] = []
    if told is None:
        warnings.append(f"{upstream.name} was not compared with the Hub: the names in the cache alone vouch for it")
        if bare := [file.path for file in files if file.digest is None]:
            raise DigestMismatch(
                f"nothing vouches for {', '.join(bare[:5])} in the cache: no link of the Hub's client, but files of their own",
                hint="run the command where the Hub can be asked, or `modelvault add` the folder under a name of your own",
                path=bare[0],
            )
    else:
        files = tuple(_agreed(file, told) for file in files)
        there = {file.path for file in select(told.files, upstream.wish).files}
        if lacking := sorted(there - {file.path for file in files}):
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            warnings.append(
                f"{lacking[0]}{more} of the repository are not in the cache: `modelvault pull {upstream.name}` brings them"
            )
    license_name = request.license
    if license_name is None:
        license_name = (told.license if told else None) or upstream.license
    origin = Origin("hub", snapshot.repository, snapshot.commit)
    page = (told.license_link if told else None) or source_page(origin)
    texts = texts_listed({file.path: file.digest for file in files})
    adoption = Adoption(
        terms=Terms(request.name or upstream.name, license_name, page, texts, pending=license_name is None),
        origin=origin,
        files=files,
        place=functools.partial(cache.place_of, snapshot),
        remedy="remove it there, and have the Hub's client download it again, or `modelvault pull` the model",
        # Where the Hub was asked, its word is that of a pull; else the model card's is the best there is.
        license_of=lambda report: license_name or (None if told else report.license),
        recipe_in=lambda _: (upstream.recipe, ()),
        license_link=told.license_link if told else None,
        allow_pickle=request.allow_pickle,
    )
    asking = Asking(request.accept_license, request.consent, upstream.acceptance)
    result = take_over(vault, adoption, asking, progress)
    return replace(result, warnings=(*result.warnings, *warnings))


def _upstream(request: HubCacheAdoption, catalog: Catalog) -> Upstream:
    upstream = resolve(request.wanted, Wish(), request.revision, catalog)
    if upstream.kind != "hub":
        raise UsageProblem(f"{request.wanted} is not of the Hub", hint="a model of Ollama's: add --from-ollama NAME")
    return upstream


def _ask_hub(vault: Vault, upstream: Upstream, commit: str, progress: Progress) -> Snapshot | None:
    """Ask what the Hub lists for this very commit; ``None`` where it cannot be asked. Raises ``SourceUnavailable`` if it has no such commit."""
    try:
        with contextlib.closing(open_source(upstream, None, vault.config, progress.log)) as source:
            return source.snapshot(upstream.repository, commit)
    except SourceUnavailable as error:
        if error.data.get("status") == HTTPStatus.NOT_FOUND:
            error.hint = f"`modelvault add` the folder under a name of your own, if you trust it; {error.hint}"
            raise
        progress.log(error.message)
        return None


def _agreed(file: SourceFile, told: Snapshot) -> SourceFile:
    """Give a file of the cache with the digest that the Hub lists. Raises ``DigestMismatch`` where the two disagree."""
    listed = next((other for other in told.files if other.path == file.path), None)
    if listed is None:
        raise DigestMismatch(
            f"{file.path} is in the cache, but not in {told.repository} at {told.commit}",
            hint="somebody put it there: remove it, or `modelvault add` the folder under a name of your own",
            path=file.path,
        )
    require_same_content(
        file,
        listed,
        f"{file.path} in the cache is not what the Hub lists for {told.repository} at {told.commit}",
        hint="remove it there and have the Hub's client download it again, or `modelvault pull` the model",
    )
    return listed
