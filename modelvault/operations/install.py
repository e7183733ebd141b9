"""``install``: from the vault into an engine's directories. Import uses the same steps."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from modelvault.artifact import Digest, Model, ModelName, StoredModel
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
from modelvault.operations.modelfile import read_modelfile
from modelvault.progress import Progress
from modelvault.results import EngineStep, InstallResult
from modelvault.vault import Vault


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
        return cls(
            targets=tuple(dict.fromkeys(parse_target(target) for target in targets)),
            name=name,
            link=LinkMode(link),
            owner=None if owner is None else Owner.parse(owner),
            modelfile=read_modelfile(modelfile) if modelfile else None,
        )


def found_engines() -> tuple[tuple[Target, Engine], ...]:
    """Find the engines of this machine, each with its adapter."""
    found = ((adapter.detect(), adapter) for adapter in engines().values())
    return tuple((target, adapter) for target, adapter in found if target is not None)


def takers(model: Model, targets: Sequence[Target]) -> tuple[Target, ...]:
    """Choose the targets whose engines can serve a model."""
    adapters = engines()
    return tuple(target for target in targets if adapters[target.engine].accepts(model) is None)


def refusals(model: Model, targets: Sequence[Target]) -> list[str]:
    """Say for each target why its engine cannot serve a model."""
    adapters = engines()
    return [f"{target.engine}: {reason}" for target in targets if (reason := adapters[target.engine].accepts(model))]


def targets_for(model: Model, placement: Placement) -> tuple[Target, ...]:
    """Decide which engines take a model: of those named, else of those found, the ones that can serve it.

    Raises ``EngineRefused`` with the reasons if engines were named and none of them can.
    """
    if not placement.targets:
        return takers(model, [target for target, _ in found_engines()])
    fitting = takers(model, placement.targets)
    if not fitting:
        raise EngineRefused(
            f"no engine that was named can serve {model.name}: {'; '.join(refusals(model, placement.targets))}",
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
        steps = [Step(stored, target, placement) for target in targets]
        done = [plan_step(vault, step) if dry_run else do_step(vault, step, progress) for step in steps]
    warnings = tuple(warning for step in done for warning in step.warnings)
    return InstallResult(vault.root, dry_run, tuple(done), warnings)


@dataclass(frozen=True, slots=True)
class Step:
    """One model on its way into one engine. ``fresh`` are blobs that were hashed a moment ago, and need not be again."""

    stored: StoredModel
    target: Target
    placement: Placement
    fresh: Collection[Digest] = ()


def plan_step(vault: Vault, step: Step) -> EngineStep:
    """Say what an install would do. Raises ``EngineRefused`` or ``UsageProblem`` as it would."""
    adapter = engines()[step.target.engine]
    return _outcome(adapter.plan(_request(vault, adapter, step)), step.stored.model, ())


def do_step(vault: Vault, step: Step, progress: Progress) -> EngineStep:
    """Install, verify and record one model in one engine."""
    adapter = engines()[step.target.engine]
    request = _request(vault, adapter, step)
    plan = adapter.plan(request)
    model = step.stored.model
    progress.log(f"installing {model.name} into {step.target.engine} ({step.target.directory})")
    with progress.task(f"installing {plan.installed_name}", plan.extra_bytes) as task:
        record = adapter.install(replace(request, on_bytes=task.advance))
    fresh = {str(digest): vault.store.blob_path(digest) for digest in step.fresh}
    problems = adapter.verify(record, fresh)
    if problems:
        raise EngineRefused(
            f"{model.name} was installed into {step.target.directory}, but does not verify: {'; '.join(problems[:5])}",
            hint="run the same command again; if that does not help, look at the medium of that directory",
        )
    vault.record("install", record.to_json())
    return _outcome(plan, model, tuple(adapter.next_steps(record)))


def _request(vault: Vault, adapter: Engine, step: Step) -> InstallRequest:
    placement = step.placement
    request = InstallRequest(
        stored=step.stored,
        blob_path=vault.store.blob_path,
        target=step.target,
        name=placement.name,
        link=placement.link,
        owner=placement.owner,
        modelfile=placement.modelfile,
    )
    # An earlier install under the same name is ours to replace.
    place = (step.target.engine, str(step.target.directory), adapter.installed_name(request))
    for row in vault.installs():
        if (row.engine, row.directory, row.installed_name) == place:
            return replace(request, previous=InstallRecord.from_json(row.record))
    return request


def _outcome(plan: InstallPlan, model: Model, next_steps: tuple[str, ...]) -> EngineStep:
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
