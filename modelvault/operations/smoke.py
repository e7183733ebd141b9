"""``smoke``: ask the server that has an install for a few tokens, and write down what came of it."""

import contextlib
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace

from modelvault.engines import InstallRecord, engines
from modelvault.engines.checks import check_files
from modelvault.engines.http_client import ServerUnreachable, parse_address
from modelvault.engines.processes import EngineMissing
from modelvault.engines.serving import Client, client_at, kind_of, names_of, program_of, started, usual_address
from modelvault.errors import EngineRefused, ModelvaultError, UsageProblem
from modelvault.operations.one_install import one_install
from modelvault.progress import Progress
from modelvault.results.engines import SmokeResult
from modelvault.vault import Vault

PROMPT = "Count from one to twenty in words: one, two, three, four,"
"""Nothing that a model would answer by ending at once, whether it chats or completes."""
TOKENS = 16
TIMEOUT = 600.0  # seconds

_SHOWN = 8  # names of a server's models
_REPETITIVE = 8  # characters
_READ_ONLY = "the vault can only be read: the outcome is not recorded"


@dataclass(frozen=True, slots=True)
class SmokeOptions:
    """Which install is asked, where, and for what.

    ``engine`` as typed, ``url`` of a running server, or ``start`` one (``program``: with this one); ``name`` is the server's for the model;
    ``timeout`` in seconds without a sign of life.
    """

    engine: str | None = None
    url: str | None = None
    start: bool = False
    program: str | None = None
    name: str | None = None
    prompt: str = PROMPT
    tokens: int = TOKENS
    timeout: float = TIMEOUT


def smoke(vault: Vault, model: str, options: SmokeOptions, progress: Progress) -> SmokeResult:
    """Try out an install, named by the vault's or the engine's name, and record the outcome.

    Raises ``UsageProblem`` if it is not clear which one or where, ``EngineRefused`` with the result if it does not answer as it should.
    Where no server was reached, nothing is recorded: that says nothing about the model.
    """
    if options.start and options.url:
        raise UsageProblem("--start and --url exclude each other", hint="leave out one of them")
    if options.program and not options.start:
        raise UsageProblem("--program is for --start", hint="add --start")
    record = one_install(vault, model, options.engine, "smoke")
    result = SmokeResult(
        vault=vault.root,
        model=record.model,
        engine=record.engine,
        directory=record.directory,
        installed_name=record.installed_name,
        address=_address(record, options),
        started=options.start,
    )
    try:
        with _server(record, options, result.address, progress) as address:
            result = replace(result, address=address)
            result = _ask(client_at(record, address, seconds=options.timeout), record, options, result)
    except EngineMissing:
        raise
    except EngineRefused as error:
        if isinstance(error, ServerUnreachable) and not options.start:
            error.hint = _how_to_reach(record, options)
            raise
        if not record.remote and (problems := check_files(record, {}, hashed=False)):
            # Engines say strange things of files that are not there.
            error.hint = f"the install is not whole: {problems[0]}; make it again, under the same name: `{_install_line(record)}`"
        error.result = _recorded(vault, record, replace(result, problem=error.message), failed=True)
        raise
    return _recorded(vault, record, result, failed=False)


def _address(record: InstallRecord, options: SmokeOptions) -> str | None:
    """Decide where to ask; ``None`` for a server that is still to be started. Raises ``UsageProblem``."""
    if options.start:
        program_of(record)  # before anything is begun
        return None
    if options.url is not None:
        return parse_address(options.url.removesuffix("/").removesuffix("/v1"))
    address = usual_address(record)
    if address is None:
        raise UsageProblem(
            f"it is not known where {kind_of(record).title} listens",
            hint="say it: --url http://127.0.0.1:PORT",
        )
    return address


@contextlib.contextmanager
def _server(record: InstallRecord, options: SmokeOptions, address: str | None, progress: Progress) -> Iterator[str]:
    """Give the address of the server, which is started, and ended again, if that was asked for."""
    if address is not None:
        progress.log(f"asking {kind_of(record).title} at {address}")
        yield address
        return
    progress.log(f"starting {kind_of(record).title} for {record.installed_name}")
    with started(record, options.program, seconds=options.timeout) as mine:
        yield mine


