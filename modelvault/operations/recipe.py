"""``recipe``: the command, unit or compose file that starts an engine with an installed model so that it fits."""

import shlex
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from modelvault import fsio
from modelvault.artifact import ModelName
from modelvault.errors import UsageProblem
from modelvault.fit.answer import Verdict, answer
from modelvault.fit.detect import devices_of
from modelvault.fit.launch import MAX_REPLICAS, Installed, launches
from modelvault.fit.render import FORMS, render
from modelvault.operations.fitting import question_about, refusal
from modelvault.operations.shapes import described_model
from modelvault.results.fit import RecipeFile, RecipeResult
from modelvault.vault import Vault


@dataclass(frozen=True, slots=True)
class RecipeRequest:
    """What is asked: ``form`` is ``command``, ``systemd`` or ``compose``; ``force`` gives a recipe for what does not fit, too."""

    name: ModelName
    engine: str
    gpus: tuple[str, ...]
    form: str = "command"
    context: int | None = None
    users: int = 1
    kv_type: str | None = None
    replicas: int = 1
    user: str | None = None
    force: bool = False


def recipe(vault: Vault, request: RecipeRequest) -> RecipeResult:
    """Give the texts. Raises ``UsageProblem`` where the model is not installed there, ``PolicyRefused`` where it does not fit."""
    if request.form not in FORMS:
        raise UsageProblem(f"--as {request.form}: no such form", hint=f"one of: {', '.join(FORMS)}")
    if not 1 <= request.replicas <= MAX_REPLICAS:
        raise UsageProblem(f"--replicas {request.replicas}: not a number of servers", hint=f"from 1 to {MAX_REPLICAS}")
    stored = vault.model(request.name)
    installed = _installed(vault, stored.model.name, request.engine)
    described = described_model(vault, stored.model.name)
    question = replace(
        question_about(described, devices_of(request.gpus), request.context),
        engine=request.engine,
        users=request.users,
        kv_type=request.kv_type,
    )
    reply = answer(question)
    if reply.verdict in {Verdict.NOT, Verdict.REFUSED} and not request.force:
        raise refusal(stored.model.name.text, reply, "goes on all the same")
    servers = launches(question, reply, installed, replicas=request.replicas)
    programs = {server.program[0]: found for server in servers if (found := shutil.which(server.program[0]))}
    texts = render(servers, request.form, programs, request.user)
    return RecipeResult(
        model=stored.model.name.text,
        engine=request.engine,
        headline=reply.headline,
        files=tuple(RecipeFile(name, text) for name, text in texts.items()),
        warnings=reply.notes,
    )


def _installed(vault: Vault, name: ModelName, engine: str) -> Installed:
    rows = [row for row in vault.installs(name) if row.engine == engine]
    if not rows:
        raise UsageProblem(
            f"{name} is not installed into {engine}",
            hint=f"`{shlex.join(['modelvault', 'install', name.text, '--engine', engine])}` first",
        )
    row = rows[-1]
    files = [Path(row.directory, file["path"]) for file in row.record["files"]]
    ggufs = sorted(str(path) for path in files if path.suffix.lower() == ".gguf")
    projector = next((path for path in ggufs if "mmproj" in Path(path).name.lower()), None)
    model = next((path for path in ggufs if path != projector), None)
    return Installed(row.directory, row.installed_name, model, projector, tuple(row.record["arguments"]))


def save(result: RecipeResult, directory: Path) -> RecipeResult:
    """Write the texts into a directory. Raises ``UsageProblem`` for files that are there and say something else."""
    for file in result.files:
        path = directory / file.name
        if path.exists() and path.read_text(encoding="utf-8") != file.text:
            raise UsageProblem(f"{path} is there and differs", hint="remove it, or name another directory")
    directory.mkdir(parents=True, exist_ok=True)
    saved = []
    for file in result.files:
        mode = 0o755 if file.name.endswith(".sh") else 0o644
        fsio.atomic_write(directory / file.name, file.text.encode(), mode=mode)
        saved.append(replace(file, path=directory / file.name))
    return replace(result, files=tuple(saved))
