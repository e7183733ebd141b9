"""The policy: which models may come into a vault, leave it in a bundle, or come out of one. Rules in, violations out.

Two files may hold rules: the machine's and the vault's. Each is judged by itself and a model must break neither, so that nothing in one
loosens the other. ``files`` reads them, ``rules`` is pure. The keys are documented in ``docs/reference/policy.md``.
"""

from modelvault.policy.files import FILE_NAME, MACHINE_FILE, NO_LICENSE, Exemption, Policy, load_policies
from modelvault.policy.rules import Candidate, Violation, judge, wants_acceptance

__all__ = [
    "FILE_NAME",
    "MACHINE_FILE",
    "NO_LICENSE",
    "Candidate",
    "Exemption",
    "Policy",
    "Violation",
    "judge",
    "load_policies",
    "wants_acceptance",
]
