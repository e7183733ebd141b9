"""``modelvault pull``."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelvault.cli import completion
from modelvault.cli.console import consent_prompt, counted, human_size, human_time
from modelvault.cli.help import option_size, whole_number
from modelvault.cli.run import Json, run
from modelvault.cli.tables import table

if TYPE_CHECKING:
    from modelvault.progress import Progress
    from modelvault.results.models import PlannedDownload, PullPlan, PullResult
    from modelvault.results.project import ProjectResult
    from modelvault.results.updates import UpdateResult

_PROJECT = "modelvault.toml"


def pull(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME | ORG/NAME[:QUANT] | ollama:NAME[:TAG]",
            help="A catalog name, a Hub repository, or a model of Ollama's registry.",
            autocompletion=completion.catalog,
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(
            metavar="REVISION",
            help="Branch, tag or commit; the main branch if left away. Of Ollama's, the digest that must be met.",
        ),
    ] = None,
    quant: Annotated[
        str | None,
        typer.Option(
            metavar="QUANT",
            help="Which GGUF of the repository, as Q4_K_M; auto: the best that fits. Asked for if left away.",
        ),
    ] = None,
    fit: Annotated[
        list[str] | None,
        typer.Option(metavar="CARDS", help="Refuse what does not fit these cards, as 24GiB, 2x4090. Repeatable."),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS", parser=whole_number(256, 1 << 24), help="With --fit: the context to have room for; 8192."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="With --fit: pull what does not fit, too.")] = False,
    include: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Take only these files. Repeatable.")
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Leave these files. Repeatable.")] = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="Another hub, a mirror, or an Ollama registry.")
    ] = None,
    connections: Annotated[
        int | None, typer.Option(metavar="N", parser=whole_number(1, 64), help="Connections at once; 8 by default.")
    ] = None,
    limit_rate: Annotated[str | None, typer.Option(metavar="RATE", help="Bytes per second in all, as 20M.")] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Take pickle files too: they can run code when loaded.")
    ] = False,
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="Record that you accept the model's license.")
    ] = False,
    called: Annotated[
        str | None,
        typer.Option("--as", metavar="NAME", help="What to call it in the vault; several versions side by side."),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Pull what the project's file wants, and lock it.")] = False,
    file: Annotated[
        Path | None, typer.Option(metavar="PATH", help="With --all: the project's file; modelvault.toml by default.")
    ] = None,
    update: Annotated[
        bool,
        typer.Option(
            "--update", help="Pull what is outdated, of the vault or NAME; with --all, move the lock to what is newest."
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan; download nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Bring a model from the Hub or Ollama, verified.

    Interrupted pulls go on where they stopped: run the same command again.

    --all pulls the models that a project lists in modelvault.toml, and writes their commits and digests into modelvault.lock beside
    it. What is locked comes again exactly so, until --update.

    --update pulls again what `modelvault outdated` shows. A model under a name of your own (--as) stays as it is unless you name it.

    \b
    Examples:
      modelvault pull llama-3.1-8b
      modelvault pull bartowski/Qwen2.5-7B-Instruct-GGUF --quant Q4_K_M
      modelvault pull bartowski/Qwen2.5-7B-Instruct-GGUF --quant auto --fit 24GiB
      modelvault pull Qwen/Qwen2.5-7B-Instruct-AWQ --limit-rate 20M
      modelvault pull ollama:llama3.1:70b-instruct-q4_K_M
      modelvault pull org/name --revision v1.0 --as org/name-v1
      modelvault pull --update
      modelvault pull --all
    """
    of_one = {
        "--revision": revision,
        "--quant": quant,
        "--include": include,
        "--exclude": exclude,
        "--fit": fit,
        "--as": called,
    }
    _check(
        name, [option for option, value in of_one.items() if value], whole=all_, update=update, project=file is not None
    )
    if (context is not None or force) and not fit:
        raise typer.BadParameter("--context and --force belong to --fit")
    from modelvault.artifact import ModelName
    from modelvault.cli.choosing import ask_for_quantization
    from modelvault.cli.project import project_lines
    from modelvault.cli.updates import update_lines
    from modelvault.config import default_home
    from modelvault.operations.fitting import Room
    from modelvault.operations.project import ProjectRequest, pull_project
    from modelvault.operations.pull import PullRequest, pull
    from modelvault.operations.update import UpdateRequest
    from modelvault.operations.update import update as pull_updates
    from modelvault.operations.upstream import name_wanted
    from modelvault.sources.selection import Wish
    from modelvault.vault import Vault

    def request(name: ModelName, wish: Wish, revision: str | None, called: ModelName | None = None) -> PullRequest:
        return PullRequest(
            name=name,
            revision=revision,
            wish=wish,
            endpoint=endpoint,
            connections=connections,
            limit_rate=option_size("--limit-rate", limit_rate) if limit_rate else None,
            allow_pickle=allow_pickle,
            accept_license=accept_license,
            consent=None if as_json else consent_prompt(),
            dry_run=dry_run,
            room=Room(tuple(fit), context, force) if fit else None,
            called=called,
        )

    def one_model(progress: "Progress") -> "PullPlan | PullResult":
        asked = request(
            name_wanted(name or ""),
            Wish(quant, tuple(include or ()), tuple(exclude or ())),
            revision,
            ModelName(called) if called else None,
        )
        with Vault.prospective(default_home(), log=progress.log) as vault:
            return pull(vault, asked, progress, None if as_json else ask_for_quantization)

    def all_models(progress: "Progress") -> "ProjectResult":
        with Vault.prospective(default_home(), log=progress.log) as vault:
            project = ProjectRequest(file or Path(_PROJECT), request, update=update, dry_run=dry_run)
            return pull_project(vault, project, progress)

    def newer_ones(progress: "Progress") -> "UpdateResult":
        with Vault.existing(default_home(), log=progress.log) as vault:
            asked = UpdateRequest(
                lambda found: request(found.name, found.wish, None, found.called),
                (ModelName(name),) if name else (),
                endpoint,
                dry_run,
            )
            return pull_updates(vault, asked, progress)

    if all_:
        run("pull", as_json, all_models, project_lines)
    elif update:
        run("pull", as_json, newer_ones, update_lines)
    else:
        run("pull", as_json, one_model, lines)


