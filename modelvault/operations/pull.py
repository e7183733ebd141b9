"""``pull``: from a name to a verified model in the vault."""

import contextlib
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from modelvault import filesystem
from modelvault.artifact import (
    Algorithm,
    Digest,
    FileSpec,
    Model,
    ModelName,
    Origin,
    Recipe,
    SourceFile,
    check_distinct,
)
from modelvault.errors import ModelvaultError, UsageProblem
from modelvault.inspect import check_listing, inspect_model
from modelvault.operations.catalog import the_catalog
from modelvault.operations.choosing import Chooser, settle
from modelvault.operations.copies import downloaded
from modelvault.operations.fitting import Fitting, Room
from modelvault.operations.judging import listed_candidate, record_scan, require_inspected, require_listed
from modelvault.operations.licenses import Asking, Terms, foresee, settle_license, source_page, texts_listed
from modelvault.operations.ollama import check_layers, license_of, recipe_in_layers
from modelvault.operations.pinning import Pin, check_pinned, pinned
from modelvault.operations.publishing import publish_fetched
from modelvault.operations.summaries import summarize
from modelvault.operations.upstream import Upstream, open_source, resolve
from modelvault.policy import Candidate
from modelvault.progress import Progress
from modelvault.results.models import PlannedDownload, PullPlan, PullResult
from modelvault.sources import Snapshot, Source
from modelvault.sources.selection import Selection, Wish, select
from modelvault.transfer import TransferOptions, Transfers, Wanted
from modelvault.transfer.begun import begun
from modelvault.vault import Vault


@dataclass(frozen=True, slots=True)
class PullRequest:
    """What the user asked for. ``connections`` and ``limit_rate`` (bytes per second) override the configuration.

    ``consent`` asks whether a license is accepted, if there is somebody to ask; ``accept_license`` says that it is.
    ``commit`` is what the revision was found to mean just now, if somebody has looked. ``called`` is its name in the vault, if that is to be another; ``room`` says which cards it is meant for; where the wish's quantization is ``auto``, they decide on it. ``pin``, from a lock, says
    where it comes from and which files it has; then revision, quantization and globs only name it.
    """

    name: ModelName
    revision: str | None = None
    wish: Wish = field(default_factory=Wish)
    endpoint: str | None = None
    connections: int | None = None
    limit_rate: int | None = None
    allow_pickle: bool = False
    accept_license: bool = False
    consent: Callable[[str], bool] | None = None
    dry_run: bool = False
    pin: Pin | None = None
    room: Room | None = None
    called: ModelName | None = None
    commit: str | None = None

    @property
    def chosen_by_room(self) -> bool:
        """Whether the cards decide on the quantization."""
        return (self.wish.quant or "").casefold() == "auto"


@dataclass(frozen=True, slots=True)
class _Options:
    """How a pull may go about it."""

    transfer: TransferOptions
    allow_pickle: bool
    asking: Asking
    revision: str | None


def pull(
    vault: Vault, request: PullRequest, progress: Progress, choose: Chooser | None = None
) -> PullPlan | PullResult:
    """Bring a model into the vault; with ``dry_run`` only say what that would take.

    ``choose`` is asked where a repository has several quantizations and the request names none. Raises ``SourceUnavailable``, ``DigestMismatch``, ``InvalidModelFile``, ``PolicyRefused``, ``NoSpace``, ``VaultLocked`` or
    ``UsageProblem``. Whatever happens, finished ranges stay in ``partial/`` and the next pull goes on from there.
    """
    if request.chosen_by_room and request.room is None:
        raise UsageProblem("--quant auto has to know the cards", hint="say which: --quant auto --fit 24GiB")
    catalog = the_catalog(vault.config)
    wish = replace(request.wish, quant=None) if request.chosen_by_room else request.wish
    upstream = resolve(request.name, wish, request.revision, catalog).pinned(request.pin)
    config = vault.config.override(connections=request.connections, limit_rate=request.limit_rate)
    with contextlib.closing(open_source(upstream, request.endpoint, config, progress.log)) as source:
        progress.log(f"looking up {upstream.repository}")
        snapshot = source.snapshot(upstream.repository, request.commit or upstream.revision)
        fitting = Fitting.of(snapshot, source, request.room, progress) if request.room is not None else None
        if fitting is not None and request.chosen_by_room:
            best = fitting.best_quantization(replace(upstream.wish, quant=None))
            upstream = resolve(request.name, replace(wish, quant=best), request.revision, catalog)
            progress.log(f"{best} is the best quantization that fits")
        elif upstream.pin is None and upstream.kind == "hub":
            upstream = upstream.settled(settle(snapshot, upstream.wish, choose))
        fits = fitting.require(upstream) if fitting is not None else None
        upstream = replace(upstream, called=request.called)
        _require_free(vault, upstream)
        job = _prepare(vault, upstream, source, snapshot)
        asking = Asking(request.accept_license, request.consent, upstream.acceptance)
        _judge(vault, job, asking, allow_pickle=request.allow_pickle)
        if request.dry_run:
            plan = _plan(vault, job)
            return replace(plan, fits=fits, warnings=(*plan.warnings, *foresee(vault, job.terms, asking)))
        vault.create()
        said = settle_license(vault, job.terms, asking)
        transfer = TransferOptions(
            connections=config.connections, limit_rate=config.limit_rate, lock_wait=config.lock_wait
        )
        result = _run(vault, job, _Options(transfer, request.allow_pickle, asking, request.revision), progress)
        plan = replace(result.plan, fits=fits)
        return replace(result, plan=plan, warnings=tuple(dict.fromkeys((*result.warnings, *said))))


