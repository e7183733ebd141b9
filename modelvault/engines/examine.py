"""Looking at an engine and its directory before anything is installed there: which release, whose directory, who can do what in it.

What only one engine can suffer from is in a module of that engine's own. Nothing is changed.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from modelvault import filesystem, fsio
from modelvault.engines import hub_dangers
from modelvault.engines.base import LinkKind, Owner, Surroundings, Target
from modelvault.engines.caretaker import resolve_owner
from modelvault.engines.ground import standing_on
from modelvault.engines.ollama import OllamaEngine
from modelvault.engines.ollama_dangers import OllamaHere
from modelvault.engines.permissions import ENTER, WRITE, Reader
from modelvault.engines.place import hard_link_refused
from modelvault.engines.programs import find_program
from modelvault.errors import EngineRefused
from modelvault.results.engines import Finding, Level

_CACHES = {"vllm": "", "sglang": "", "tgi": "hub"}
"""The engines that read a hub cache, and where it lies below their directory."""


@dataclass(frozen=True, slots=True)
class Place:
    """An engine's directory, with what was found; ``link``: how weights of the vault would get there; ``None``: an install would fail."""

    exists: bool = True
    owner: Owner | None = None
    free: int | None = None
    link: LinkKind | None = None
    findings: tuple[Finding, ...] = ()


class Examiner:
    """Looks at the engines of one machine."""

    def __init__(self, around: Surroundings) -> None:
        """Remember where to look."""
        self._around = around
        self._ollama = OllamaHere(around)

    def version(self, engine: str) -> str | None:
        """Give the release of an engine's server or program, if it tells."""
        if engine == OllamaEngine.name:
            return self._ollama.version
        program = find_program(engine, self._around)
        return program.version if program else None

    def releases(self, engine: str) -> Iterator[Finding]:
        """Say which release of an engine is here, and what it, or this machine, cannot do."""
        if engine == OllamaEngine.name:
            yield from self._ollama.releases()
        elif program := find_program(engine, self._around):
            if program.version:
                yield Finding(engine, Level.OK, f"{program.path} is release {program.version}")
            else:
                yield Finding(engine, Level.NOTE, f"{program.path} does not tell its release")
        if engine == "vllm":
            yield from hub_dangers.cards(self._around)
        elif engine == "tgi":
            yield from hub_dangers.offline_word(self._around)

    def place(self, target: Target, source: Path) -> Place:
        """Look at an engine's directory; ``source`` is a blob of the vault, or where one would be."""
        subject, directory = f"{target.engine} ({target.place})", target.directory
        try:
            if directory.exists() and not directory.is_dir():
                what, advice = f"{directory} is not a directory", "move it away, or name the engine's directory"
                return Place(findings=(Finding(subject, Level.DANGER, what, advice, blocks=True),))
            place = _ground(subject, directory, source)
            found = list(place.findings)
            if place.exists:
                found += self._readers(subject, target)
                found += self._dangers(subject, target)
        except OSError as error:
            what = f"cannot be looked into: {error.filename or directory}: {(error.strerror or str(error)).lower()}"
            advice = "run the command as root or as the user that the engine runs as"
            return Place(findings=(Finding(subject, Level.DANGER, what, advice, blocks=True),))
        return replace(place, findings=tuple(found))

    def _dangers(self, subject: str, target: Target) -> Iterator[Finding]:
        if target.engine == OllamaEngine.name:
            yield from self._ollama.in_store(subject, target.directory)
            yield from self._service(subject, target)
        elif target.engine in _CACHES:
            yield from hub_dangers.in_cache(subject, target.directory / _CACHES[target.engine])

    def _service(self, subject: str, target: Target) -> Iterator[Finding]:
        """Look whether ``OLLAMA_MODELS``, which is set here, leads elsewhere than the service looks."""
        text = self._around.environment.get("OLLAMA_MODELS", "")
        if text.startswith("~"):
            what = f"OLLAMA_MODELS is {text}, and Ollama takes the ~ for the name of a directory"
            yield Finding(subject, Level.NOTE, what, "write the whole path")
        without = {name: value for name, value in self._around.environment.items() if name != "OLLAMA_MODELS"}
        other = OllamaEngine(replace(self._around, environment=without)).detect() if text else None
        if self._ollama.service_user and other and other.directory != target.directory:
            what = f"OLLAMA_MODELS leads here, but the service reads {other.directory}"
            yield Finding(subject, Level.NOTE, what, f"to install for the service: --engine ollama={other.directory}")

    def _readers(self, subject: str, target: Target) -> Iterator[Finding]:
        """Look whether the engine's user gets at what is there: the directory's owner, and the service's user where that is known."""
        directory = target.directory
        status = directory.stat()
        owner = Owner(status.st_uid, status.st_gid)
        service = self._ollama.service_user if target.engine == OllamaEngine.name else None
        for user in dict.fromkeys(filter(None, (owner, service))):
            yield from _reading(subject, directory, user, "its owner" if user == owner else "the service's user")
        if service and not Reader.of(service).may(directory, WRITE | ENTER):
            what = f"the service runs as {service}, and cannot write there: its own pull, rm and create fail"
            yield Finding(subject, Level.DANGER, what, f"give it the directory: chown -R {service} {directory}")


