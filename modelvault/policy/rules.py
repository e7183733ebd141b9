"""What is known of a model, held against the rules of each file. Pure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from modelvault.artifact import Model, ModelName, Origin
from modelvault.ollama_name import DEFAULT_HOST
from modelvault.policy.files import NO_LICENSE, Exemption, Policy

_CONTAINERS = {
    ".gguf": "gguf",
    ".safetensors": "safetensors",
    ".onnx": "onnx",
    ".h5": "h5",
    ".msgpack": "msgpack",
    ".npz": "npz",
}
"""The formats of weights, by the ends of their files' names. Pickles have a rule of their own."""
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is known of a model that is judged.

    ``sizes`` are those of its files, in bytes; ``pickles`` the files that are some; ``code`` says what of its own has to run; ``dangerous``
    what its pickles would call. As long as it is not ``inspected``, what only its files' content tells is not judged; nor is the license
    while that is ``license_pending``.
    """

    name: ModelName
    origin: Origin
    license: str | None
    sizes: Mapping[str, int]
    accepted: bool = False
    license_pending: bool = False
    inspected: bool = False
    quantization: str | None = None
    pickles: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    dangerous: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: Model) -> "Candidate":
        """Take what a manifest tells of a model."""
        sizes = {file.path: file.size for file in model.files}
        quantization = model.traits.quantization
        return cls(model.name, model.origin, model.license, sizes, inspected=True, quantization=quantization)

    @property
    def license_name(self) -> str:
        """What rules about licenses are held against."""
        return self.license or NO_LICENSE

    @property
    def repository(self) -> str:
        """Where it is from, with the host of a registry that is not Ollama's own; of a folder, whatever it was named."""
        return (self.origin.repository or self.name.hub_id).removeprefix(f"{DEFAULT_HOST}/")

    @property
    def organization(self) -> str | None:
        """Who published it; of a folder, as its name says."""
        return self.repository.rpartition("/")[0] or None

    @property
    def size(self) -> int:
        """The bytes of all its files."""
        return sum(self.sizes.values())

    @property
    def method(self) -> str | None:
        """The method of its quantization: the first word of ``AWQ 4-bit g128``, in lower case."""
        return self.quantization.split()[0].casefold() if self.quantization else None

    @property
    def _named_by_source(self) -> bool:
        """Whether the name says where the model is from: the repository, with a quantization or tag. Of a folder, there is nothing else."""
        if self.origin.repository is None:
            return True
        of_ollama = self.name.ollama is not None and self.name.ollama.repository == self.origin.repository
        return of_ollama or self.name.hub_id.casefold() == self.repository.casefold()

    def exempt(self, exceptions: Sequence[Exemption]) -> bool:
        """Whether one of the exceptions is for this very model: for where it is from, not for what somebody called it."""
        names = {self.repository.casefold()}
        if self._named_by_source:
            names |= {self.name.text.casefold(), self.name.hub_id.casefold()}
        return any(
            entry.model.casefold() in names and entry.commit in {None, self.origin.commit} for entry in exceptions
        )


@dataclass(frozen=True, slots=True)
class Violation:
    """One rule that one model breaks: the key in the ``file`` (none for a rule of ours), the value that breaks it, and both in words."""

    model: str
    rule: str
    value: str
    detail: str
    file: Path | None = field(default=None)

    def __str__(self) -> str:
        """Say it, with the key."""
        return f"{self.detail} ({self.rule})"


def judge(policies: Sequence[Policy], candidate: Candidate) -> tuple[Violation, ...]:
    """Give every rule that a model breaks, in the order of the files and of their keys."""
    violations = [
        Violation(candidate.name.text, rule, value, detail, policy.file)
        for policy in policies
        for rule, judged in _RULES.items()
        if not (candidate.license_pending and rule.startswith("licenses."))
        for value, detail in judged(policy, candidate)
    ]
    if candidate.dangerous and all(policy.rules.pickle is None for policy in policies):
        # Where no file has a rule about pickles, this one of ours holds.
        found = _dangerous(candidate)
        violations.append(Violation(candidate.name.text, "pickle.allow", found[0], found[1]))
    return tuple(violations)


def wants_acceptance(policies: Sequence[Policy], license_name: str | None) -> tuple[Path, ...]:
    """Name the files by whose rules a person has to accept a license."""
    name = license_name or NO_LICENSE
    return tuple(policy.file for policy in policies if _matching(name, policy.rules.licenses.accept))


_Found = Iterator[tuple[str, str]]


