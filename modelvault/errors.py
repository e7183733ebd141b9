"""Every error that a user can meet, with its exit code and its slug.

The classes carry data, not prose about other layers: ``message`` says what happened to what, ``hint`` what to do
next, ``data`` the same facts for ``--json``. Only ``cli/`` renders them. The table of exit codes in the docs is generated from
these classes.
"""

import contextlib
import errno
from collections.abc import Iterator
from typing import Any, ClassVar


class ModelvaultError(Exception):
    """The command could not do what it was asked to. The base of all errors with a meaning for the user (exit code 1)."""

    exit_code: ClassVar[int] = 1
    slug: ClassVar[str] = "failed"
    meaning: ClassVar[str] = "failed"

    def __init__(self, message: str, *, hint: str | None = None, result: object = None, **data: Any) -> None:
        """Keep the message (lower case, no full stop), the hint, the facts and what was done in spite of it."""
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.result = result
        self.data = data


class UsageProblem(ModelvaultError):
    """The request itself makes no sense: an unknown model, two bundles where one is needed."""

    exit_code = 2
    slug = "usage"
    meaning = "usage"


class PartlyDone(ModelvaultError):
    """Some of it went through, some did not, or not yet; ``result`` holds what was done."""

    exit_code = 3
    slug = "partly-done"
    meaning = "partly done"


class SourceUnavailable(ModelvaultError):
    """The source is unreachable, knows no such model, or refuses to hand it out."""

    exit_code = 10
    slug = "source"
    meaning = "source unavailable or refused"


class VaultLocked(ModelvaultError):
    """Another process holds the lock for longer than we were willing to wait."""

    exit_code = 11
    slug = "vault-locked"
    meaning = "vault locked"


class DigestMismatch(ModelvaultError):
    """Bytes do not have the digest that was promised for them."""

    exit_code = 12
    slug = "digest-mismatch"
    meaning = "digest mismatch"


class InvalidModelFile(ModelvaultError):
    """A model file breaks a rule of its format; ``rule`` names it."""

    exit_code = 13
    slug = "invalid-model-file"
    meaning = "invalid model file"

    def __init__(self, path: str, rule: str, detail: str, *, hint: str | None = None) -> None:
        """Name the file, the rule (a slug such as ``gguf-magic``) and what was found."""
        hint = hint or "the file is damaged or not what its name says: get it again, or another one, from its publisher"
        super().__init__(f"{path}: {detail} (rule: {rule})", hint=hint, path=path, rule=rule, detail=detail)
        self.path = path
        self.rule = rule
        self.detail = detail


class VaultDamaged(ModelvaultError):
    """A document of the vault's own, its list of models or a manifest, is gone or not what was written."""

    exit_code = 13
    slug = "vault-damaged"
    meaning = "invalid model file"


class TrustRefused(ModelvaultError):
    """A signature is missing, wrong or by nobody we trust; or a bundle is older than one already imported."""

    exit_code = 14
    slug = "trust"
    meaning = "signature or trust"


class NoSpace(ModelvaultError):
    """A file system has too little room; ``missing`` says by how many bytes, if that is known."""

    exit_code = 15
    slug = "no-space"
    meaning = "no space"


class EngineRefused(ModelvaultError):
    """An engine's directories cannot take the model as asked."""

    exit_code = 16
    slug = "engine-refused"
    meaning = "engine refused"


class PolicyRefused(ModelvaultError):
    """A rule of the user's or of ours forbids it: pickle files, or a model that does not fit."""

    exit_code = 17
    slug = "policy"
    meaning = "refused by policy or fit"


class Interrupted(ModelvaultError):
    """The user pressed Ctrl-C or the process was asked to end."""

    exit_code = 130
    slug = "interrupted"
    meaning = "interrupted"


class Transient(Exception):
    """An attempt to read from a source failed in a way that a retry may mend. Never reaches the user."""

    def __init__(self, reason: str, *, retry_after: float | None = None) -> None:
        """Keep the reason, and the seconds that the server asked us to wait."""
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after


class RangesIgnored(Exception):
    """A source answered a request for a range with the whole file. Never reaches the user."""


_SYSTEM_HINTS = {
    errno.ENOENT: "check the path; the vault's is what MODELVAULT_HOME says",
    errno.EACCES: "run the command as a user who may read and write there",
    errno.EPERM: "run the command as a user who may read and write there",
    errno.EROFS: "the file system is mounted read-only",
    errno.EIO: "the medium or its cable is failing: look at the kernel's log with dmesg",
    errno.EMFILE: "let the process open more files (each file of a model takes one): ulimit -n 10000",
    errno.ENOTDIR: "a directory is needed where something else lies",
}
"""What to do about what only the system has to say."""


def of_the_system(error: OSError) -> ModelvaultError:
    """Put into words what only the system has to say."""
    where = f"{error.filename}: " if error.filename else ""
    reason = (error.strerror or str(error)).lower()
    return ModelvaultError(f"{where}{reason}", hint=_SYSTEM_HINTS.get(error.errno or 0), errno=error.errno)


@contextlib.contextmanager
def in_words() -> Iterator[None]:
    """Turn an ``OSError`` inside the block into a ``ModelvaultError``, so that it costs one of several models and not all."""
    try:
        yield
    except OSError as error:
        raise of_the_system(error) from error
