"""``recipe``: the command, unit or compose file that starts an engine with an installed model so that it fits."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from modelvault import fsio
from modelvault.artifact import ModelName
from modelvault.engines import InstallRecord
from modelvault.engines.gguf_parts import served_gguf, served_projector
from modelvault.engines.hub_engine import gguf_path
from modelvault.engines.vllm import gguf_arguments
from modelvault.errors import UsageProblem
from modelvault.fit.answer import LIKE_VLLM, Verdict, answer
from modelvault.fit.detect import devices_of
from modelvault.fit.launch import MAX_REPLICAS, Installed, launches
from modelvault.fit.render import FORMS, render
from modelvault.formats.modelfile import parse
from modelvault.operations.fitting import question_about, refusal
from modelvault.operations.one_install import one_install
from modelvault.operations.shapes import described_model
from modelvault.results.fit import RecipeFile, RecipeResult
from modelvault.vault import Vault


@dataclass(frozen=True, slots=True)
class RecipeRequest:
    """What is asked: ``engine`` as typed, ``ENGINE`` or ``ENGINE=DIR``; ``form`` is ``command``, ``systemd`` or ``compose``.

    ``force`` gives a recipe for what does not fit, too.
    """

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
    record = one_install(vault, stored.model.name.text, request.engine, "recipe")
    question = question_about(
        described_model(vault, stored.model.name),
        devices_of(request.gpus),
        _context(record, request.context),
        engine=record.engine,
        users=request.users,
        kv_type=request.kv_type,
    )
    reply = answer(question)
    if reply.verdict in {Verdict.NOT, Verdict.REFUSED} and not request.force:
        raise refusal(stored.model.name.text, reply, "goes on all the same")
    servers = launches(question, reply, _installed(record), replicas=request.replicas)
    programs = {server.program[0]: found for server in servers if (found := shutil.which(server.program[0]))}
    texts = render(servers, request.form, programs, request.user)
    return RecipeResult(
        model=stored.model.name.text,
        engine=record.engine,
        headline=reply.headline,
        files=tuple(RecipeFile(name, text) for name, text in texts.items()),
        warnings=reply.notes,
    )


def _context(record: InstallRecord, wanted: int | None) -> int | None:
    """Give the context to compute with: Ollama prefers what a model's own Modelfile says to what its server is told."""
    said = parse(record.modelfile).parameters.get("num_ctx") if record.modelfile else None
    own = int(said[-1]) if said else None
    if own is None or wanted in {None, own}:
        return own or wanted
    raise UsageProblem(
        f"--context {wanted}: the Modelfile of {record.installed_name} says num_ctx {own}, and Ollama prefers that",
        hint=f"leave --context away, or install it again with `PARAMETER num_ctx {wanted}` in a Modelfile of yours (--modelfile FILE)",
    )


def _installed(record: InstallRecord) -> Installed:
    paths = [str(Path(record.directory, file.path)) for file in record.files]
    if record.engine not in LIKE_VLLM:
        return Installed(record.directory, record.installed_name, served_gguf(paths), served_projector(paths))
    gguf = gguf_path(record)
    more = gguf_arguments(record, gguf) if gguf and record.engine == "vllm" else ()
    return Installed(record.directory, record.installed_name, gguf, arguments=(*record.arguments, *more))


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
