"""``install``: from the vault into an engine's directories. Import uses the same steps."""

import json
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

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
from modelvault.errors import EngineRefused, ModelvaultError, PartlyDone, UsageProblem, in_words
from modelvault.eventlog import MAX_LINE
from modelvault.operations.disks import disks, obstacles, writes
from modelvault.operations.modelfile import read_modelfile
from modelvault.operations.needed_code import code_alone, find_code
from modelvault.operations.replacing import version_of
from modelvault.operations.summaries import install_line
from modelvault.progress import Progress
from modelvault.results.installs import EngineStep, InstallResult
from modelvault.vault import Vault

if TYPE_CHECKING:
    from modelvault.registry import InstallRow

_ENTRY = 160  # bytes of a file's entry in the record of an install, but for its path


@dataclass(frozen=True, slots=True)
class Placement:
    """Where models go, and how. ``named``: by the user; else the targets are the engines that were found here."""

    targets: tuple[Target, ...] = ()
    named: bool = False
    name: str | None = None
    link: LinkMode = LinkMode.AUTO
    owner: Owner | None = None
    modelfile: str | None = None
    adapters: Mapping[str, Engine] = field(default_factory=engines)

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
        """Read what was typed, and look for engines if none were. Raises ``UsageProblem`` for what there is not."""
        if link not in set(LinkMode):
            raise UsageProblem(f"--link {link}: no such way", hint=f"one of: {', '.join(LinkMode)}")
        adapters = engines()
        found = (parse_target(target, adapters) for target in targets) if targets else _found(adapters)
        return cls(
            targets=tuple(dict.fromkeys(found)),
            named=bool(targets),
            name=name,
            link=LinkMode(link),
            owner=None if owner is None else Owner.parse(owner),
            modelfile=read_modelfile(modelfile) if modelfile else None,
            adapters=adapters,
        )

    def takers(self, model: Model) -> tuple[Target, ...]:
        """Choose the targets whose engines can serve a model; unless they were named, rather those that need no plugin for it."""
        fitting = tuple(target for target in self.targets if self.adapters[target.engine].accepts(model) is None)
        if self.named:
            return fitting
        plain = tuple(target for target in fitting if self.adapters[target.engine].plugin_for(model) is None)
        return plain or fitting

    def why_none(self, model: Model) -> str:
        """Say which engines there are, and why none of them takes a model."""
        if not self.targets:
            return "no engine was found on this machine"
        places = ", ".join(f"{target.engine} ({target.place})" for target in self.targets)
        reasons = (self.adapters[target.engine].accepts(model) for target in self.targets)
        said = "; ".join(dict.fromkeys(reason for reason in reasons if reason))
        return f"{'named' if self.named else 'found here'}: {places}, but {said}"

    def command(self, model: Model) -> str:
        """Give the line that installs a model into an engine that can serve it."""
        fitting = [name for name, adapter in self.adapters.items() if adapter.accepts(model) is None]
        engine = fitting[0] if fitting else "folder"
        where = "=DIR" if self.adapters[engine].default() is None else ""
        return shlex.join(["modelvault", "install", str(model.name), "--engine", engine]) + where


def _found(adapters: Mapping[str, Engine]) -> Iterator[Target]:
    return (target for adapter in adapters.values() if (target := adapter.detect()) is not None)


def targets_for(model: Model, placement: Placement) -> tuple[Target, ...]:
    """Decide which engines take a model: of those named, else of those found, the ones that can serve it.

    Raises ``EngineRefused`` with the reasons if none of them can.
    """
    fitting = placement.takers(model)
    if not fitting:
        raise EngineRefused(
            f"{model.name} goes into no engine; {placement.why_none(model)}",
            hint=f"type `{placement.command(model)}`",
            model=str(model.name),
        )
    return fitting


