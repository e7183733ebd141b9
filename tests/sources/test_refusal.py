"""Each refusal of a hub has its own hint."""

import pytest

from modelvault.sources.refusal import Asked, refusal


def asked(*, token: bool = False) -> Asked:
    return Asked("https://hub.example", "org/name", "v2", "model.gguf", token=token)


@pytest.mark.parametrize(
    ("status", "code", "token", "message", "hint"),
    [
        (401, "GatedRepo", False, "org/name is gated: its publisher", "https://huggingface.co/org/name"),
        (403, "GatedRepo", True, "account of the token has no access", "wait until it is granted"),
        (401, "RepoNotFound", False, "has no model org/name", "HF_TOKEN"),
        (404, "RepoNotFound", True, "has no model org/name", "the token may read it"),
        (401, "", False, "has no model org/name", "hf auth login"),
        (404, "RevisionNotFound", False, "org/name has no revision 'v2'", "--revision"),
        (404, "EntryNotFound", False, "has no file model.gguf at v2", "again"),
        (403, "", True, "refuses access to org/name", "may read"),
        (429, "", False, "too many requests", "known users"),
        (429, "", True, "too many requests", "some minutes"),
        (503, "", False, "status 503", "later"),
    ],
)
def test_the_hint_fits_the_case(status: int, code: str, token: bool, message: str, hint: str) -> None:
    """A user who is told to log in when the name is misspelt, or the other way round, looks in the wrong place."""
    error = refusal(asked(token=token), status, {"x-error-code": code})
    assert error.exit_code == 10
    assert message in error.message
    assert error.hint is not None
    assert hint in error.hint


def test_a_token_that_is_not_accepted() -> None:
    """An expired token looks like a missing repository unless the message is read."""
    headers = {"x-error-message": "Invalid credentials in Authorization header"}
    assert "does not accept the token" in refusal(asked(token=True), 401, headers).message


def test_anything_else_names_the_status() -> None:
    """An unforeseen answer must still say what it was."""
    error = refusal(asked(), 418, {"x-error-message": "short and stout"})
    assert error.message == "https://hub.example refused model.gguf (status 418: short and stout)"
