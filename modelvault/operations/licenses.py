"""Licenses that a person has to accept: whether somebody did, asking for it, and writing down who did and how."""

import os
import pwd
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modelvault import modelpack
from modelvault.artifact import Model, ModelName, Origin, check_license, license_files
from modelvault.errors import PolicyRefused
from modelvault.policy import NO_LICENSE, wants_acceptance
from modelvault.vault import Vault

if TYPE_CHECKING:
    from modelvault.registry import AcceptanceRow

ACCEPTED = "license-accepted"
"""The kind of the event."""
HOW_TO_ACCEPT = "--accept-license records that you accept it"

_GENERIC = {NO_LICENSE, "other"}
"""Names that many licenses share: to accept one of them says nothing of another model's."""


@dataclass(frozen=True, slots=True)
class Terms:
    """The license of a model: its name, where it can be read, and the files that hold its text, with their digests.

    As long as it is ``pending``, what states it was not read yet.
    """

    model: ModelName
    license: str | None
    page: str | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    pending: bool = False

    def __post_init__(self) -> None:
        """Refuse the garbled name of a license before hours of copying."""
        if self.license is not None:
            check_license(self.license)

    @classmethod
    def of(cls, model: Model) -> "Terms":
        """Take those of a model whose manifest is known."""
        texts = {file.path: str(file.digest) for file in model.files if file.path in model.license_files}
        return cls(model.name, model.license, model.license_link or source_page(model.origin), texts)

    @property
    def name(self) -> str:
        """What the license is called."""
        return self.license or NO_LICENSE


@dataclass(frozen=True, slots=True)
class Asking:
    """How a license gets accepted: with ``accept`` it is; else ``consent`` is asked, if there is somebody to ask.

    ``expected`` says that the catalog asks for it; what the policy asks for, it insists on.
    """

    accept: bool = False
    consent: Callable[[str], bool] | None = None
    expected: bool = False

    @property
    def possible(self) -> bool:
        """Whether it may yet be accepted."""
        return self.accept or self.consent is not None


def source_page(origin: Origin) -> str | None:
    """Give the page of a model's source, where a license can be read that names no address of its own."""
    return modelpack.source_url(origin) if origin.kind == "hub" and origin.repository else None


def texts_listed(files: Mapping[str, object]) -> dict[str, str]:
    """Choose the license's texts among the files of a listing, with the digests that it promises."""
    return {path: str(files[path] or "") for path in license_files(files)}


def acceptance(vault: Vault, license_name: str | None, model: ModelName) -> "AcceptanceRow | None":
    """Find when the license of a model was accepted in this vault, whichever model that was for; ``None`` if it was not."""
    if not vault.store.exists:
        return None
    name = (license_name or NO_LICENSE).casefold()
    rows = [row for row in vault.registry.acceptances() if row.license.casefold() == name]
    for_this = [row for row in rows if row.model == model.text]
    return next(iter(for_this or (() if name in _GENERIC else rows)), None)


def is_accepted(vault: Vault, license_name: str | None, model: ModelName) -> bool:
    """Whether a license was accepted, or no policy wants that."""
    return not wants_acceptance(vault.policies, license_name) or acceptance(vault, license_name, model) is not None


def settle_license(vault: Vault, terms: Terms, asking: Asking) -> tuple[str, ...]:
    """Have a license accepted where that is wanted and was not done yet; the vault has to be there. Gives what is left to be warned of.

    Raises ``PolicyRefused`` if the answer is no, or if nobody can be asked and a policy insists.
    """
    if terms.pending:
        return ()
    wanted = bool(wants_acceptance(vault.policies, terms.license))
    if not (wanted or asking.accept or asking.expected) or acceptance(vault, terms.license, terms.model):
        return ()
    if asking.accept:
        record_acceptance(vault, terms, "--accept-license")
    elif asking.consent is not None:
        if not asking.consent(_question(terms)):
            raise not_accepted(terms)
        record_acceptance(vault, terms, "prompt")
    elif wanted:
        raise not_accepted(terms)
    else:
        return (unsettled(terms),)
    return ()


def foresee(vault: Vault, terms: Terms, asking: Asking) -> tuple[str, ...]:
    """Warn, where nothing is done yet, of a license that will have to be accepted."""
    asked = asking.expected or wants_acceptance(vault.policies, terms.license)
    if not asked or asking.accept or terms.pending or acceptance(vault, terms.license, terms.model):
        return ()
    return (unsettled(terms),)


def unsettled(terms: Terms) -> str:
    """Warn of a license that asks to be accepted."""
    return f"the license of {terms.model}, {terms.name}, asks whoever uses it to accept it: {HOW_TO_ACCEPT}"


def not_accepted(terms: Terms) -> PolicyRefused:
    """Build the error for a license that was not accepted."""
    where = f"read it at {terms.page}; " if terms.page else ""
    return PolicyRefused(
        f"the license of {terms.model}, {terms.name}, was not accepted",
        hint=f"{where}{HOW_TO_ACCEPT}",
        model=terms.model.text,
        license=terms.name,
    )


def record_acceptance(vault: Vault, terms: Terms, how: str) -> None:
    """Write down that the license was accepted, and by whom."""
    vault.record(
        ACCEPTED,
        {
            "model": terms.model.text,
            "license": terms.name,
            "user": _user(),
            "how": how,
            **({"page": terms.page} if terms.page else {}),
            **({"texts": dict(terms.texts)} if terms.texts else {}),
        },
    )


def _question(terms: Terms) -> str:
    where = f" ({terms.page})" if terms.page else ""
    return f"{terms.model} is under the license {terms.name}{where}, which asks to be accepted. Do you accept it? yes or no"


def _user() -> str:
    """Name whoever types: below sudo, not root."""
    if name := os.environ.get("SUDO_USER"):
        return name
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container may run under a number that nobody has
        return str(os.getuid())
