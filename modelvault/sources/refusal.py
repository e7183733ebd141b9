"""What a hub's refusal means for the user: one error with one hint for each case. Pure.

``X-Error-Code`` and ``X-Error-Message`` are the Hub's own headers; mirrors that leave them out are told by the status alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from modelvault.errors import SourceUnavailable

_TOKENS = "https://huggingface.co/settings/tokens"
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for, and whether a token went with it."""

    endpoint: str
    repository: str
    revision: str | None
    path: str | None
    token: bool


def refusal(asked: Asked, status: int, headers: Mapping[str, str]) -> SourceUnavailable:
    """Give the error for an answer with this status; ``headers`` must ignore case."""
    message, hint = _explain(asked, status, headers.get("x-error-code", ""), headers.get("x-error-message", ""))
    return SourceUnavailable(
        message, hint=hint, endpoint=asked.endpoint, repository=asked.repository, revision=asked.revision, status=status
    )


def _explain(asked: Asked, status: int, code: str, said: str) -> tuple[str, str | None]:
    repository = asked.repository
    if code == "GatedRepo":
        return _gated(asked)
    if code == "RevisionNotFound":
        return (
            f"{repository} has no revision {asked.revision or 'main'!r}",
            "name a branch, a tag or a commit of the repository, or leave --revision out for the default branch",
        )
    if code == "EntryNotFound":
        return f"{repository} has no file {asked.path} at {asked.revision}", "run the same command again"
    if status == HTTPStatus.UNAUTHORIZED and asked.token and "credentials" in said.lower():
        return f"{asked.endpoint} does not accept the token", f"the token may have expired: {_LOG_IN}"
    if code == "RepoNotFound" or status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND}:
        private = "make sure that the token may read it" if asked.token else _LOG_IN
        return f"{asked.endpoint} has no model {repository}", f"check the spelling; if it is private, {private}"
    return _explain_status(asked, status, f": {said}" if said else "")


def _explain_status(asked: Asked, status: int, detail: str) -> tuple[str, str | None]:
    endpoint = asked.endpoint
    if status == HTTPStatus.FORBIDDEN:
        return (
            f"{endpoint} refuses access to {asked.repository}{detail}",
            "make sure that the token may read the repository",
        )
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        hint = (
            "wait some minutes" if asked.token else f"wait some minutes, or {_LOG_IN}: known users may ask more often"
        )
        return f"{endpoint} answers that there were too many requests", hint
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return f"{endpoint} has a problem of its own (status {status}{detail})", "try again later"
    return f"{endpoint} refused {asked.path or asked.repository} (status {status}{detail})", None


def _gated(asked: Asked) -> tuple[str, str]:
    page = f"https://huggingface.co/{asked.repository}"
    if asked.token:
        return (
            f"{asked.repository} is gated, and the account of the token has no access",
            f"ask for access at {page} with that account, and wait until it is granted",
        )
    return (
        f"{asked.repository} is gated: its publisher asks for an agreement first",
        f"accept the conditions at {page}, make a token at {_TOKENS} and {_LOG_IN}",
    )