def _in_vault(vault: Vault, upstream: Upstream, files: Sequence[SourceFile]) -> dict[str, Digest]:
    """Which files lie in the vault: by their SHA-256, or by the digest that this model's last pull had for them."""
    known: dict[Digest, Digest] = {}
    for entry in vault.store.entries():
        if entry.name == upstream.listed:
            # One whose documents are damaged tells nothing: then its small files come again, and with them the model is mended.
            with contextlib.suppress(ModelvaultError):
                last = vault.store.load(entry).model
                known = {file.upstream: file.digest for file in last.files if file.upstream is not None}
    found = {}
    for file in files:
        if file.digest is None:
            continue
        digest = file.digest if file.digest.algorithm is Algorithm.SHA256 else known.get(file.digest)
        if digest is not None and vault.store.has(digest, file.size):
            found[file.path] = digest
    return found


@dataclass(frozen=True, slots=True)
class _Job:
    """A pull that is fully known: what is wanted, what is here, where the rest comes from."""

    upstream: Upstream
    snapshot: Snapshot
    selection: Selection
    in_vault: Mapping[str, Digest]
    wanted: tuple[Wanted, ...]

    @property
    def origin(self) -> Origin:
        """Where the model is from."""
        return Origin(self.upstream.kind, self.snapshot.repository, self.snapshot.commit)

    @property
    def terms(self) -> Terms:
        """Its license, as far as the listing tells: Ollama's does not."""
        texts = texts_listed({file.path: file.digest for file in self.selection.files})
        page = self.snapshot.license_link or source_page(self.origin)
        pending = self.upstream.kind == "ollama"
        return Terms(self.upstream.listed, self.snapshot.license or self.upstream.license, page, texts, pending)


def _prepare(vault: Vault, upstream: Upstream, source: Source, snapshot: Snapshot) -> _Job:
    """Choose; nothing is downloaded."""
    if upstream.pin is not None:
        selection = pinned(snapshot, upstream.pin)
    elif upstream.kind == "ollama":
        check_layers(upstream.name.text, snapshot.files)
        selection = Selection(snapshot.files, ())
    else:
        selection = select(snapshot.files, upstream.wish)
    check_distinct(upstream.listed, [file.path for file in selection.files])
    found = _in_vault(vault, upstream, selection.files)
    wanted = tuple(
        Wanted(
            path=file.path,
            size=file.size,
            digest=file.digest,
            open=functools.partial(source.open_range, snapshot, file),
            identity=f"{snapshot.repository}@{snapshot.commit}",
            model=upstream.listed.text,
            local=downloaded(upstream.repository, file) if upstream.kind == "hub" else None,
        )
        for file in selection.files
        if file.path not in found
    )
    return _Job(upstream, snapshot, selection, found, wanted)


def _require_free(vault: Vault, upstream: Upstream) -> None:
    """Refuse a name of the user's under which the vault has a model from somewhere else."""
    if upstream.called is None or all(entry.name != upstream.called for entry in vault.store.entries()):
        return
    there = vault.model(upstream.called).model.origin
    # Where a model of Ollama's is from has no tag.
    same = upstream.repository == there.repository or upstream.repository.startswith(f"{there.repository}:")
    if there.kind != upstream.kind or not same:
        raise UsageProblem(
            f"{upstream.called} is another model already, from {there.repository or 'a folder'}",
            hint=f"call this one otherwise, or take that one out: modelvault rm {upstream.called}",
        )


def _judge(vault: Vault, job: _Job, asking: Asking, *, allow_pickle: bool) -> None:
    """Hold what is listed against the policy and the rules for a whole model. Raises ``PolicyRefused``, ``InvalidModelFile``."""
    files = job.selection.files
    require_listed(vault, listed_candidate(job.terms, job.origin, files), acceptable=asking.possible)
    check_listing([file.path for file in files], allow_pickle=allow_pickle)


