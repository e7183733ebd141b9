"""Which models of an import go into which engines, decided before anything is received."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from modelvault.artifact import ModelName
from modelvault.bundle.index import ModelEntry
from modelvault.engines import Target
from modelvault.errors import EngineRefused, ModelvaultError, UsageProblem, in_words
from modelvault.operations.install import Placement, Step, plan_step, same_model, targets_for
from modelvault.operations.receiving import Order
from modelvault.results.installs import EngineStep
from modelvault.vault import Vault


@dataclass(frozen=True, slots=True)
class Job:
    """One bundle that was judged, and where its models go. ``lenient``: a model that no named engine takes is only received.

    ``clashes``: models that go into no engine, since another model of this import gets their name there.
    """

    order: Order
    placement: Placement
    lenient: bool
    clashes: Mapping[ModelName, EngineRefused] = field(default_factory=dict)

    def targets(self, entry: ModelEntry) -> tuple[Target, ...]:
        """Choose the engines for a model. Raises ``EngineRefused``."""
        if entry.name in self.clashes:
            raise self.clashes[entry.name]
        model = entry.stored.model
        return self.placement.takers(model) if self.lenient else targets_for(model, self.placement)

    def warnings(self, entry: ModelEntry, steps: Sequence[EngineStep]) -> tuple[str, ...]:
        """Give what the steps warn of; or, where there are none, why the model goes into no engine and how it gets into one."""
        if steps:
            return tuple(warning for step in steps for warning in step.warnings)
        model, placement = entry.stored.model, self.placement
        return (
            f"{model.name} goes into no engine; {placement.why_none(model)}; to install it: `{placement.command(model)}`",
        )


def jobs_for(vault: Vault, orders: Sequence[Order], placement: Placement) -> tuple[Job, ...]:
    """Decide where the models go. Raises ``UsageProblem`` for one Modelfile or name for several models, and for a bad one."""
    entries = [entry for order in orders for entry in order.entries]
    if placement.modelfile is not None and len(entries) > 1:
        raise UsageProblem(
            f"--modelfile is for one model, and {len(entries)} would be imported",
            hint=f"choose one: --only {entries[0].name} --modelfile FILE",
        )
    jobs = [Job(order, placement, _lenient(order.entries, placement)) for order in orders]
    clashes = _clashes(vault, jobs)
    return tuple(replace(job, clashes=clashes) for job in jobs)


def _lenient(entries: Sequence[ModelEntry], placement: Placement) -> bool:
    """Engines named for a whole bundle need not take every model of it, but an engine that takes none was named by mistake."""
    return not placement.named or any(placement.takers(entry.stored.model) for entry in entries)


def _clashes(vault: Vault, jobs: Sequence[Job]) -> dict[ModelName, EngineRefused]:
    """Find the models that would get a name in an engine that an earlier one of this import gets: one would replace the other.

    Raises ``UsageProblem``, before hours of reading, for a bad Modelfile and for an ``--as`` that several models would get.
    """
    taken: dict[tuple[str, str, str], ModelEntry] = {}
    clashes: dict[ModelName, EngineRefused] = {}
    for job in jobs:
        for entry in job.order.entries:
            for step in _foreseen(vault, entry, job):
                first = taken.setdefault((step.engine, step.directory, step.installed_name), entry)
                if same_model(first.stored, entry.stored):
                    continue
                other = first.name
                if other != entry.name and job.placement.name is not None:
                    raise UsageProblem(
                        f"--as {job.placement.name} would be the name of both {other} and {entry.name}",
                        hint=f"choose one: --only {entry.name} --as {job.placement.name}",
                    )
                if other != entry.name:
                    clashes[entry.name] = EngineRefused(
                        f"{entry.name} would get the name of {other} in {step.engine} ({step.directory}): {step.installed_name}",
                        hint=f"import it alone, under another name: --only {entry.name} --as OTHER",
                        model=entry.name.text,
                    )
    return clashes


def _foreseen(vault: Vault, entry: ModelEntry, job: Job) -> Iterator[EngineStep]:
    """Plan a model's steps up to the first that an engine refuses: it is received all the same, and its outcome says why."""
    placement = job.placement
    try:
        with in_words():
            for target in job.targets(entry):
                yield plan_step(vault, Step(entry.stored, target, placement))
    except ModelvaultError as error:
        # What the user typed is wrong for all; the model's own recipe, only for that.
        if isinstance(error, UsageProblem) and (placement.name is not None or placement.modelfile is not None):
            raise