def _check(name: str | None, of_one: list[str], *, whole: bool, update: bool, project: bool) -> None:
    """Refuse what is said of one model beside --all or --update, and what is said of a project without --all."""
    if whole and (name or of_one):
        raise typer.BadParameter(
            f"--all takes what {_PROJECT} says; write it there: {', '.join(['a name'] * bool(name) + of_one)}"
        )
    if update and of_one:
        raise typer.BadParameter(f"--update pulls a model as it was pulled before, without {', '.join(of_one)}")
    if project and not whole:
        raise typer.BadParameter("--file belongs to --all")
    if not (whole or update or name):
        raise typer.BadParameter("name a model, or take --all or --update")


def _to_download(file: "PlannedDownload") -> str:
    if file.copy is not None:
        return "in the Hub's cache"
    return "here" if file.here == file.size else human_size(file.size - file.here)


def lines(result: "PullPlan | PullResult") -> Iterator[str]:
    """Show a plan or what was done."""
    from modelvault.results.models import PullPlan

    plan = result if isinstance(result, PullPlan) else result.plan
    if isinstance(result, PullPlan):
        rows = [(file.path, human_size(file.size), _to_download(file)) for file in plan.files]
        yield from table(("file", "size", "to download"), rows, right=(1, 2))
        yield ""
        if plan.left_out:
            yield f"left out: {counted(len(plan.left_out), 'other file')} of the repository (--include takes them)"
        yield f"{plan.name}: {plan.repository} at {plan.commit[:12]}, license {plan.license or 'unknown'}"
        if plan.license_page:
            yield f"the license can be read at {plan.license_page}"
        if plan.fits:
            yield plan.fits
        yield f"to download: {human_size(plan.to_download)} of {human_size(plan.total)}; free: {human_size(plan.free)}"
        yield f"vault: {plan.vault}"
        return
    if result.unchanged:
        yield f"{plan.name} is in the vault already ({human_size(result.model.size)})"
    else:
        yield f"{plan.name}: {counted(result.model.files, 'file')}, {human_size(result.model.size)}, every digest verified"
        # No rate: the line of the transfer above has it, and the time here is that of the checks too.
        yield (
            f"received {human_size(result.received)}, {human_size(result.reused)} were here; "
            f"{human_time(result.seconds)} in all"
        )
    yield f"manifest {result.model.manifest}"
    yield f"next: modelvault bundle {plan.name} --to DIRECTORY"
