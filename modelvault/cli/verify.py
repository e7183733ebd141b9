"""``modelvault verify``."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelvault.cli import completion
from modelvault.cli.console import counted, human_size, human_time
from modelvault.cli.keys import fingerprint_lines
from modelvault.cli.run import Json, run

if TYPE_CHECKING:
    from modelvault.progress import Progress
    from modelvault.results.bundles import RequestWritten, VerifyResult


Site = Annotated[
    str | None,
    typer.Option("--site", metavar="NAME", help="What this site is called; said once, when its key is made."),
]


_MENDED = "mended by the patch"


def verify(
    subjects: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL | PATH",
            help="Names; or the paths that one bundle lies at; else all models.",
            autocompletion=completion.models,
        ),
    ] = None,
    allow_unsigned: Annotated[
        bool, typer.Option("--allow-unsigned", help="Check a bundle's frames though its signer is unknown.")
    ] = False,
    request: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write down what is wanted of the bundle, for bundle --answer.")
    ] = None,
    site: Site = None,
    installs: Annotated[
        bool, typer.Option("--installs", help="Check what is installed in engines, instead of the vault's own files.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Read every byte again, and compare.

    Of models at rest, of what is installed in engines, or of a bundle: its frames, its signature, its index. Of a bundle on several drives it says what is here, what is
    damaged, and what is still wanted; FILE, or the directory for it, then takes a signed request for a patch.

    \b
    Examples:
      modelvault verify
      modelvault verify llama-3.1-8b
      modelvault verify --installs
      modelvault verify /media/ssd/models-1763700000.mvbundle
      modelvault verify /media/a /media/b --request /media/b
    """
    from modelvault.config import default_home
    from modelvault.errors import UsageProblem
    from modelvault.operations.installs import verify_installs
    from modelvault.operations.subjects import split_subjects
    from modelvault.operations.verify import verify
    from modelvault.operations.verify_bundle import Wish, verify_paths
    from modelvault.vault import Vault

    def work(progress: "Progress") -> "VerifyResult":
        names, paths = split_subjects(subjects or [])
        if installs and (paths or request is not None):
            raise UsageProblem(
                "--installs is for models in engines, not for a bundle", hint="leave out the path and --request"
            )
        if paths:
            wish = Wish(tuple(paths), allow_unsigned, request and request.expanduser(), site)
            with Vault.prospective(default_home(), log=progress.log) as vault:
                return verify_paths(vault, wish, progress)
        if request is not None:
            raise UsageProblem(
                "--request is for a bundle",
                hint="say where it lies, a directory here as ./DIR: modelvault verify PATH --request FILE",
            )
        with Vault.existing(default_home(), log=progress.log) as vault:
            return verify_installs(vault, names, progress) if installs else verify(vault, names, progress)

    run("verify", as_json, work, lines)


def lines(result: "VerifyResult") -> Iterator[str]:
    """Show the verdict and every damage."""
    for state, found in (("damaged", result.damage), (_MENDED, result.mended)):
        for damage in found:
            models = f" (needed by {', '.join(damage.models)})" if damage.models else ""
            yield f"{state}: {damage.where}: {damage.problem}{models}"
    rate = human_size(result.size / max(result.seconds, 1e-3))
    counts = {"damaged": len(result.damage), _MENDED: len(result.mended)}
    verdict = ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "all sound"
    yield f"{result.subject}: {counted(result.checked, result.unit)} checked, {verdict}"
    if result.unit == "frame":
        yield f"signed by {result.signer}" if result.signer else "NOT signed by anyone trusted here: integrity only"
    yield f"{human_size(result.size)} in {human_time(result.seconds)} ({rate}/s)"
    yield from _state_lines(result)
    if result.request is not None:
        yield from request_lines(result.request)


_STATES = {"present": "present", "damaged": "damaged", "mended": _MENDED, "missing": "missing"}

_MODEL_STATES = {
    "present": "all here",
    "held": "the rest of it has arrived already",
    "incomplete": "the bundle leaves out what this vault does not have",
}


def _state_lines(result: "VerifyResult") -> Iterator[str]:
    """Show what is here of a bundle, unless that is all of it."""
    from modelvault.bundle.index import name_volumes

    incomplete = any(model.state == "incomplete" for model in result.models)
    if all(volume.state == "present" for volume in result.volumes) and not incomplete:
        return
    for state, words in _STATES.items():
        if numbers := [volume.number for volume in result.volumes if volume.state == state]:
            yield f"{words}: {name_volumes(numbers)}"
    for model in result.models:
        if model.state == "wanted":
            yield f"{model.name}: still wanted from {name_volumes(model.volumes)}"
        else:
            yield f"{model.name}: {_MODEL_STATES[model.state]}"


def request_lines(request: "RequestWritten") -> Iterator[str]:
    """Show what was asked for, and what to do with it."""
    yield f"asked for {human_size(request.size)} in {counted(request.pieces, 'piece')}: {request.path}"
    if request.new_key:
        yield f"signed with the new key of {request.site}; its fingerprint, to be carried separately:"
        yield from fingerprint_lines(request.fingerprint, request.spelled)
    yield "next, on the connected side:"
    if request.new_key:
        key = str(request.path.with_name(f"{request.site}.pub"))
        yield f"  {shlex.join(['modelvault', 'keys', 'trust', key, '--role', 'receipt'])}   (once)"
    yield f"  {shlex.join(['modelvault', 'bundle', '--answer', str(request.path)])} --to DIR"