def install(
    vault: Vault, name: ModelName, placement: Placement, progress: Progress, *, dry_run: bool = False
) -> InstallResult:
    """Install a model of the vault into each of the engines.

    Raises ``UsageProblem``, ``EngineRefused``, ``NoSpace`` or ``DigestMismatch``; ``PartlyDone`` with the result where only some took it.
    """
    with vault.holding():
        stored = vault.model(name)
        targets = targets_for(stored.model, placement)
        done: list[EngineStep] = []
        problems: list[ModelvaultError] = []
        for target in targets:
            try:
                with in_words():
                    for step in with_needed_code(vault, Step(stored, target, placement)):
                        done.append(plan_step(vault, step) if dry_run else do_step(vault, step, progress))  # noqa: PERF401
            except ModelvaultError as error:  # one engine that cannot take it keeps it from no other
                problems.append(error)
    warnings = [warning for step in done for warning in step.warnings]
    if dry_run:
        warnings += obstacles(disks(writes(done)))
    result = InstallResult(vault.root, dry_run, tuple(done), tuple(warnings))
    if len(problems) == len(targets):  # code may have gone in that the model needs; without the model, that is nothing
        raise problems[0]
    if problems:
        raise PartlyDone(
            f"{name} did not get into {len(problems)} of {len(targets)} engines: {problems[0].message}",
            hint=problems[0].hint,
            result=result,
            failed=[error.message for error in problems],
        )
    return result


@dataclass(frozen=True, slots=True)
class Step:
    """One model on its way into one engine. ``fresh`` are blobs that were hashed a moment ago, and need not be again.

    ``coming`` are models that will be in the vault by the time of the install.
    """

    stored: StoredModel
    target: Target
    placement: Placement
    fresh: Collection[Digest] = ()
    coming: Sequence[StoredModel] = ()


def with_needed_code(vault: Vault, step: Step) -> tuple[Step, ...]:
    """Give a step with those before it that bring the code of other repositories, as far as the engine would not find it.

    Raises ``EngineRefused`` for code that is nowhere.
    """
    adapter = step.placement.adapters[step.target.engine]
    needs = adapter.needs(_request(vault, adapter, step))
    here = {
        row.model for row in vault.installs() if (row.engine, row.directory) == (step.target.engine, step.target.place)
    }
    placement = replace(step.placement, name=None, modelfile=None)
    before = []
    for repository, files in needs.items():
        stored = find_code(vault, repository, files, step.coming)
        # A model that was installed there as a whole is repaired as a whole, or its record would lose files.
        brought = stored if stored.model.name.text in here else code_alone(stored)
        before.append(replace(step, stored=brought, placement=placement))
    return (*before, step)


def plan_step(vault: Vault, step: Step) -> EngineStep:
    """Say what an install would do. Raises ``EngineRefused`` or ``UsageProblem`` as it would."""
    adapter = step.placement.adapters[step.target.engine]
    changed: list[str] = []
    request = replace(_request(vault, adapter, step), on_changed=changed.append)
    planned = _outcome(request, _plan(adapter, request), changed, "would be replaced")
    return replace(planned, replaces=_replaced(vault, request))


def do_step(vault: Vault, step: Step, progress: Progress) -> EngineStep:
    """Install, verify and record one model in one engine."""
    adapter = step.placement.adapters[step.target.engine]
    changed: list[str] = []
    request = replace(_request(vault, adapter, step), on_changed=changed.append)
    plan = _plan(adapter, request)
    model = step.stored.model
    verb, where = ("checking", "in") if _is_there(request, plan) else ("installing", "into")
    progress.log(f"{verb} {model.name} {where} {step.target.engine} ({step.target.place})")
    with progress.task(f"{verb} {plan.installed_name}", plan.extra_bytes) as task:
        record = _known_as(vault, adapter.install(replace(request, on_bytes=task.advance)), request)
    fresh = {str(digest): vault.store.blob_path(digest) for digest in step.fresh}
    problems = adapter.verify(record, fresh)
    if problems:
        raise EngineRefused(
            f"{model.name} was installed into {step.target.place}, but does not verify: {'; '.join(problems[:5])}",
            hint="run the same command again; if that does not help, look at the medium of that directory",
        )
    links = {step.target.directory / file.path: file.link for file in record.files}
    plan = replace(plan, files=tuple(replace(file, link=links.get(file.path, file.link)) for file in plan.files))
    done = replace(
        _outcome(request, plan, changed, "were replaced"),
        next_steps=tuple(adapter.recipe(record)),
        replaces=_replaced(vault, request),
    )
    if not done.already or record != request.previous:
        vault.record("install", record.to_json())
    return done