def _sources(policy: Policy, candidate: Candidate) -> _Found:
    allowed = policy.rules.sources
    if allowed is not None and candidate.origin.kind not in allowed:
        yield candidate.origin.kind, f"its source is {candidate.origin.kind}, allowed: {_few(allowed)}"


def _organizations(policy: Policy, candidate: Candidate) -> _Found:
    allowed, organization = policy.rules.organizations, candidate.organization
    if allowed is None:
        return
    if organization is None:
        yield candidate.repository, f"{candidate.repository} names no organization, allowed: {_few(allowed)}"
    elif not any(_matches(candidate.repository if "/" in glob else organization, glob) for glob in allowed):
        yield organization, f"its organization is {organization}, allowed: {_few(allowed)}"


def _formats(policy: Policy, candidate: Candidate) -> _Found:
    allowed = policy.rules.formats
    if allowed is None:
        return
    methods = set(allowed) - set(_CONTAINERS.values())
    for container, path in _containers(candidate).items():
        if container in allowed or (container == "safetensors" and methods and not candidate.inspected):
            continue
        if container == "safetensors" and methods:
            if candidate.method not in methods:
                said = candidate.quantization or "not known"
                yield said, f"its quantization is {said}, allowed formats: {_few(allowed)}"
        else:
            yield container, f"{path} is of the format {container}, allowed: {_few(allowed)}"


def _containers(candidate: Candidate) -> dict[str, str]:
    """Give the formats of the weights, each with the first file of it."""
    found: dict[str, str] = {}
    for path in sorted(candidate.sizes):
        container = _CONTAINERS.get(PurePosixPath(path).suffix.lower())
        if container is not None:
            found.setdefault(container, path)
    return found


def _largest(policy: Policy, candidate: Candidate) -> _Found:
    if policy.largest is not None and candidate.size > policy.largest:
        yield (
            str(candidate.size),
            f"it has {candidate.size:,} bytes, more than {policy.rules.largest_model} ({policy.largest:,})",
        )


def _licenses_allow(policy: Policy, candidate: Candidate) -> _Found:
    allowed, name = policy.rules.licenses.allow, candidate.license_name
    if allowed is not None and not _matching(name, allowed):
        yield name, f"its license is {name}, allowed: {_few(allowed)}"


def _licenses_deny(policy: Policy, candidate: Candidate) -> _Found:
    if glob := _matching(candidate.license_name, policy.rules.licenses.deny):
        name = candidate.license_name
        yield name, f"its license is {name}, denied{'' if glob == name else f' as {glob}'}"


def _licenses_accept(policy: Policy, candidate: Candidate) -> _Found:
    if not candidate.accepted and _matching(candidate.license_name, policy.rules.licenses.accept):
        yield candidate.license_name, f"its license is {candidate.license_name}, which nobody has accepted here"


def _pickle(policy: Policy, candidate: Candidate) -> _Found:
    table = policy.rules.pickle
    if table is None or not candidate.pickles or candidate.exempt(table.exceptions):
        return
    shown = _few(candidate.pickles)
    if table.allow == "never":
        yield shown, f"pickle files are never allowed: {shown}"
    elif table.allow == "exceptions":
        yield shown, f"pickle files are allowed for exceptions only: {shown}"
    elif candidate.dangerous:
        yield _dangerous(candidate)


def _dangerous(candidate: Candidate) -> tuple[str, str]:
    shown = _few(candidate.dangerous)
    return shown, f"its pickle files are dangerous: {shown}"


def _remote_code(policy: Policy, candidate: Candidate) -> _Found:
    table = policy.rules.remote_code
    if table is None or table.allow == "always" or not candidate.code or candidate.exempt(table.exceptions):
        return
    shown = _few(candidate.code)
    said = "never allowed" if table.allow == "never" else "allowed for exceptions only"
    yield shown, f"it needs code of its own to be run, which is {said}: {shown}"


_RULES: Mapping[str, Callable[[Policy, Candidate], _Found]] = {
    "sources": _sources,
    "organizations": _organizations,
    "formats": _formats,
    "largest_model": _largest,
    "licenses.allow": _licenses_allow,
    "licenses.deny": _licenses_deny,
    "licenses.accept": _licenses_accept,
    "pickle.allow": _pickle,
    "remote_code.allow": _remote_code,
}


def _matches(text: str, glob: str) -> bool:
    return fnmatchcase(text.casefold(), glob.casefold())


def _matching(text: str, globs: Sequence[str]) -> str | None:
    return next((glob for glob in globs if _matches(text, glob)), None)


def _few(values: Sequence[str]) -> str:
    more = f" and {len(values) - _MOST_NAMED} more" if len(values) > _MOST_NAMED else ""
    return ", ".join(values[:_MOST_NAMED]) + more
