"""What an engine adapter takes and gives: targets, requests, plans, records, and the protocol itself."""

import grp
import os
import pwd
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, Self

from modelvault.artifact import Digest, Model, StoredModel, check_relative_path
from modelvault.errors import UsageProblem, VaultDamaged


class LinkMode(StrEnum):
    """How the user wants bytes to be placed. ``AUTO`` is the design's rule: hard link, else reflink, else copy."""

    AUTO = "auto"
    HARD = "hard"
    REFLINK = "reflink"
    COPY = "copy"


class LinkKind(StrEnum):
    """How one file got (or would get) into the engine's directories. ``PRESENT``: it was there before, and is not ours.

    ``WRITE``: made by us, small; ``MERGE``: made of several files of the vault, as large as they are.
    """

    HARD = "hard link"
    REFLINK = "reflink"
    COPY = "copy"
    SYMLINK = "symlink"
    WRITE = "write"
    MERGE = "merge"
    PRESENT = "present"


@dataclass(frozen=True, slots=True)
class Owner:
    """Who an engine's files belong to."""

    uid: int
    gid: int

    def __str__(self) -> str:
        """Give ``user:group``, by name where there is one."""
        try:
            user = pwd.getpwuid(self.uid).pw_name
        except KeyError:
            user = str(self.uid)
        try:
            return f"{user}:{grp.getgrgid(self.gid).gr_name}"
        except KeyError:
            return f"{user}:{self.gid}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``user``, ``user:group`` or numbers in their place. Raises ``UsageProblem`` for names the system does not know."""
        user, colon, group = text.partition(":")
        try:
            if user.isdecimal():
                uid, login_group = int(user), int(user)
            else:
                entry = pwd.getpwnam(user)
                uid, login_group = entry.pw_uid, entry.pw_gid
            if not colon:
                return cls(uid, login_group)
            return cls(uid, int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid)
        except (KeyError, OverflowError) as error:
            raise UsageProblem(
                f"no such user or group on this machine: {text!r}",
                hint="write USER, USER:GROUP or numbers, such as ollama:ollama or 998:998",
            ) from error


@dataclass(frozen=True, slots=True)
class Target:
    """An engine's name and the directory of models that it reads; or the ``address`` of a server, whose directory is nowhere here."""

    engine: str
    directory: Path
    address: str | None = None

    @classmethod
    def behind(cls, engine: str, address: str) -> Self:
        """Name a server by its address."""
        return cls(engine, Path(os.devnull), address)

    @property
    def place(self) -> str:
        """The directory or address, as records and messages have it."""
        return self.address or str(self.directory)


