"""``installs`` and ``verify --installs``: what is installed where, and whether it still is what was installed."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from modelvault.artifact import ModelName
from modelvault.engines import InstalledFile, InstallRecord, LinkKind, engines
from modelvault.engines.checks import check_files
from modelvault.errors import DigestMismatch, ModelvaultError, UsageProblem
from modelvault.operations.summaries import last_smoke, repair
from modelvault.progress import Progress
from modelvault.results.bundles import Damage, VerifyResult
from modelvault.results.installs import InstallsResult, InstallState
from modelvault.vault import Vault

if TYPE_CHECKING:
    from modelvault.registry import InstallRow


def list_installs(vault: Vault, progress: Progress, *, check: bool = False) -> InstallsResult:
    """Look at every install: that its files are there and have their sizes; with ``check``, hash them.

    Raises ``DigestMismatch`` with the result if that found damage.
    """
    result = InstallsResult(vault.root, check, tuple(_states(vault, (), progress, check=check)))
    if check:
        _judge(result.installs, result)
    return result


def verify_installs(vault: Vault, names: Sequence[ModelName], progress: Progress) -> VerifyResult:
    """Hash what is installed of the named models, or of all. Raises ``DigestMismatch`` with the result if anything is damaged."""
    begun = time.monotonic()
    states = tuple(_states(vault, names, progress, check=True))
    result = VerifyResult(
        subject=", ".join(name.text for name in names) or "models in engines",
        signer=None,
        unit="install",
        checked=len(states),
        size=sum(state.size for state in states),
        seconds=time.monotonic() - begun,
        damage=tuple(
            Damage(f"{state.installed_name} in {state.engine}", problem, (state.model,))
            for state in states
            for problem in state.problems
        ),
    )
    _judge(states, result)
    return result


def _states(vault: Vault, names: Sequence[ModelName], progress: Progress, *, check: bool) -> Iterator[InstallState]:
    rows = vault.installs()
    smokes = vault.registry.smokes() if rows else ()
    for name in names:
        if not any(row.model == name.text for row in rows):
            raise UsageProblem(f"{name} is not installed in any engine", hint="`modelvault installs` lists what is")
    fresh: dict[str, Path] = {}
    for row in rows:
        if not names or row.model in {name.text for name in names}:
            if check:
                progress.log(f"checking {row.installed_name} in {row.engine} ({row.directory})")
            yield replace(_state(row, fresh, check=check), last_smoke=last_smoke(row, smokes))


def _state(row: "InstallRow", fresh: dict[str, Path], *, check: bool) -> InstallState:
    """Look at one install. What was hashed and found right is added to ``fresh``: of hard links, one is read."""
    files: tuple[InstalledFile, ...] = ()
    try:
        record = InstallRecord.from_json(row.record)
        files = record.files
        adapter = engines().get(row.engine)
        if adapter is None:
            problems = [f"this version of modelvault has no engine called {row.engine}"]
        elif check:
            problems = adapter.verify(record, fresh)
        elif record.remote:
            problems = []  # nobody is asked over a network unless the user wants it
        else:
            problems = check_files(record, {}, hashed=False)
        if check and not problems and not record.remote:
            fresh.update({file.digest: Path(row.directory, file.path) for file in files})
    except ModelvaultError as error:
        problems = [error.message]
    weights = max((file for file in files if file.link != LinkKind.SYMLINK), key=lambda file: file.size, default=None)
    return InstallState(
        model=row.model,
        engine=row.engine,
        directory=row.directory,
        installed_name=row.installed_name,
        installed_at=row.installed_at,
        link=weights.link if weights else "unknown",
        size=sum({file.digest: file.size for file in files}.values()),
        problems=tuple(problems),
    )


def _judge(states: Sequence[InstallState], result: InstallsResult | VerifyResult) -> None:
    broken = [state for state in states if state.problems]
    if not broken:
        return
    first = broken[0]
    command = repair(first.model, first.engine, first.directory)
    raise DigestMismatch(
        f"{len(broken)} of {len(states)} installs are not as they were made, the first is {first.installed_name} "
        f"in {first.engine}: {first.problems[0]}",
        hint=f"install again, under the same name: `{command}`",
        result=result,
    )
