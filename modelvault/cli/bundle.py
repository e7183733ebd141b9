"""``modelvault bundle``."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelvault.cli import completion
from modelvault.cli.bundle_lines import model_table
from modelvault.cli.console import counted, human_size, human_time
from modelvault.cli.keys import fingerprint_lines
from modelvault.cli.run import Json, run

if TYPE_CHECKING:
    from modelvault.progress import Progress
    from modelvault.results import BundlePlan, BundleResult


def bundle(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="Names; all models if none.", autocompletion=completion.models),
    ] = None,
    to: Annotated[str, typer.Option("--to", metavar="DIR", help="Where to write: the mounted drive.")] = ...,  # type: ignore[assignment]  # Typer's mark for "required"
    label: Annotated[
        str | None, typer.Option(metavar="LABEL", help="What to call the series of bundles; `models` by default.")
    ] = None,
    volume_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Bytes of a volume before compression, as 4GiB.")
    ] = None,
    key: Annotated[str | None, typer.Option(metavar="NAME", help="Which of the vault's keys signs.")] = None,
    sequence: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Pin the sequence number; the time by default.")
    ] = None,
    no_readback: Annotated[
        bool, typer.Option("--no-readback", help="Do not read the drive back: a fake or failing one goes unnoticed.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan; write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Write models to a drive as a signed bundle.

    The drive is read back and compared at the end.

    The first bundle of a vault makes a signing key and prints its fingerprint: carry that to the isolated side separately.
    Interrupted bundles go on where they stopped: run the same command again.
    Where the newest bundle of these models lies finished on the drive, nothing
    is written; another --label or --sequence writes another one.

    \b
    Examples:
      modelvault bundle --to /media/ssd
      modelvault bundle llama-3.1-8b qwen2.5-7b-awq --to /media/ssd --label lab-7
    """
    from modelvault.artifact import ModelName
    from modelvault.config import default_home, parse_size
    from modelvault.errors import UsageProblem
    from modelvault.operations.bundle import BundleRequest, bundle
    from modelvault.vault import Vault

    def work(progress: "Progress") -> "BundlePlan | BundleResult":
        if not to:
            raise UsageProblem("--to names no directory", hint="name the drive: modelvault bundle --to /media/ssd")
        request = BundleRequest(
            names=tuple(ModelName(model) for model in models or ()),
            to=Path(to).expanduser(),
            label=label,
            volume_size=parse_size(volume_size) if volume_size else None,
            key=key,
            sequence=sequence,
            read_back=not no_readback,
            dry_run=dry_run,
        )
        with Vault.open(default_home(), create=False, log=progress.log) as vault:
            return bundle(vault, request, progress)

    run("bundle", as_json, work, lines)


def lines(result: "BundlePlan | BundleResult") -> Iterator[str]:
    """Show a plan or what was written."""
    from modelvault.results import BundlePlan

    yield from model_table(result.models)
    if isinstance(result, BundlePlan):
        yield ""
        if result.there_already:
            yield f"{result.directory} holds just these models, finished: nothing would be written"
            return
        yield f"would write {human_size(result.size)} in {counted(len(result.volumes), 'volume')} to {result.directory}"
        yield f"free there: {human_size(result.free)}; signed with {result.key or 'a new key'}"
        if result.resumes:
            yield "an unfinished bundle of the same content is there: it would be gone on with"
        return
    yield ""
    yield from _there_already(result) if result.there_already else _written(result)
    yield f"signed with key {result.key}; its fingerprint, to be carried separately:"
    yield from fingerprint_lines(result.fingerprint, result.spelled)
    yield "next, on the isolated server:"
    yield f"  modelvault keys trust {result.directory / result.key}.pub   (once)"
    yield f"  modelvault import {result.directory}"


def _there_already(result: "BundleResult") -> Iterator[str]:
    yield f"{result.directory} holds just these models, finished: nothing was written"
    yield f"`modelvault verify {result.directory}` reads it again; another --label or --sequence writes another one"


def _written(result: "BundleResult") -> Iterator[str]:
    rate = human_size(result.content_size / max(result.seconds, 1e-3))
    yield f"wrote {result.directory}"
    yield (
        f"{human_size(result.content_size)} as {human_size(result.stored_size)} in {counted(result.volumes, 'volume')}, "
        f"{human_time(result.seconds)} ({rate}/s)"
    )
    if result.resumed:
        yield f"{human_size(result.resumed)} of it had been written before, and was compared"
    if result.read_back:
        yield f"read back and compared in {human_time(result.read_back_seconds)}"
    else:
        yield "NOT read back: check it with `modelvault verify` before the trip"
