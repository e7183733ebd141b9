"""``outdated``: which models of the vault have a newer version where they came from."""

import contextlib
import glob
from collections.abc import Sequence
from dataclasses import dataclass, replace

from modelvault.artifact import FileSpec, ModelName, SourceFile, StoredModel
from modelvault.catalog import Catalog
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
    lines: list[OutdatedLine] = []
    errors: list[ModelvaultError] = []
    for stored in vault.select(names):
        try:
            with in_words():
                followed = follow(vault, stored, progress, endpoint)
            lines.append(followed.line if followed else _unfollowed(stored))
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


def follow(vault: Vault, stored: StoredModel, progress: Progress, endpoint: str | None = None) -> Followed | None:
    """Look at a model's source; ``None`` for one that has none to follow. Raises ``SourceUnavailable``."""
    upstream = upstream_of(stored, the_catalog(vault.config))
    if upstream is None:
        return None
    progress.log(f"looking up {upstream.repository}")
    with contextlib.closing(open_source(upstream, endpoint, vault.config, progress.log)) as source:
        snapshot = source.snapshot(upstream.repository, upstream.revision)
        if snapshot.commit == stored.model.origin.commit:
            return Followed(stored, upstream, _line(stored, Freshness.CURRENT, snapshot))
        upstream = _as_then(upstream, stored, source)
    changed = _changed(stored, upstream, snapshot)
    line = _line(stored, Freshness.OUTDATED if changed else Freshness.CURRENT, snapshot)
    size = sum(file.size for file in changed)
    return Followed(stored, upstream, replace(line, changed=tuple(file.path for file in changed), to_download=size))


def upstream_of(stored: StoredModel, catalog: Catalog) -> Upstream | None:
    """Find where a newer version of a model would come from.

    Its name says so, if that is one of the catalog, of the Hub or of Ollama's; a model under a name of its own comes from the
    repository that it came from, with the same files.
    """
    name, origin = stored.model.name, stored.model.origin
    if origin.repository is None or origin.kind not in {"hub", "ollama"}:
        return None
    try:
        found = resolve(name, Wish(), None, catalog)
    except UsageProblem:
        found = None
    if (
        found is not None
        and found.kind == origin.kind
        and (found.kind == "ollama" or found.repository == origin.repository)
    ):
        return found
    if origin.kind == "ollama":
        return None  # its tag is not known any more
    return Upstream(ModelName(origin.repository), origin.repository, None, _exactly(stored), called=name)


def _as_then(upstream: Upstream, stored: StoredModel, source: Source) -> Upstream:
    """Select as the pull did: by the defaults, unless those would have chosen other files at that commit."""
    commit = stored.model.origin.commit
    if upstream.kind != "hub" or commit is None:
        return upstream
    try:
        then = select(source.snapshot(upstream.repository, commit).files, upstream.wish)
    except (SourceUnavailable, UsageProblem):
        return upstream  # the commit is gone, as after a forced push
    if {file.path for file in then.files} == {file.path for file in stored.model.files}:
        return upstream
    return replace(upstream, wish=_exactly(stored))


def _exactly(stored: StoredModel) -> Wish:
    return Wish(include=tuple(glob.escape(file.path) for file in stored.model.files))


def _changed(stored: StoredModel, upstream: Upstream, snapshot: Snapshot) -> list[SourceFile]:
    files = snapshot.files if upstream.kind == "ollama" else select(snapshot.files, upstream.wish).files
    here = {file.path: file for file in stored.model.files}
    return [file for file in files if file.path not in _PAPERS and not _same(here.get(file.path), file)]


def _same(here: FileSpec | None, there: SourceFile) -> bool:
    if here is None or here.size != there.size:
        return False
    return there.digest is None or there.digest in {here.digest, here.upstream}


def _line(stored: StoredModel, state: Freshness, snapshot: Snapshot | None = None) -> OutdatedLine:
    summary = summarize(stored)
    newest = snapshot.commit if snapshot is not None else None
    return OutdatedLine(summary.name, state, summary.source, summary.commit, newest)


def _unfollowed(stored: StoredModel) -> OutdatedLine:
    return replace(_line(stored, Freshness.UNFOLLOWED), reason="it was added from this machine")