@dataclass(frozen=True, slots=True)
class InstallRecord:
    """One model placed into one engine's directories: enough to verify and to remove it.

    ``directory`` may be the address of a server; ``model`` is the vault's name, ``manifest`` the digest of its manifest, ``arguments``
    what the engine should be started with, ``modelfile`` the Modelfile that Ollama's layers were made from.
    """

    engine: str
    directory: str
    model: str
    manifest: str
    installed_name: str
    files: "tuple[InstalledFile, ...]"
    modelfile: str | None = None
    arguments: tuple[str, ...] = ()

    @property
    def remote(self) -> bool:
        """Whether ``directory`` is the address of a server: then ``files`` are not to be looked for on this machine."""
        return not self.directory.startswith("/")

    def to_json(self) -> dict[str, Any]:
        """Give the record as plain JSON values."""
        return {
            "engine": self.engine,
            "directory": self.directory,
            "model": self.model,
            "manifest": self.manifest,
            "installed_name": self.installed_name,
            "files": [
                {"path": file.path, "digest": file.digest, "size": file.size, "link": file.link} for file in self.files
            ],
            "modelfile": self.modelfile,
            "arguments": list(self.arguments),
        }

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` wrote; what it did not is passed over. Raises ``VaultDamaged`` for missing or ill-typed keys and unsafe paths."""
        try:
            return cls._decoded(table)
        except ValueError as error:
            raise VaultDamaged(
                f"the vault's record of the install {table.get('installed_name')} is not what was recorded: {error}",
                hint="`modelvault registry rebuild` takes it from the event log again; "
                "where it was the log that changed, put a copy of events.jsonl back first",
            ) from error

    @classmethod
    def _decoded(cls, table: Mapping[str, Any]) -> Self:
        texts = {key: table.get(key) for key in ("engine", "directory", "model", "manifest", "installed_name")}
        files, modelfile, arguments = table.get("files"), table.get("modelfile"), table.get("arguments")
        well_formed = (
            all(isinstance(text, str) for text in texts.values())
            and isinstance(modelfile, str | None)
            and isinstance(files, list)
            and isinstance(arguments, list)
            and all(isinstance(argument, str) for argument in arguments)
        )
        if not well_formed or not str(texts["directory"]).startswith(("/", "http://", "https://")):
            raise ValueError("not an install record")
        Digest.parse(str(texts["manifest"]))
        return cls(
            **{key: str(text) for key, text in texts.items()},
            files=tuple(InstalledFile.from_json(file) for file in files or []),
            modelfile=modelfile,
            arguments=tuple(arguments or []),
        )


@dataclass(frozen=True, slots=True)
class InstalledFile:
    """One file of an install. ``path`` is relative to the record's directory; ``link`` says how it got there."""

    path: str
    digest: str
    size: int
    link: str

    def __post_init__(self) -> None:
        """Keep the plain string of a ``LinkKind``: records travel as JSON and into the registry."""
        object.__setattr__(self, "link", LinkKind(self.link).value)

    @classmethod
    def from_json(cls, table: object) -> Self:
        """Read one entry of a record; raises ``ValueError`` for missing or ill-typed keys and unsafe paths."""
        if not isinstance(table, dict) or not {"path", "digest", "size", "link"} <= table.keys():
            raise ValueError("not an installed file")
        path, digest, size, link = table["path"], table["digest"], table["size"], table["link"]
        if not isinstance(path, str) or not isinstance(digest, str) or type(size) is not int or size < 0:
            raise ValueError("not an installed file")
        return cls(check_relative_path(path), str(Digest.parse(digest)), size, link)


def _ignore(_: object) -> None:
    """Hear of something, and do nothing."""


@dataclass(frozen=True, slots=True)
class InstallRequest:
    """What to install where.

    ``blob_path`` finds a blob of the vault; ``name`` is the user's ``--as``; ``owner`` the user's ``--owner`` (else the owner of
    the engine's directory); ``modelfile`` replaces the recipe's. ``previous`` is what an earlier install under the same name into this
    target recorded: what it placed may be replaced, and what of it is no longer needed is removed. ``on_bytes`` hears of bytes that
    were copied or hashed, ``on_changed`` of files of the model that we had placed, that were changed since, and that are replaced.
    """

    stored: StoredModel
    blob_path: Callable[[Digest], Path]
    target: Target
    name: str | None = None
    link: LinkMode = LinkMode.AUTO
    owner: Owner | None = None
    modelfile: str | None = None
    previous: InstallRecord | None = None
    on_bytes: Callable[[int], object] = _ignore
    on_changed: Callable[[str], object] = _ignore

    @property
    def model(self) -> Model:
        """The model itself."""
        return self.stored.model


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file of an install, with how it would get there, or got ``there`` before. ``size`` in bytes."""

    path: Path
    digest: Digest | None
    size: int
    link: str
    there: bool = False

    def __post_init__(self) -> None:
        """Keep the plain string of a ``LinkKind``, as in a record."""
        object.__setattr__(self, "link", LinkKind(self.link).value)


_TAKES_SPACE = {LinkKind.COPY, LinkKind.WRITE, LinkKind.MERGE}


@dataclass(frozen=True, slots=True)
class InstallPlan:
    """What an install would do. ``extra_bytes`` are those that are really written, not linked or there already."""

    engine: str
    directory: Path
    installed_name: str
    files: tuple[PlannedFile, ...]
    warnings: tuple[str, ...] = ()

    @property
    def extra_bytes(self) -> int:
        """The bytes that the engine's file system has to hold in addition."""
        return sum(file.size for file in self.files if file.link in _TAKES_SPACE and not file.there)


@dataclass(frozen=True, slots=True)
class Removal:
    """What an uninstall took away, and what it ``kept`` because it is no longer what was installed."""

    removed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What detection looks at: the environment, the home directory, and the root under which system paths are sought."""

    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    home: Path = field(default_factory=Path.home)
    root: Path = Path("/")

    def program(self, name: str) -> str | None:
        """Find a program on the environment's ``PATH``."""
        return shutil.which(name, path=self.environment.get("PATH", os.defpath))

    def variable(self, name: str) -> Path | None:
        """Read a path from the environment; empty counts as unset."""
        value = self.environment.get(name)
        return Path(value).expanduser().absolute() if value else None


NOTHING_FRESH: Mapping[str, Path] = MappingProxyType({})


class Engine(Protocol):
    """An adapter. None of its methods needs the engine to run; ``plan`` and ``detect`` change nothing on disk."""

    @property
    def name(self) -> str:
        """The word for it in ``--engine``."""
        ...

    def detect(self) -> Target | None:
        """Say where the engine's models lie on this machine, if it is here."""
        ...

    def default(self) -> Target | None:
        """Say where the engine's models lie if it was started without options; ``None`` if the user has to say."""
        ...

    def accepts(self, model: Model) -> str | None:
        """Give the reason why the engine cannot serve the model, or ``None`` if it can."""
        ...

    def plugin_for(self, model: Model) -> str | None:
        """Name what has to be installed beside the engine for a model that it accepts, if anything."""
        ...

    def needs(self, request: InstallRequest) -> Mapping[str, tuple[str, ...]]:
        """Name the repositories whose code the engine would look for in the same directory and not find, with their files.

        Raises ``EngineRefused`` or ``UsageProblem`` as ``install`` would.
        """
        ...

    def installed_name(self, request: InstallRequest) -> str:
        """Give the name that the engine would know the model by, so that an earlier install under it can be looked up."""
        ...

    def plan(self, request: InstallRequest) -> InstallPlan:
        """Say what ``install`` would do. Raises ``EngineRefused`` or ``UsageProblem`` as ``install`` would.

        Weights that are there are judged by their size alone; ``install`` hashes them.
        """
        ...

    def install(self, request: InstallRequest) -> InstallRecord:
        """Place the model. Raises ``EngineRefused``, ``UsageProblem``, ``NoSpace`` or ``DigestMismatch``; safe to repeat."""
        ...

    def verify(self, record: InstallRecord, fresh: Mapping[str, Path] = NOTHING_FRESH) -> list[str]:
        """Hash what was installed and list what is wrong with it; empty if nothing is.

        ``fresh`` gives files of the vault, by digest, that were hashed a moment ago: hard links to them are not read again.
        """
        ...

    def uninstall(self, record: InstallRecord) -> Removal:
        """Remove what was installed and nothing else: files that were changed since stay. Raises ``EngineRefused``."""
        ...

    def recipe(self, record: InstallRecord) -> list[str]:
        """Give the shell lines that start the engine with the model."""
        ...
