"""Models held against the policy on their way in, out and through; and the one error that names all that it forbids."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from modelvault.artifact import Model, ModelName, Origin, SourceFile, StoredModel
from modelvault.errors import PolicyRefused
from modelvault.inspect import Advice, ModelReport, find_code, find_pickles, is_pickle_name, pickle_refused
from modelvault.operations.licenses import HOW_TO_ACCEPT, Terms, is_accepted
from modelvault.policy import Candidate, Violation, judge
from modelvault.vault import Vault

_ACCEPT = "licenses.accept"


def listed_candidate(terms: Terms, origin: Origin, files: Sequence[SourceFile]) -> Candidate:
    """Take what is to be judged from a source's listing."""
    sizes = {file.path: file.size for file in files}
    return Candidate(
        *(terms.model, origin, terms.license, sizes),
        license_pending=terms.pending,
        pickles=tuple(filter(is_pickle_name, sizes)),
    )


def require_listed(vault: Vault, candidate: Candidate, *, acceptable: bool) -> None:
    """Judge a model before any byte is fetched. ``acceptable``: its license may yet be accepted. Raises ``PolicyRefused``."""
    _require(vault, [_asked(vault, candidate, acceptable=acceptable)], accept_hint=HOW_TO_ACCEPT)


def require_inspected(
    vault: Vault, candidate: Candidate, report: ModelReport, *, allow_pickle: bool = True, acceptable: bool = False
) -> None:
    """Judge a model by its files' content as well. Raises ``PolicyRefused``; without ``allow_pickle`` also for any pickle."""
    advice = report.advice
    known = replace(
        _asked(vault, candidate, acceptable=acceptable),
        inspected=True,
        quantization=report.traits.quantization,
        pickles=advice.pickles,
        code=advice.code,
        dangerous=advice.dangerous,
    )
    violations = judge(vault.policies, known)
    if advice.pickles and not allow_pickle and all(violation.file is None for violation in violations):
        # Whoever did not even ask for pickles is told what they are, before what is in them.
        raise pickle_refused(list(advice.pickles))
    if violations:
        raise refusal(violations, accept_hint=HOW_TO_ACCEPT)


def _asked(vault: Vault, candidate: Candidate, *, acceptable: bool) -> Candidate:
    return replace(candidate, accepted=acceptable or is_accepted(vault, candidate.license, candidate.name))


def require_stored(vault: Vault, stored: Sequence[StoredModel]) -> None:
    """Judge models that lie in the vault. Raises ``PolicyRefused`` that names all that break a rule."""
    _require(
        vault,
        [stored_candidate(vault, item.model) for item in stored] if vault.policies else [],
        accept_hint="`modelvault policy accept MODEL` records that you accept it",
    )


def stored_candidate(vault: Vault, model: Model) -> Candidate:
    """Take what is to be judged from the files of a model of the vault, as far as they are there."""
    files = {file.path: vault.store.blob_path(file.digest) for file in model.files}
    candidate = replace(Candidate.of(model), pickles=find_pickles(files), code=find_code(files))
    return _asked(vault, candidate, acceptable=False)


def refused_unseen(vault: Vault, models: Sequence[Model], *, acceptable: bool) -> Mapping[ModelName, PolicyRefused]:
    """Give the models that are refused by what their manifests say, without a look at their files."""
    refused = {}
    for model in models:
        pickles = tuple(file.path for file in model.files if is_pickle_name(file.path))
        candidate = _asked(vault, replace(Candidate.of(model), pickles=pickles), acceptable=acceptable)
        if violations := judge(vault.policies, candidate):
            refused[model.name] = refusal(violations, accept_hint=HOW_TO_ACCEPT)
    return refused


def _require(vault: Vault, candidates: Sequence[Candidate], *, accept_hint: str) -> None:
    violations = [violation for candidate in candidates for violation in judge(vault.policies, candidate)]
    if violations:
        raise refusal(violations, accept_hint=accept_hint)


def refusal(violations: Sequence[Violation], *, accept_hint: str) -> PolicyRefused:
    """Build the error for all rules that models break."""
    models = list(dict.fromkeys(violation.model for violation in violations))
    said = [f"{model} is refused {_reasons([item for item in violations if item.model == model])}" for model in models]
    hints = [accept_hint] if any(violation.rule == _ACCEPT for violation in violations) else []
    if any(violation.file is None for violation in violations):
        hints.append(
            "if you know better, name the model among pickle.exceptions in a policy.toml: docs/how-to/policy.md"
        )
    else:
        hints.append("`modelvault policy show` prints all rules; whoever keeps them can change them")
    return PolicyRefused(
        said[0] if len(said) == 1 else f"{len(said)} models break the policy: " + "; ".join(said),
        hint="; ".join(hints),
        violations=[
            {"model": item.model, "rule": item.rule, "value": item.value, "file": item.file and str(item.file)}
            for item in violations
        ],
    )


def _reasons(violations: Sequence[Violation]) -> str:
    """Say what one model breaks, file by file."""
    files = dict.fromkeys(item.file for item in violations)
    return "; and ".join(
        f"{f'by {file}' if file else 'by modelvault itself'}: {'; '.join(str(item) for item in violations if item.file == file)}"
        for file in files
    )


def record_scan(vault: Vault, name: ModelName, advice: Advice) -> None:
    """Write down as a check what was found in the pickles of a model that was published."""
    if not advice.pickles:
        return
    found = (*advice.dangerous, *advice.suspicious)
    verdict = "dangerous" if advice.dangerous else "suspicious" if advice.suspicious else "clean"
    vault.record("check", {"model": name.text, "outcome": f"pickle-{verdict}", "detail": "; ".join(found[:20]) or None})