def _ground(subject: str, directory: Path, source: Path) -> Place:
    """Say to whom an install would give its files and how, and why this user could not make one. Raises ``OSError``."""

    def refused(what: str, advice: str | None) -> Place:
        finding = Finding(subject, Level.DANGER, what, advice, blocks=True)
        return Place(exists, there if exists else None, free, findings=(finding,))

    exists, free = directory.exists(), filesystem.free_space(directory)
    parent = filesystem.existing_parent(directory)
    status = parent.stat()
    there = Owner(status.st_uid, status.st_gid)
    if os.statvfs(parent).f_flag & os.ST_RDONLY:
        return refused(f"the file system of {parent} is mounted read-only", "mount it for writing")
    try:
        owner = resolve_owner(directory, None)
        with standing_on(parent, owner.uid):
            pass
    except EngineRefused as error:
        return refused(f"an install by this user fails: {error.message}", error.hint)
    if not os.access(parent, os.W_OK | os.X_OK):
        return refused(f"this user cannot write in {parent}", "run the command as root or as the directory's owner")
    link, how = _how_linked(source, parent, owner)
    begun = f"belongs to {there}" if exists else f"is not there yet: the first install makes it, for {owner}"
    finding = Finding(subject, Level.OK, f"{begun}; weights would {how}")
    return Place(exists, there if exists else None, free, link, (finding,))


def _how_linked(source: Path, directory: Path, owner: Owner) -> tuple[LinkKind, str]:
    """Say how weights would get there under ``--link auto``, and in words why. Raises ``OSError``."""
    if not source.parent.is_dir():  # a vault that is not there yet would be made below what is
        source = filesystem.existing_parent(source.parent) / source.name
    reason = hard_link_refused(source, directory, owner)
    if reason is None:
        return LinkKind.HARD, "be hard links to the vault's, and take no space"
    if fsio.can_reflink(source, directory):
        return LinkKind.REFLINK, "share the vault's blocks (reflink), and take no space"
    return LinkKind.COPY, f"be copied, since {reason}"


def _reading(subject: str, directory: Path, user: Owner, who: str) -> Iterator[Finding]:
    """Look whether a user gets into a directory and reads what is there. Raises ``OSError``."""
    reader = Reader.of(user)
    if barred := reader.barred(directory):
        what = f"{who} {user} cannot get into {barred}"
        yield Finding(subject, Level.DANGER, what, "let it in (chmod), or choose a directory elsewhere", blocks=True)
    elif unreadable := reader.unreadable(directory):
        more = f" and {len(unreadable) - 1} more" if len(unreadable) > 1 else ""
        what = f"{who} {user} cannot read {unreadable[0]}{more}"
        yield Finding(subject, Level.DANGER, what, f"give it the files: chown -R {user} {directory}")
