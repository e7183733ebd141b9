"""``outdated``: which models of the vault have a newer version where they came from."""

import contextlib
import glob
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus

from modelvault.artifact import FileSpec, ModelName, SourceFile, StoredModel
from modelvault.errors import ModelvaultError, PartlyDone, SourceUnavailable, UsageProblem, in_words
from modelvault.formats.ollama import CONFIG_FILE, MANIFEST_FILE
from modelvault.operations.catalog import the_catalog
from modelvault.operations.summaries import summarize
from modelvault.operations.upstream import Upstream, open_source, resolve
from modelvault.progress import Progress
from modelvault.results.updates import Freshness, OutdatedLine, OutdatedResult
from modelvault.sources import Snapshot, Source
from modelvault.sources.selection import Wish, select
from modelvault.vault import Vault

_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_PAPERS = {CONFIG_FILE, MANIFEST_FILE}  # of Ollama's: they name the layers, and say nothing themselves


@dataclass(frozen=True, slots=True)
class Followed:
    """A model, with where a newer one would come from; ``wish`` selects there what was selected then."""

    stored: StoredModel
    upstream: Upstream
    line: OutdatedLine

    @property
    def outdated(self) -> bool:
        """Whether there is a newer one."""
        return self.line.state is Freshness.OUTDATED


def outdated(
    vault: Vault, names: Sequence[ModelName], progress: Progress, endpoint: str | None = None
) -> OutdatedResult:
    """Compare models, or all, with their sources. Nothing is downloaded but listings.

    Raises ``PartlyDone`` where some sources could not be asked, their own error where none could.
    """
    chosen, damaged = survey(vault, names)
    errors = list(damaged.values())
    lines = [
        OutdatedLine(name, Freshness.UNKNOWN, source="unknown", reason=error.message) for name, error in damaged.items()
    ]
    for stored in chosen:
        try:
            with in_words():
                followed = follow(vault, stored, progress, endpoint)
            lines.append(followed.line if followed else unfollowed(vault, stored))
        except ModelvaultError as error:
            errors.append(error)
            lines.append(replace(_line(stored, Freshness.UNKNOWN), reason=error.message))
    result = OutdatedResult(vault.root, tuple(lines))
    if errors and len(errors) == len(lines):
        errors[0].result = result
        raise errors[0]
    if errors:
        unknown = [line.model for line in lines if line.state is Freshness.UNKNOWN]
        raise PartlyDone(
            f"{len(errors)} of {len(lines)} models could not be compared: {', '.join(unknown)}",
            hint=errors[0].hint,
            result=result,
        )
    return result


def survey(vault: Vault, names: Sequence[ModelName]) -> tuple[Sequence[StoredModel], Mapping[str, ModelvaultError]]:
    """Give the models of these names; of all, if none is named, those whose documents are sound, and what is wrong with the others."""
    if names:
        return vault.select(names), {}
    sound, damaged = vault.store.survey()
    return sound, {entry.name.text: error for entry, error in damaged.items()}


def follow(vault: Vault, stored: StoredModel, progress: Progress, endpoint: str | None = None) -> Followed | None:
    """Look at a model's source; ``None`` for one that has none to follow. Raises ``SourceUnavailable``."""
    upstream = upstream_of(vault, stored)
    if upstream is None:
        return None
    progress.log(f"looking up {upstream.repository}")
    # Of several hubs the first alone: one that stands in for it may be behind, and what is older there is no update.
    first = endpoint or next(iter(vault.config.endpoint), None) if upstream.kind == "hub" else endpoint
    with contextlib.closing(open_source(upstream, first, vault.config, progress.log)) as source:
        try:
            snapshot = source.snapshot(upstream.repository, upstream.revision)
        except SourceUnavailable as error:
            if first != endpoint and len(vault.config.endpoint) > 1:
                error.hint = (
                    f"updates are looked for at the first endpoint alone: --endpoint names another; {error.hint}"
                )
            raise
        if snapshot.commit == stored.model.origin.commit:
            return Followed(stored, upstream, _line(stored, Freshness.CURRENT, snapshot))
        upstream = _as_then(upstream, stored, source, snapshot)
    changed = _changed(stored, upstream, snapshot)
    line = _line(stored, Freshness.OUTDATED if changed else Freshness.CURRENT, snapshot)
    size = sum(file.size for file in snapshot.files if file.path in changed)
    line = replace(line, changed=changed, to_download=size, held=upstream.called is not None)
    return Followed(stored, upstream, line)


