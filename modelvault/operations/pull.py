"""``pull``: from a name to a verified model in the vault."""

import contextlib
import functools
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

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
    looks_like_path,
)
from modelvault.catalog import Catalog
from modelvault.config import Config
from modelvault.errors import ModelvaultError, UsageProblem
from modelvault.inspect import check_listing, inspect_model
from modelvault.operations.catalog import recipe_of, the_catalog
from modelvault.operations.choosing import Chooser, settle
from modelvault.operations.judging import listed_candidate, record_scan, require_inspected, require_listed
from modelvault.operations.licenses import Asking, Terms, foresee, settle_license, source_page, texts_listed
from modelvault.operations.ollama import check_layers, license_of, recipe_in_layers, registry_address
from modelvault.operations.pinning import Pin, check_pinned, pinned
from modelvault.operations.publishing import publish_fetched
from modelvault.operations.summaries import summarize
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
    ``pin``, from a lock, says where it comes from and which files it has; then revision, quantization and globs only name it.
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


@dataclass(frozen=True, slots=True)
class _Options:
    """How a pull may go about it."""

    transfer: TransferOptions
    allow_pickle: bool
    asking: Asking


@dataclass(frozen=True, slots=True)
class _Target:
    """A request resolved to a repository of a source, of the Hub or of an Ollama registry."""

    name: ModelName
    repository: str
    revision: str | None
    wish: Wish
    recipe: Recipe | None = None
    verified: bool | None = None
    license: str | None = None
    notes: tuple[str, ...] = ()
    acceptance: bool = False
    pin: Pin | None = None

    def pinned(self, pin: Pin | None) -> "_Target":
        """Give the target at the repository and commit that are locked, if any are. Of Ollama's, the tag is still asked for first."""
        if pin is None:
            return self
        repository = pin.repository if self.name.ollama is None else self.repository
        return replace(self, repository=repository, revision=pin.commit, pin=pin)

    def settled(self, quant: str | None) -> "_Target":
        """Give the target with the quantization that was chosen meanwhile, in its name, too."""
        if quant is None:
            return self
        quant = quant.upper()
        name = ModelName(f"{self.name.hub_id}:{quant}")
        return replace(self, name=name, wish=replace(self.wish, quant=quant))

    @property
    def kind(self) -> str:
        """The kind of source."""
        return "hub" if self.name.ollama is None else "ollama"


def name_wanted(text: str) -> ModelName:
    """Read what the user wants pulled. Raises ``UsageProblem`` that says what to type for a path or the address of a page."""
    if looks_like_path(text):
        raise UsageProblem(
            f"{text} is a path, and `pull` brings models from the Hub or from Ollama's registry",
            hint=f"for what lies on this machine: modelvault add {shlex.quote(text)} --name NAME",
            path=text,
        )
    page = urlsplit(text)
    if page.scheme in {"http", "https"}:
        name = "/".join(page.path.strip("/").split("/")[:2])
        if page.hostname in {"ollama.com", "registry.ollama.ai"}:
            name = f"ollama:{name}"
        raise UsageProblem(
            f"{text} is an address, and `pull` takes a name",
            hint=f"write {name}; another hub than the usual one is named with --endpoint",
        )
    return ModelName(text)


def pull(
    vault: Vault, request: PullRequest, progress: Progress, choose: Chooser | None = None
) -> PullPlan | PullResult:
    """Bring a model into the vault; with ``dry_run`` only say what that would take.

    ``choose`` is asked where a repository has several quantizations and the request names none. Raises ``SourceUnavailable``, ``DigestMismatch``, ``InvalidModelFile``, ``PolicyRefused``, ``NoSpace``, ``VaultLocked`` or
    ``UsageProblem``. Whatever happens, finished ranges stay in ``partial/`` and the next pull goes on from there.
    """
    target = resolve(request, the_catalog(vault.config)).pinned(request.pin)
    config = vault.config.override(connections=request.connections, limit_rate=request.limit_rate)
    with contextlib.closing(open_source(target, request.endpoint, config)) as source:
        progress.log(f"looking up {target.repository}")
        snapshot = source.snapshot(target.repository, target.revision)
        if target.pin is None and target.kind == "hub":
            target = target.settled(settle(snapshot, target.wish, choose))
        job = _prepare(vault, target, source, snapshot)
        asking = Asking(request.accept_license, request.consent, target.acceptance)
        _judge(vault, job, asking, allow_pickle=request.allow_pickle)
        if request.dry_run:
            plan = _plan(vault, job)
            return replace(plan, warnings=(*plan.warnings, *foresee(vault, job.terms, asking)))
        vault.create()
        said = settle_license(vault, job.terms, asking)
        transfer = TransferOptions(
            connections=config.connections, limit_rate=config.limit_rate, lock_wait=config.lock_wait
        )
        result = _run(vault, job, _Options(transfer, request.allow_pickle, asking), progress)
        return replace(result, warnings=tuple(dict.fromkeys((*result.warnings, *said))))


