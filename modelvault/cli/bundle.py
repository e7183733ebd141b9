"""``modelvault bundle``."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelvault.cli import completion
from modelvault.cli.bundle_lines import model_table
from modelvault.cli.console import counted, drive_prompt, human_size, human_time
from modelvault.cli.drive_lines import drive_table
from modelvault.cli.help import option_size, whole_number
from modelvault.cli.keys import fingerprint_lines
from modelvault.cli.run import Json, run

if TYPE_CHECKING:
    from modelvault.progress import Progress
    from modelvault.results.bundles import BundlePlan, BundleResult


def bundle(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="Names; all models if none.", autocompletion=completion.models),
    ] = None,
    to: Annotated[
        list[str],
        typer.Option(
            "--to", metavar="DIR", help="Where to write: the mounted drive; several are filled in this order."
        ),
    ] = ...,  # type: ignore[assignment]  # Typer's mark for "required"
    swap: Annotated[
        bool, typer.Option("--swap", help="When the drive is full, ask for the next one in its place.")
    ] = False,
    label: Annotated[
        str | None, typer.Option(metavar="LABEL", help="What to call the series of bundles; `models` by default.")
    ] = None,
    volume_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Bytes of a volume before compression, as 4GiB.")
    ] = None,
    key: Annotated[str | None, typer.Option(metavar="NAME", help="Which of the vault's keys signs.")] = None,
    sequence: Annotated[
        int | None,
        typer.Option(metavar="N", parser=whole_number(1), help="Pin the sequence number; the time by default."),
    ] = None,
    no_readback: Annotated[
        bool, typer.Option("--no-readback", help="Do not read the drive back: a fake or failing one goes unnoticed.")
    ] = False,
    site: Annotated[
        str | None, typer.Option("--for", metavar="SITE", help="Leave out what SITE has, by its newest receipt.")
    ] = None,
    assume_sent: Annotated[
        bool, typer.Option("--assume-sent", help="Leave out what was sent there before, too: no receipt is needed.")
    ] = False,
    answer: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write just the pieces that a site asks for in this request.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan, and measure the drives; nothing stays.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write models to a drive as a signed bundle.

    Drives are filled in the order given, each read back and compared at its end. Whole volumes go to one drive; a drive that is full or
    goes away leaves the rest to the others.

    The first bundle of a vault makes a signing key and prints its fingerprint: carry that to the isolated side separately.
    Interrupted bundles go on where they stopped: run the same command again.
    Where the newest bundle of these models lies finished on the drive, nothing
    is written; another --label, --sequence or --volume-size writes another one.

    \b
    Examples:
      modelvault bundle --to /media/ssd
      modelvault bundle llama-3.1-8b qwen2.5-7b-awq --to /media/ssd --label lab-7
      modelvault bundle --to /media/a --to /media/b
      modelvault bundle --to /media/usb --swap
      modelvault bundle --for lab-7 --to /media/ssd
      modelvault bundle --answer /media/usb --to /media/ssd
    """
    from modelvault.artifact import ModelName
    from modelvault.config import default_home
    from modelvault.operations.bundle import BundleRequest, bundle
    from modelvault.vault import Vault

    def work(progress: "Progress") -> "BundlePlan | BundleResult":
        request = BundleRequest(
            names=tuple(ModelName(model) for model in models or ()),
            to=tuple(Path(place).expanduser() for place in to),
            label=label,
            volume_size=option_size("--volume-size", volume_size) if volume_size else None,
            key=key,
            sequence=sequence,
            read_back=not no_readback,
            dry_run=dry_run,
            site=site,
            assume_sent=assume_sent,
            answer=answer.expanduser() if answer else None,
            swap=drive_prompt(progress) if swap else None,
        )
        with Vault.existing(default_home(), log=progress.log) as vault:
            return bundle(vault, request, progress)

    run("bundle", as_json, work, lines)


def lines(result: "BundlePlan | BundleResult") -> Iterator[str]:
    """Show a plan or what was written."""
    from modelvault.results.bundles import BundlePlan

    yield from model_table(result.models)
    if result.left_out:
        yield f"{human_size(result.left_out)} are left out: the site has them"
    if result.patches:
        yield f"only the pieces that were asked for, of the bundle with the index {result.patches.short}"
    if isinstance(result, BundlePlan):
        yield ""
        if result.there_already:
            yield f"{result.directory} holds just these models, finished: nothing would be written"
            return
        several = len(result.drives) > 1
        to = f"{len(result.drives)} drives" if several else result.directory
        free = "" if several else f"free there: {human_size(result.free)}; "  # that of each is in the table
        yield f"would write {human_size(result.size)} in {counted(len(result.volumes), 'volume')} to {to}"
        yield f"{free}signed with {result.key or 'a new key'}"
        if result.seconds is not None:
            yield f"this would take about {human_time(result.seconds)}, from a short measured write"
        yield ""
        yield from drive_table(result.drives)
        if result.resumes:
            yield "an unfinished bundle of the same content is there: it would be gone on with"
        return
    yield ""
    yield from _there_already(result) if result.there_already else _written(result)
    yield f"signed with key {result.key}; its fingerprint, to be carried separately:"
    yield from fingerprint_lines(result.fingerprint, result.spelled)
    yield "SHA-256 of two files that lie with it, to be carried separately as well:"
    yield f"  {result.restore_sha256}  restore.sh"
    yield f"  {result.public_key_sha256}  {result.key}.pub"
    yield "next, on the isolated server:"
    yield f"  {shlex.join(['modelvault', 'keys', 'trust', f'{result.directory / result.key}.pub'])}   (once)"
    written = [str(drive.directory) for drive in result.drives if drive.volumes]
    places = list(dict.fromkeys(written)) or [str(result.directory)]
    original = ["ORIGINAL"] if result.patches else []
    yield f"  {shlex.join(['modelvault', 'import', *original, *places])}"
    if len(written) > len(places):  # one slot: every drive was in the same place
        yield "  once with each of the drives, in any order"


def _there_already(result: "BundleResult") -> Iterator[str]:
    yield f"{result.directory} holds just these models, finished: nothing was written"
    yield f"`{shlex.join(['modelvault', 'verify', str(result.directory)])}` reads it again; another --label, --sequence or --volume-size writes another one"


def _written(result: "BundleResult") -> Iterator[str]:
    rate = human_size(result.content_size / max(result.seconds, 1e-3))
    yield f"wrote {result.directory}"
    if len(result.drives) > 1:
        yield from drive_table(result.drives)
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
