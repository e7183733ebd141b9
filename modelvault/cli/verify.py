"""``modelvault verify``."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelvault.cli import completion
from modelvault.cli.console import counted, human_size, human_time
from modelvault.cli.run import Json, run

if TYPE_CHECKING:
    from modelvault.artifact import ModelName
    from modelvault.progress import Progress
    from modelvault.results import VerifyResult


def verify(
    subjects: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL | BUNDLE",
            help="Names, or paths of bundles; else all models.",
            autocompletion=completion.models,
        ),
    ] = None,
    allow_unsigned: Annotated[
        bool, typer.Option("--allow-unsigned", help="Check a bundle's frames though its signer is unknown.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Read every byte again, and compare.

    Of models at rest, or of a bundle: its frames, its signature, its index.

    \b
    Examples:
      modelvault verify
      modelvault verify llama-3.1-8b
      modelvault verify /media/ssd/models-1763700000.mvbundle
    """
    from modelvault.config import default_home
    from modelvault.operations.verify import verify, verify_bundle
    from modelvault.vault import Vault

    def work(progress: "Progress") -> "VerifyResult":
        names, path = split_subjects(subjects or [])
        if path is not None:
            keys = Vault.keys_of(default_home())
            return verify_bundle(path, keys, progress, allow_unsigned=allow_unsigned)
        with Vault.open(default_home(), create=False, log=progress.log) as vault:
            return verify(vault, names, progress)

    run("verify", as_json, work, lines)


def split_subjects(subjects: "Sequence[str]") -> "tuple[list[ModelName], Path | None]":
    """Tell names of models from the path of a bundle, by the rule for all arguments. Raises ``UsageProblem`` for a mixture."""
    from modelvault.artifact import ModelName, looks_like_path
    from modelvault.errors import UsageProblem

    paths = [Path(subject).expanduser() for subject in subjects if looks_like_path(subject)]
    if len(paths) > 1 or (paths and len(subjects) > 1):
        raise UsageProblem("models, or one bundle, are verified at a time", hint="run the command once for each")
    if paths:
        return [], paths[0]
    return [ModelName(subject) for subject in subjects], None


def lines(result: "VerifyResult") -> Iterator[str]:
    """Show the verdict and every damage."""
    for damage in result.damage:
        models = f" (needed by {', '.join(damage.models)})" if damage.models else ""
        yield f"damaged: {damage.where}: {damage.problem}{models}"
    rate = human_size(result.size / max(result.seconds, 1e-3))
    verdict = "all sound" if not result.damage else f"{len(result.damage)} damaged"
    yield f"{result.subject}: {counted(result.checked, result.unit)} checked, {verdict}"
    if result.unit == "frame":
        yield f"signed by {result.signer}" if result.signer else "NOT signed by anyone trusted here: integrity only"
    yield f"{human_size(result.size)} in {human_time(result.seconds)} ({rate}/s)"