def open_source(target: _Target, endpoint: str | None, config: Config) -> Source:
    """Open the source of a target, at the ``endpoint`` that was named for this pull if there is one."""
    if (ollama := target.name.ollama) is not None:
        from modelvault.sources.ollama import OllamaSource  # noqa: PLC0415 (as below)

        address = endpoint or registry_address(ollama, config.ollama_registry)
        return OllamaSource(address, connections=config.connections)
    # huggingface_hub is imported here alone, and only when something is pulled: never on the isolated side.
    from modelvault.sources.hub import HubSource  # noqa: PLC0415

    return HubSource(endpoint or config.endpoint, connections=config.connections)


def resolve(request: PullRequest, catalog: Catalog) -> _Target:
    """Find out which repository a name means: Ollama's, a catalog entry, else ``org/name[:QUANT]``. Raises ``UsageProblem``."""
    name = request.name
    if name.ollama is not None:
        if request.wish != Wish():
            raise UsageProblem(
                f"{name}: a model of Ollama's comes as it is, without --quant, --include or --exclude",
                hint="its tag says which quantization it is: ollama:NAME:TAG",
            )
        return _Target(name, f"{name.ollama.repository}:{name.ollama.tag}", request.revision, request.wish)
    quant = (request.wish.quant or name.quant or "").upper() or None
    entry = catalog.find(name) or catalog.find(ModelName(name.hub_id))
    if entry is not None:
        own = Wish(quant or entry.quant, request.wish.include or entry.include, entry.exclude + request.wish.exclude)
        listed = entry.name if quant in {None, entry.quant} else ModelName(f"{entry.name}:{quant}")
        return _Target(
            listed,
            entry.repository,
            request.revision or entry.revision,
            own,
            recipe_of(entry),
            entry.verified,
            entry.license,
            catalog.notes_on(entry),
            entry.acceptance,
        )
    if name.organization is None:
        problem = catalog.unknown(name)
        problem.hint = f"{problem.hint}; a Hub repository is written org/name, a model of Ollama's ollama:{name}"
        raise problem
    listed = ModelName(f"{name.hub_id}:{quant}") if quant else name
    return _Target(listed, name.hub_id, request.revision, Wish(quant, request.wish.include, request.wish.exclude))


def _in_vault(vault: Vault, target: _Target, files: Sequence[SourceFile]) -> dict[str, Digest]:
    """Which files lie in the vault: by their SHA-256, or by the digest that this model's last pull had for them."""
    known: dict[Digest, Digest] = {}
    for entry in vault.store.entries():
        if entry.name == target.name:
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

    target: _Target
    snapshot: Snapshot
    selection: Selection
    in_vault: Mapping[str, Digest]
    wanted: tuple[Wanted, ...]

    @property
    def origin(self) -> Origin:
        """Where the model is from."""
        return Origin(self.target.kind, self.snapshot.repository, self.snapshot.commit)

    @property
    def terms(self) -> Terms:
        """Its license, as far as the listing tells: Ollama's does not."""
        texts = texts_listed({file.path: file.digest for file in self.selection.files})
        page = self.snapshot.license_link or source_page(self.origin)
        pending = self.target.kind == "ollama"
        return Terms(self.target.name, self.snapshot.license or self.target.license, page, texts, pending)


