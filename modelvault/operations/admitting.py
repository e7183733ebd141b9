"""Which models of a bundle the policy of this side lets in, before anything is read from the drive."""

from collections.abc import Iterable
from dataclasses import replace

from modelvault.operations.judging import refused_unseen
from modelvault.operations.licenses import Asking, Terms, settle_license
from modelvault.operations.receiving import Order
from modelvault.policy import wants_acceptance
from modelvault.vault import Vault


def admit(vault: Vault, order: Order, *, acceptable: bool) -> Order:
    """Take out of an order what is refused unseen. ``acceptable``: licenses may yet be accepted. Raises ``UsageProblem``."""
    bad = refused_unseen(vault, [entry.stored.model for entry in order.entries], acceptable=acceptable)
    return replace(
        order,
        entries=tuple(entry for entry in order.entries if entry.name not in bad),
        refused=tuple((entry, bad[entry.name]) for entry in order.entries if entry.name in bad),
    )


def accept_licenses(vault: Vault, orders: Iterable[Order]) -> None:
    """Write down that the licenses are accepted that a policy wants accepted."""
    for order in orders:
        for entry in order.entries:
            if wants_acceptance(vault.policies, entry.stored.model.license):
                settle_license(vault, Terms.of(entry.stored.model), Asking(accept=True))
