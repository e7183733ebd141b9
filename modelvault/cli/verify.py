"""``modelvault verify``."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from modelvault.cli.console import human_size, human_time
from modelvault.cli.run import Json, run

if TYPE_CHECKING:
    from modelvault.progress import Progress
    from modelvault.results import VerifyResult


def verify(
    subjects: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL | BUNDLE", help="Names, or paths of bundles; else all models."),
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
    from modelvault.operations.verify import verify
    from modelvault.vault import Vault

    def work(progress: "Progress") -> "VerifyResult":
        with Vault.open(default_home(), create=False) as vault:
            return verify(vault, subjects or [], progress, allow_unsigned=allow_unsigned)

    run("verify", as_json, work, lines)


def lines(result: "VerifyResult") -> Iterator[str]:
    """Show the verdict and every damage."""
    for damage in result.damage:
        models = f" (needed by {', '.join(damage.models)})" if damage.models else ""
        yield f"damaged: {damage.where}: {damage.problem}{models}"
    rate = human_size(result.size / max(result.seconds, 1e-3))
    verdict = "sound" if not result.damage else f"{len(result.damage)} damaged"
    yield (
        f"{result.subject}: {result.checked} checked, {verdict} "
        f"({human_size(result.size)} in {human_time(result.seconds)}, {rate}/s)"
    )
