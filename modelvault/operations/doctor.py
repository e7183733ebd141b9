"""``doctor``: look at the vault and the engines of this machine for what would make an install fail, or its model not run.

Nothing on disk is changed, and nobody is spoken to but an Ollama on this machine.
"""

import os
import pwd
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from modelvault.artifact import Digest
from modelvault.engines import Engine, LinkKind, Surroundings, Target, engines, parse_target
from modelvault.engines.examine import Examiner, Place
from modelvault.errors import EngineRefused, ModelvaultError
from modelvault.operations.doctor_vault import VaultLook, look_at
from modelvault.results.engines import DoctorResult, EngineFound, Finding, Level
from modelvault.vault import Vault

_ON = {"1", "on", "yes", "true"}
_ANY_BLOB = Digest.of_bytes(b"")


def doctor(vault: Vault, named: Sequence[str] = (), around: Surroundings | None = None) -> DoctorResult:
    """Look at everything. ``named`` are engines' directories as ``--engine`` takes them; ``around`` is what detection looks at.

    Raises ``ModelvaultError`` with the result where the vault itself stands in the way of an install, ``EngineRefused`` where an engine's
    directory does, and ``UsageProblem`` for an engine that there is not.
    """
    around = around or Surroundings()
    adapters, examiner = engines(around), Examiner(around)
    asked = [parse_target(text, adapters) for text in named]
    look = look_at(vault)
    targets = _targets(adapters, look, asked)
    source = look.blob or vault.store.blob_path(_ANY_BLOB)
    findings, found = [*look.findings, *_environment(around)], []
    for engine in adapters:
        releases = tuple(examiner.releases(engine))
        findings += releases
        here = {target: how for target, how in targets.items() if target.engine == engine}
        for target, how in here.items():
            if target.address is not None:
                findings.append(_remote(target))
                continue
            place = examiner.place(target, source)
            findings += [*place.findings, *_room(target, place, look.largest)]
            found.append(_line(target, how, examiner.version(engine), place))
        if releases and not here:
            what, advice = "where its models lie is not known", f"name the directory: --engine {engine}=DIR"
            findings.append(Finding(engine, Level.NOTE, what, advice))
    if not targets:
        what, advice = "none was found on this machine", "name one by its directory: --engine ENGINE=DIR"
        findings.append(Finding("engines", Level.NOTE, what, advice))
    return _judged(DoctorResult(vault.root, _user(), tuple(found), tuple(findings)), look)


def _targets(adapters: Mapping[str, Engine], look: VaultLook, asked: Sequence[Target]) -> dict[Target, str]:
    """Collect the directories to look at, each once, with how each came up."""
    targets = dict.fromkeys(asked, "named")
    for adapter in adapters.values():
        if target := adapter.detect():
            targets.setdefault(target, "found here")
    for row in look.installs:
        if row.engine in adapters:
            local = row.directory.startswith("/")
            target = Target(row.engine, Path(row.directory)) if local else Target.behind(row.engine, row.directory)
            targets.setdefault(target, "installed into")
    return targets


def _remote(target: Target) -> Finding:
    what = "a server behind an address is not asked unasked"
    return Finding(f"{target.engine} ({target.place})", Level.OK, f"{what}: `modelvault verify --installs` does")


def _room(target: Target, place: Place, largest: int) -> Iterator[Finding]:
    """Warn where the largest model of the vault would have to be copied, and does not fit."""
    if place.link is LinkKind.COPY and place.free is not None and place.free < largest:
        what = f"has {place.free:,} bytes free; the largest model of the vault has {largest:,}, and would be copied"
        yield Finding(
            f"{target.engine} ({target.place})", Level.NOTE, what, "free some space, or choose another directory"
        )


def _line(target: Target, how: str, version: str | None, place: Place) -> EngineFound:
    return EngineFound(
        engine=target.engine,
        directory=target.directory,
        found=how,
        exists=place.exists,
        version=version,
        owner=str(place.owner) if place.owner else None,
        free=place.free,
        link=place.link.value if place.link else None,
    )


def _environment(around: Surroundings) -> Iterator[Finding]:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if around.environment.get(name, "").lower() in _ON:
            what = f"{name} is set: `pull` fetches nothing from the Hub"
            yield Finding("environment", Level.NOTE, what, "right on an isolated server; else unset it")


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _judged(result: DoctorResult, look: VaultLook) -> DoctorResult:
    """Give the result, or raise what stands in the way of an install: of the vault first, since then none works."""
    for findings, error in ((look.findings, ModelvaultError), (result.findings, EngineRefused)):
        blocking = [finding for finding in findings if finding.blocks]
        if blocking:
            first, more = blocking[0], f" (and {len(blocking) - 1} more)" if len(blocking) > 1 else ""
            raise error(f"{first.subject}: {first.what}{more}", hint=first.advice, result=result)
    return result