def _without_what_came(vault: Vault, job: _Job, transfers: Transfers) -> _Job:
    """Leave away what another pull published while this one waited for its transfers to end."""
    late = _in_vault(vault, job.upstream, [file for file in job.selection.files if file.path not in job.in_vault])
    for wanted in job.wanted:
        if wanted.path in late:
            transfers.drop(wanted)
    return replace(
        job,
        in_vault={**job.in_vault, **late},
        wanted=tuple(wanted for wanted in job.wanted if wanted.path not in late),
    )


def _plan(vault: Vault, job: _Job) -> PullPlan:
    wanting = [wanted for wanted in job.wanted if wanted.local is None]
    states = {wanted.path: begun(vault.partial, wanted) for wanted in wanting}
    copies = {wanted.path: str(wanted.local) for wanted in job.wanted if wanted.local is not None}
    files = tuple(
        PlannedDownload(
            file.path,
            file.size,
            states[file.path].here if file.path in states else file.size,
            file.digest,
            copies.get(file.path),
        )
        for file in job.selection.files
    )
    # Files of the same content are fetched once. Whether a copy can be linked or needs room of its own shows when it is taken.
    needed = sum({wanted.key: states[wanted.path].unallocated for wanted in wanting}.values())
    free = filesystem.free_space(vault.root)
    upstream = job.upstream
    warnings = list(upstream.notes)
    if upstream.verified is False:
        warnings.append(f"the catalog entry {upstream.name} was not checked online yet: compare repository and license")
    if job.snapshot.gated:
        warnings.append(f"{upstream.repository} is gated: its publisher asks for an agreement and a token")
    if needed > free:
        warnings.append(filesystem.no_space(vault.root, needed=needed).message)
    return PullPlan(
        vault=vault.root,
        name=str(upstream.listed),
        repository=upstream.repository,
        commit=job.snapshot.commit,
        license=job.terms.license,
        license_page=job.terms.page,
        verified=upstream.verified,
        files=files,
        left_out=tuple(file.path for file in job.selection.left_out),
        total=sum(file.size for file in files),
        to_download=sum(file.size - file.here for file in files),
        free=free,
        warnings=tuple(warnings),
    )


def _check_in_vault(vault: Vault, job: _Job) -> None:
    """Hours may have passed since the plan: what was in the vault then must be there now."""
    sizes = {file.path: file.size for file in job.selection.files}
    for path, digest in job.in_vault.items():
        if not vault.store.has(digest, sizes[path]):
            raise ModelvaultError(
                f"{path}: another process freed it from the vault meanwhile",
                hint="run the same command again: only that file is fetched once more",
            )


def _recipe(upstream: Upstream, paths: Mapping[str, Path]) -> tuple[Recipe | None, tuple[str, ...]]:
    """Give the recipe that the catalog has, or that a model from Ollama has in its layers, with what is to be said of it."""
    return (upstream.recipe, ()) if upstream.name.ollama is None else recipe_in_layers(upstream.name.ollama, paths)


def _run(vault: Vault, job: _Job, options: _Options, progress: Progress) -> PullResult:
    start = time.monotonic()
    with Transfers(vault.partial, job.wanted, options.transfer, progress) as transfers:
        job = _without_what_came(vault, job, transfers)
        plan = _plan(vault, job)
        fetched = transfers.run()
        _check_in_vault(vault, job)
        paths = {item.path: item.data for item in fetched}
        paths |= {path: vault.store.blob_path(digest) for path, digest in job.in_vault.items()}
        report = inspect_model(paths, allow_pickle=True, repository=job.snapshot.repository)
        digests = {item.path: item.sha256 for item in fetched} | dict(job.in_vault)
        if job.upstream.pin is not None:
            check_pinned(job.upstream.pin, digests)
        recipe, notes = _recipe(job.upstream, paths)
        model = Model(
            name=job.upstream.listed,
            origin=job.origin,
            files=tuple(
                FileSpec(file.path, file.size, digests[file.path], file.digest) for file in job.selection.files
            ),
            traits=report.traits,
            license=license_of(report.reports) if job.upstream.kind == "ollama" else plan.license,
            recipe=recipe,
            license_link=job.snapshot.license_link,
        )
        asking = options.asking
        require_inspected(
            vault, Candidate.of(model), report, allow_pickle=options.allow_pickle, acceptable=asking.possible
        )
        said = settle_license(vault, Terms.of(model), asking)
        stored, unchanged = publish_fetched(vault, model, report.reports, fetched, transfers, options.revision)
        if not unchanged:
            record_scan(vault, model.name, report.advice)
    return PullResult(
        plan=plan,
        model=summarize(stored),
        received=sum(item.received for item in fetched),
        reused=sum(item.reused for item in fetched)
        + sum(file.here for file in plan.files if file.path in job.in_vault),
        seconds=time.monotonic() - start,
        unchanged=unchanged,
        warnings=(*plan.warnings, *report.warnings, *notes, *said),
    )