def _replaced(vault: Vault, request: InstallRequest) -> str | None:
    """Say which version of the model an install puts this one in the place of."""
    before = request.previous
    if before is None or before.manifest == str(request.stored.manifest):
        return None
    return version_of(vault, ModelName(before.model), Digest.parse(before.manifest))


def _is_there(request: InstallRequest, plan: InstallPlan) -> bool:
    """Tell whether an install has nothing to write, since an earlier one did."""
    return request.previous is not None and all(file.there for file in plan.files)


def _plan(adapter: Engine, request: InstallRequest) -> InstallPlan:
    """Plan an install. Raises ``EngineRefused``, also for one that could not be recorded once it is done."""
    plan = adapter.plan(request)
    length = sum(len(json.dumps(str(file.path))) + _ENTRY for file in plan.files)
    if length > MAX_LINE // 2:  # the other half is for the Modelfile, which may be a long one
        raise EngineRefused(
            f"{request.model.name} has {len(request.model.files):,} files, more than the record of an install can name",
            hint="pull only the files that the engine needs: --include and --exclude choose them",
        )
    return plan


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
    place = (step.target.engine, step.target.place, adapter.installed_name(request))
    for row in vault.installs():
        if (row.engine, row.directory, row.installed_name) != place:
            continue
        if not _is_of(vault, row, step):
            raise EngineRefused(
                f"{step.stored.model.name} would replace another model: {row.installed_name} in {row.directory} is the install of {row.model}",
                hint=f"choose another name with --as, or remove that one: `{install_line(row).removal}`",
                model=step.stored.model.name.text,
            )
        return replace(request, previous=InstallRecord.from_json(row.record))
    return request


def same_model(one: StoredModel, other: StoredModel) -> bool:
    """Tell whether two names mean one model, with one recipe: in an engine they are the same, and neither replaces the other."""
    return (one.manifest, one.model.recipe) == (other.manifest, other.model.recipe)


def _is_of(vault: Vault, row: "InstallRow", step: Step) -> bool:
    """Tell whether an install is the model's of a step: by its name, or by that of another name of the same model."""
    stored = step.stored
    if row.model == stored.model.name.text:
        return True
    other = next((model for model in step.coming if model.model.name.text == row.model), None)
    other = other or _listed(vault, row.model)
    if other is None:
        return row.manifest == str(stored.manifest)
    # What lies there may still be an older version, where an update has just brought the newer one under both names.
    same = str(stored.manifest) in {row.manifest, str(other.manifest)}
    return same and other.model.recipe == stored.model.recipe


def _listed(vault: Vault, name: str) -> StoredModel | None:
    try:
        return vault.store.find(ModelName(name))
    except ModelvaultError:  # its documents are damaged: the record has to do
        return None


def _known_as(vault: Vault, record: InstallRecord, request: InstallRequest) -> InstallRecord:
    """Keep the name that an install was recorded under while the vault has it: two names of one model do not take turns."""
    before = request.previous
    if before is None or before.model == record.model or _listed(vault, before.model) is None:
        return record
    return replace(record, model=before.model)


def _outcome(request: InstallRequest, plan: InstallPlan, changed: Sequence[str], fate: str) -> EngineStep:
    """Sum up a plan, or what became of it; ``changed`` files of an earlier install met the ``fate`` of being replaced."""
    # The weights decide what is said of the whole: the little files are always copied.
    largest = max(plan.files, key=lambda file: file.size, default=None)
    lost = ", ".join(dict.fromkeys(changed))
    said = (f"{plan.installed_name}: files that had been changed since they were installed {fate}: {lost}",)
    return EngineStep(
        model=str(request.model.name),
        engine=plan.engine,
        directory=request.target.place,
        installed_name=plan.installed_name,
        link=str(largest.link) if largest else "nothing",
        extra_bytes=plan.extra_bytes,
        already=_is_there(request, plan) and not changed,
        warnings=plan.warnings + (said if changed else ()),
        next_steps=(),
    )
