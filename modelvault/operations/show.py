"""``show``: everything that the vault knows about one model."""

from dataclasses import replace
from typing import TYPE_CHECKING

from modelvault.artifact import Digest, ModelName, StoredModel
from modelvault.errors import ModelvaultError
from modelvault.operations.licenses import acceptance
from modelvault.operations.summaries import install_line, lack_warning, summarize
from modelvault.results.models import FileLine, ModelSummary, ShowResult
from modelvault.vault import Vault

if TYPE_CHECKING:
    from modelvault.registry import CheckRow


def show(vault: Vault, name: ModelName) -> ShowResult:
    """Sum up a model; what only a broken registry knows is left out, with a warning. Raises ``UsageProblem`` if there is none of that name."""
    stored = vault.model(name)
    told = _told(stored, vault)
    try:
        return _known(told, vault, stored.model.name)
    except ModelvaultError as error:
        unknown = f"{error.message}: installs, checks and metadata are not shown; {error.hint}"
        return replace(told, warnings=(*told.warnings, unknown))


def _known(told: ShowResult, vault: Vault, name: ModelName) -> ShowResult:
    """Add what the registry knows. Raises what is wrong with it."""
    row = vault.registry.model(name)
    checks = vault.registry.checks(name)
    metadata = vault.registry.metadata(name)
    smokes = vault.registry.smokes(name)
    several = len({line.path for line in metadata}) > 1
    return replace(
        told,
        metadata={(f"{line.path}: {line.key}" if several else line.key): line.value for line in metadata},
        installs=tuple(install_line(install, smokes) for install in vault.registry.installs(name)),
        published_at=row.published_at if row else None,
        last_check=next((f"{check.checked_at} ({check.outcome})" for check in checks if check.hashed), None),
        pickle_scan=next((_scan(check) for check in checks if not check.hashed), None),
        accepted=_accepted(vault, told.model, name),
        brought_by=_brought_by(vault, name, told.model.manifest),
    )


def _brought_by(vault: Vault, name: ModelName, manifest: Digest) -> str | None:
    published = vault.registry.published(name, manifest)
    bundle = published.bundle if published else None
    if bundle is None:
        return None
    if bundle.key_fingerprint is None:
        return f"bundle {bundle.label}, sequence {bundle.sequence}, UNSIGNED: nobody vouches for its origin"
    names = {info.fingerprint: info.name for info in vault.keys.list()}
    signer = names.get(bundle.key_fingerprint, bundle.key_fingerprint)
    return f"bundle {bundle.label}, sequence {bundle.sequence}, signed by {signer}"


def _accepted(vault: Vault, model: ModelSummary, name: ModelName) -> str | None:
    row = acceptance(vault, model.license, name)
    other = "" if row is None or row.model == name.text else f", for {row.model}"
    return f"by {row.user} at {row.accepted_at} ({row.how}{other})" if row else None


def _scan(check: "CheckRow") -> str:
    found = f": {check.detail}" if check.detail else ""
    return f"{check.checked_at} ({check.outcome.removeprefix('pickle-')}{found})"


def _told(stored: StoredModel, vault: Vault) -> ShowResult:
    """Give what the model's manifest tells."""
    model = stored.model
    return ShowResult(
        vault=vault.root,
        model=summarize(stored),
        files=tuple(FileLine(file.path, file.size, file.digest, file.upstream) for file in model.files),
        metadata={},
        modelfile=model.recipe.modelfile if model.recipe else None,
        installs=(),
        published_at=None,
        last_check=None,
        license_link=model.license_link,
        license_files=model.license_files,
        warnings=lack_warning(vault, stored),
    )