def upstream_of(vault: Vault, stored: StoredModel) -> Upstream | None:
    """Find where a newer version of a model would come from; ``None`` where nowhere.

    Its name says so, if that is one of the catalog, of the Hub or of Ollama's, or else the repository that it came from; and there, the
    revision that was asked for. One that was pulled at a commit stays at that.
    """
    name, origin = stored.model.name, stored.model.origin
    if origin.repository is None or origin.kind not in {"hub", "ollama"}:
        return None
    revision = asked_revision(vault, stored)
    if revision is not None and _COMMIT.fullmatch(revision):
        return None
    try:
        found = resolve(name, Wish(), revision, the_catalog(vault.config))
    except UsageProblem:
        found = None
    if found is not None and found.kind == origin.kind and origin.repository in {found.repository, _untagged(found)}:
        return found
    if origin.kind == "ollama":
        return None  # its tag is not known any more
    return Upstream(ModelName(origin.repository), origin.repository, revision, Wish(), called=name)


def _untagged(upstream: Upstream) -> str | None:
    return upstream.name.ollama.repository if upstream.name.ollama is not None else None


def asked_revision(vault: Vault, stored: StoredModel) -> str | None:
    """Read which revision was asked for when the model was pulled; where the registry does not tell, none was."""
    published = vault.registry.published(stored.model.name, stored.manifest)
    return published.revision if published else None


def _as_then(upstream: Upstream, stored: StoredModel, source: Source, newest: Snapshot) -> Upstream:
    """Select as the pull did: by the defaults, unless those would have chosen other files at that commit."""
    commit = stored.model.origin.commit
    if upstream.kind != "hub" or commit is None:
        return upstream
    try:
        files = source.snapshot(upstream.repository, commit).files
    except SourceUnavailable as error:
        if error.data.get("status") != HTTPStatus.NOT_FOUND:
            raise
        files = newest.files  # that commit is gone, as after a forced push: what took its place has to tell
    try:
        chosen = {file.path for file in select(files, upstream.wish).files}
    except UsageProblem:
        chosen = set()  # the defaults would have had to ask
    same = chosen == {file.path for file in stored.model.files}
    return upstream if same else replace(upstream, wish=_exactly(stored))


def _exactly(stored: StoredModel) -> Wish:
    return Wish(include=tuple(f"/{glob.escape(file.path)}" for file in stored.model.files))


def _changed(stored: StoredModel, upstream: Upstream, snapshot: Snapshot) -> tuple[str, ...]:
    """Name the files that are others there, or new, or gone."""
    files = snapshot.files if upstream.kind == "ollama" else select(snapshot.files, upstream.wish).files
    here = {file.path: file for file in stored.model.files}
    gone = here.keys() - {file.path for file in files}
    changed = {file.path for file in files if not _same(here.get(file.path), file)}
    return tuple(sorted((gone | changed) - _PAPERS))


def _same(here: FileSpec | None, there: SourceFile) -> bool:
    if here is None or here.size != there.size:
        return False
    return there.digest is None or there.digest in {here.digest, here.upstream}


def _line(stored: StoredModel, state: Freshness, snapshot: Snapshot | None = None) -> OutdatedLine:
    summary = summarize(stored)
    newest = snapshot.commit if snapshot is not None else None
    return OutdatedLine(summary.name, state, summary.source, summary.commit, newest)


def unfollowed(vault: Vault, stored: StoredModel) -> OutdatedLine:
    """Say of a model without a source to follow why it has none."""
    if stored.model.origin.repository is None:
        reason = "it was added from this machine"
    elif asked := asked_revision(vault, stored):
        reason = f"it was pulled at the commit {asked[:12]}"
    else:
        reason = "under a name of its own, its tag is not known"
    return replace(_line(stored, Freshness.UNFOLLOWED), reason=reason)