def _ask(client: Client, record: InstallRecord, options: SmokeOptions, result: SmokeResult) -> SmokeResult:
    """Look for the model in the server's list, and have it say something. Raises ``EngineRefused``."""
    server = f"{kind_of(record).title} at {result.address}"
    name = _served_as(client, record, options, server)
    try:
        said = client.complete(name, options.prompt, options.tokens)
    except ServerUnreachable as error:
        raise EngineRefused(
            f"{server} listed {name}, and is gone since it was asked for a token",
            hint="look at the server's log: it may have had too little memory for the model",
        ) from error
    if not said.text:
        raise EngineRefused(
            f"{name} of {server} answered without a single token",
            hint="look at the server's log, and at the files: modelvault verify --installs",
        )
    shown = said.text.strip()
    warnings: tuple[str, ...] = ()
    if len(shown) >= _REPETITIVE and len(set(shown)) == 1:
        # What engines make of weights that they read wrongly (a missing shard, another quantization).
        warnings = (f"the answer is nothing but {shown[0]!r}: the engine may have loaded the weights wrongly",)
    return replace(
        result,
        served_as=name,
        text=said.text,
        tokens=said.tokens,
        first_token=said.first_token,
        loading=said.loading,
        rate=said.rate,
        warnings=warnings,
    )


def _served_as(client: Client, record: InstallRecord, options: SmokeOptions, server: str) -> str:
    """Find the server's name for the install. Raises ``EngineRefused`` where it lists none, or another model under the name."""
    listed = client.listed()
    names = {options.name} if options.name else names_of(record)
    found = sorted(name for name in listed if name in names)
    if not found:
        there = ", ".join(sorted(listed)[:_SHOWN]) + (", …" if len(listed) > _SHOWN else "")
        raise EngineRefused(
            f"{server} does not list {options.name or record.installed_name}; "
            + (f"it has {there}" if listed else "it has no models"),
            hint="does it read the directory of the install? if it has the model by another name: --as NAME",
        )
    name = record.installed_name if record.installed_name in found else found[0]
    digest = listed[name]
    if digest is not None and options.name is None and digest != record.files[-1].digest:
        raise EngineRefused(
            f"{server} has another model by the name of {name}",
            hint=f"does it read {record.directory}? `modelvault verify --installs` says whether the install is still as it was made",
        )
    return name


def _how_to_reach(record: InstallRecord, options: SmokeOptions) -> str:
    """Say what to do where no server answers."""
    if options.url or record.remote:
        return "is the server running, and does it listen there?"
    adapter = engines().get(record.engine)
    steps = adapter.recipe(record) if adapter else []
    start = f"start the server: `{steps[0]}`; " if steps and record.engine != "ollama" else "start the server; "
    itself = "or have it started: --start; " if kind_of(record).program else ""
    return f"{start}{itself}one that listens elsewhere is named with --url"


def _install_line(record: InstallRecord) -> str:
    return shlex.join(["modelvault", "install", record.model, "--engine", f"{record.engine}={record.directory}"])


def _recorded(vault: Vault, record: InstallRecord, result: SmokeResult, *, failed: bool) -> SmokeResult:
    """Write the outcome down. Where that cannot be done, a failure that was found is more important than the record of it."""
    if not vault.writable:
        return replace(result, warnings=(*result.warnings, _READ_ONLY))
    data = {
        "engine": record.engine,
        "directory": record.directory,
        "model": record.model,
        "manifest": record.manifest,
        "installed_name": record.installed_name,
        "address": result.address,
        "started": result.started,
        "outcome": "failed" if failed else "ok",
        "detail": result.problem,
        "tokens": result.tokens,
        "first_token": result.first_token,
        "rate": result.rate,
    }
    try:
        vault.record("smoke", data)
    except ModelvaultError as error:
        if not failed:
            raise
        return replace(result, warnings=(*result.warnings, f"the outcome could not be recorded: {error.message}"))
    return result
