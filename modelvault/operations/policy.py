"""``policy``: what holds here, which models of the vault break it, and accepting their licenses."""

from collections.abc import Iterator, Sequence

from modelvault.artifact import ModelName
from modelvault.errors import UsageProblem
from modelvault.operations.judging import refusal, stored_candidate
from modelvault.operations.licenses import Terms, acceptance, record_acceptance
from modelvault.operations.summaries import lack_warning
from modelvault.policy import FILE_NAME, MACHINE_FILE, Exemption, Policy, judge
from modelvault.results.policy import (
    AcceptResult,
    LicenseAccepted,
    PolicyCheck,
    PolicyFile,
    PolicyLine,
    PolicyResult,
    ViolationLine,
)
from modelvault.vault import Vault


def show_policy(vault: Vault) -> PolicyResult:
    """Give the rules that hold here, by file. Raises ``UsageProblem`` for a file that cannot be read."""
    there = {policy.file: policy for policy in vault.policies}
    places = (MACHINE_FILE, vault.root / FILE_NAME)
    return PolicyResult(
        vault.root,
        tuple(
            PolicyFile(place, place in there, tuple(_lines(there[place])) if place in there else ()) for place in places
        ),
    )


def _lines(policy: Policy) -> Iterator[PolicyLine]:
    """Say a file's rules, in the order in which they are judged."""
    rules = policy.rules
    lists = {
        "sources": rules.sources,
        "organizations": rules.organizations,
        "formats": rules.formats,
        "licenses.allow": rules.licenses.allow,
        "licenses.deny": rules.licenses.deny,
        "licenses.accept": rules.licenses.accept,
    }
    yield from (PolicyLine(rule, ", ".join(values)) for rule, values in lists.items() if values)
    if rules.largest_model is not None:
        yield PolicyLine("largest_model", str(rules.largest_model))
    for rule, table in (("pickle.allow", rules.pickle), ("remote_code.allow", rules.remote_code)):
        if table is not None:
            yield PolicyLine(rule, table.allow, tuple(map(_exemption, table.exceptions)))


def _exemption(entry: Exemption) -> str:
    at = f" at {entry.commit[:12]}" if entry.commit else ""
    return f"{entry.model}{at}: {entry.why}"


def check_policy(vault: Vault, names: Sequence[ModelName]) -> PolicyCheck:
    """Judge models of the vault, or all of them. Raises ``PolicyRefused`` with the result if any breaks a rule, ``UsageProblem``."""
    stored = vault.select(names)
    violations = [
        violation for item in stored for violation in judge(vault.policies, stored_candidate(vault, item.model))
    ]
    result = PolicyCheck(
        vault=vault.root,
        files=tuple(policy.file for policy in vault.policies),
        checked=tuple(item.model.name.text for item in stored),
        violations=tuple(
            ViolationLine(item.model, item.rule, item.value, item.file, item.detail) for item in violations
        ),
        warnings=tuple(warning for item in stored for warning in lack_warning(vault, item)),
    )
    if violations:
        error = refusal(violations, accept_hint="`modelvault policy accept MODEL` records that you accept a license")
        error.result = result
        error.hint = f"{error.hint}; `modelvault rm MODEL` takes a model out of the vault"
        raise error
    return result


def accept_licenses(vault: Vault, names: Sequence[ModelName]) -> AcceptResult:
    """Write down that the licenses of models of the vault are accepted. Raises ``UsageProblem`` for names that there are not."""
    if not names:
        raise UsageProblem("no model is named", hint="say whose license you accept: modelvault policy accept MODEL")
    accepted = []
    for item in vault.select(names):
        terms = Terms.of(item.model)
        known = acceptance(vault, terms.license, terms.model)
        if known is None:
            record_acceptance(vault, terms, "policy accept")
        row = known or acceptance(vault, terms.license, terms.model)
        if row is not None:
            accepted.append(
                LicenseAccepted(
                    *(item.model.name.text, terms.name, terms.page, row.user, row.how, row.accepted_at),
                    already=known is not None,
                )
            )
    return AcceptResult(vault.root, tuple(accepted))
