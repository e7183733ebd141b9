"""``install``: from the vault into an engine's directories. Import uses the same steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from modelvault import fsio
from modelvault.artifact import Model, ModelName, StoredModel
from modelvault.engines import (
    Engine,
    InstallPlan,
    InstallRecord,
    InstallRequest,
    LinkMode,
    Owner,
    Target,
    engines,
    parse_target,
)
from modelvault.errors import EngineRefused, UsageProblem
from modelvault.progress import Progress
from modelvault.results import EngineStep, InstallResult
from modelvault.vault import Vault

_MODELFILE_LIMIT = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Placement:
    """Where models go, and how. No targets: the engines that are found here."""

    targets: tuple[Target, ...] = ()
    name: str | None = None
    link: LinkMode = LinkMode.AUTO
    owner: Owner | None = None
    modelfile: str | None = None

    @classmethod
    def parse(
        cls,
        targets: Sequence[str],
        *,
        name: str | None = None,
        link: str = "auto",
        owner: str | None = None,
        modelfile: Path | None = None,
    ) -> Self:
        """Read what was typed. Raises ``UsageProblem`` for engines, links, users or files that there are not."""
        if link not in set(LinkMode):
            raise UsageProblem(f"--link {link}: no such way", hint=f"one of: {', '.join(LinkMode)}")
        text = None
        if modelfile is not None:
            try:
                text = fsio.read_regular(modelfile.expanduser(), limit=_MODELFILE_LIMIT).decode("utf-8")
            except UnicodeDecodeError as error:
                raise UsageProblem(f"{modelfile} is not UTF-8 text") from error
        return cls(
            targets=tuple(dict.fromkeys(parse_target(target) for target in targets)),
            name=name,
            link=LinkMode(link),
            owner=Owner.parse(owner) if owner else None,
            modelfile=text,
        )


def found_engines() -> tuple[tuple[Target, Engine], ...]:
    """Find the engines of this machine, each with its adapter."""
    found = ((adapter.detect(), adapter) for adapter in engines().values())
    return tuple((target, adapter) for target, adapter in found if target is not None)


def targets_for(model: Model, placement: Placement) -> tuple[Target, ...]:
    """Decide which engines take a model: of those named, else of those found, the ones that can serve it.

    Raises ``EngineRefused`` with the reasons if engines were named and none of them can.
    """
    adapters = engines()
    if not placement.targets:
        return tuple(target for target, adapter in found_engines() if adapter.accepts(model) is None)
    reasons = {target: adapters[target.engine].accepts(model) for target in placement.targets}
    fitting = tuple(target for target, reason in reasons.items() if reason is None)
    if not fitting:
        why = "; ".join(f"{target.engine}: {reason}" for target, reason in reasons.items())
        raise EngineRefused(
            f"no engine that was named can serve {model.name}: {why}",
            hint="name another engine, or folder=DIR for a plain directory",
            model=str(model.name),
        )
    return fitting


def install(
    vault: Vault, name: ModelName, placement: Placement, progress: Progress, *, dry_run: bool = False
) -> InstallResult:
    """Install a model of the vault. Raises ``UsageProblem``, ``EngineRefused``, ``NoSpace`` or ``DigestMismatch``."""
    with vault.holding():
        stored = vault.model(name)
        targets = targets_for(stored.model, placement)
        if not targets:
            raise UsageProblem(
                f"no engine for {stored.model.traits.format} models was found on this machine",
                hint="name one: --engine ollama=MODELS_DIR, vllm=HF_HUB_CACHE or folder=DIR",
            )
        steps = [place(vault, stored, target, placement, progress, dry_run=dry_run) for target in targets]
    warnings = tuple(warning for step in steps for warning in step.warnings)
    return InstallResult(vault.root, dry_run, tuple(steps), warnings)


def place(
    vault: Vault, stored: StoredModel, target: Target, placement: Placement, progress: Progress, *, dry_run: bool
) -> EngineStep:
    """Plan one install; unless ``dry_run``, do it, verify it and record it."""
    adapter = engines()[target.engine]
    request = InstallRequest(
        stored=stored,
        blob_path=vault.store.blob_path,
        target=target,
        name=placement.name,
        link=placement.link,
        owner=placement.owner,
        modelfile=placement.modelfile,
        previous=_previous(vault, stored.model.name, target),
    )
    plan = adapter.plan(request)
    if dry_run:
        return _step(plan, stored.model, ())
    progress.log(f"installing {stored.model.name} into {target.engine} ({target.directory})")
    fsio.require_space(target.directory, plan.extra_bytes)
    record = adapter.install(request)
    problems = adapter.verify(record)
    if problems:
        raise EngineRefused(
            f"{stored.model.name} was installed into {target.directory}, but does not verify: {'; '.join(problems[:5])}",
            hint="run the same command again; if that does not help, look at the medium of that directory",
        )
    vault.record("install", record.to_json())
    return _step(plan, stored.model, tuple(adapter.next_steps(record)))


def _previous(vault: Vault, name: ModelName, target: Target) -> InstallRecord | None:
    for row in reversed(vault.registry.installs(name)):
        if (row.engine, row.directory) == (target.engine, str(target.directory)):
            return InstallRecord.from_json(row.record)
    return None


def _step(plan: InstallPlan, model: Model, next_steps: tuple[str, ...]) -> EngineStep:
    # The weights decide what is said of the whole: the little files are always written.
    largest = max(plan.files, key=lambda file: file.size, default=None)
    return EngineStep(
        model=str(model.name),
        engine=plan.engine,
        directory=str(plan.directory),
        installed_name=plan.installed_name,
        link=str(largest.link) if largest else "nothing",
        extra_bytes=plan.extra_bytes,
        warnings=plan.warnings,
        next_steps=next_steps,
    )