def _prepare(vault: Vault, target: _Target, source: Source, snapshot: Snapshot) -> _Job:
    """Choose; nothing is downloaded."""
    if target.pin is not None:
        selection = pinned(snapshot, target.pin)
    elif target.kind == "ollama":
        check_layers(target.name.text, snapshot.files)
        selection = Selection(snapshot.files, ())
    else:
        selection = select(snapshot.files, target.wish)
    check_distinct(target.name, [file.path for file in selection.files])
    found = _in_vault(vault, target, selection.files)
    wanted = tuple(
        Wanted(
            path=file.path,
            size=file.size,
            digest=file.digest,
            open=functools.partial(source.open_range, snapshot, file),
            identity=f"{snapshot.repository}@{snapshot.commit}",
            model=target.name.text,
        )
        for file in selection.files
        if file.path not in found
    )
    return _Job(target, snapshot, selection, found, wanted)


def _judge(vault: Vault, job: _Job, asking: Asking, *, allow_pickle: bool) -> None:
    """Hold what is listed against the policy and the rules for a whole model. Raises ``PolicyRefused``, ``InvalidModelFile``."""
    files = job.selection.files
    require_listed(vault, listed_candidate(job.terms, job.origin, files), acceptable=asking.possible)
    check_listing([file.path for file in files], allow_pickle=allow_pickle)


def _without_what_came(vault: Vault, job: _Job, transfers: Transfers) -> _Job:
    """Leave away what another pull published while this one waited for its transfers to end."""
    late = _in_vault(vault, job.target, [file for file in job.selection.files if file.path not in job.in_vault])
    for wanted in job.wanted:
        if wanted.path in late:
            transfers.drop(wanted)
    return replace(
        job,
        in_vault={**job.in_vault, **late},
        wanted=tuple(wanted for wanted in job.wanted if wanted.path not in late),
    )


def _plan(vault: Vault, job: _Job) -> PullPlan:
    states = {wanted.path: begun(vault.partial, wanted) for wanted in job.wanted}
    files = tuple(
        PlannedDownload(file.path, file.size, states[file.path].here if file.path in states else file.size, file.digest)
        for file in job.selection.files
    )
    # Files of the same content are fetched once.
    needed = sum({wanted.key: states[wanted.path].unallocated for wanted in job.wanted}.values())
    free = filesystem.free_space(vault.root)
    target = job.target
    warnings = list(target.notes)
    if target.verified is False:
        warnings.append(f"the catalog entry {target.name} was not checked online yet: compare repository and license")
    if job.snapshot.gated:
        warnings.append(f"{target.repository} is gated: its publisher asks for an agreement and a token")
    if needed > free:
        warnings.append(filesystem.no_space(vault.root, needed=needed).message)
    return PullPlan(
        vault=vault.root,
        name=str(target.name),
        repository=target.repository,
        commit=job.snapshot.commit,
        license=job.terms.license,
        license_page=job.terms.page,
        verified=target.verified,
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


def _recipe(target: _Target, paths: Mapping[str, Path]) -> tuple[Recipe | None, tuple[str, ...]]:
    """Give the recipe that the catalog has, or that a model from Ollama has in its layers, with what is to be said of it."""
    return (target.recipe, ()) if target.name.ollama is None else recipe_in_layers(target.name.ollama, paths)


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
        if job.target.pin is not None:
            check_pinned(job.target.pin, digests)
        recipe, notes = _recipe(job.target, paths)
        model = Model(
            name=job.target.name,
            origin=job.origin,
            files=tuple(
                FileSpec(file.path, file.size, digests[file.path], file.digest) for file in job.selection.files
            ),
            traits=report.traits,
            license=license_of(report.reports) if job.target.kind == "ollama" else plan.license,
            recipe=recipe,
            license_link=job.snapshot.license_link,
        )
        asking = options.asking
        require_inspected(
            vault, Candidate.of(model), report, allow_pickle=options.allow_pickle, acceptable=asking.possible
        )
        said = settle_license(vault, Terms.of(model), asking)
        stored, unchanged = publish_fetched(vault, model, report.reports, fetched, transfers)
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
