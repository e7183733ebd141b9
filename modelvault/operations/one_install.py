"""Which install is meant, where a model may be installed in several places."""

import shlex

from modelvault.engines import InstallRecord, engines, parse_target
from modelvault.errors import UsageProblem
from modelvault.vault import Vault


def one_install(vault: Vault, model: str, engine: str | None, command: str) -> InstallRecord:
    """Find the one install of a model, by the vault's name or the engine's; ``engine`` as typed: ``ENGINE`` or ``ENGINE=DIR``.

    ``command`` is what a user types again. Raises ``UsageProblem`` where there is none, or several.
    """
    rows = [row for row in vault.installs() if model in {row.model, row.installed_name}]
    adapters = engines()
    if engine is not None:
        name, _, directory = engine.partition("=")
        if directory or name not in adapters:
            target = parse_target(engine, adapters)
            rows = [row for row in rows if (row.engine, row.directory) == (target.engine, target.place)]
        rows = [row for row in rows if directory or row.engine == name]
    if not rows:
        where = f"in {engine}" if engine else "in any engine"
        raise UsageProblem(
            f"{model} is not installed {where}",
            hint=f"`modelvault installs` lists what is; `{_install_line(model, engine)}` does it",
        )
    if len(rows) > 1:
        typed = (
            ["modelvault", command, row.installed_name, "--engine", f"{row.engine}={row.directory}"] for row in rows
        )
        commands = "\n".join(f"  {shlex.join(words)}" for words in typed)
        raise UsageProblem(f"{model} is installed in several places", hint=f"type one of:\n{commands}")
    return InstallRecord.from_json(rows[0].record)


def _install_line(model: str, engine: str | None) -> str:
    line = shlex.join(["modelvault", "install", model, "--engine"])
    adapter = engines().get(engine or "")
    if engine is None:
        return f"{line} ENGINE"
    # Some engines have no usual directory: the user has to name one.
    return f"{line} {engine}{'=DIR' if adapter is not None and adapter.default() is None else ''}"
