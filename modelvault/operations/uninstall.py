"""``uninstall``: take exactly what was installed out of an engine's directories."""

from modelvault.artifact import ModelName
from modelvault.engines import InstallRecord, engines, parse_target
from modelvault.errors import UsageProblem
from modelvault.operations.summaries import install_line
from modelvault.results.installs import UninstallResult
from modelvault.vault import Vault


def uninstall(vault: Vault, model: str, engine: str) -> UninstallResult:
    """Remove an install, named by the vault's or the engine's name. Raises ``UsageProblem`` if it is not recorded."""
    adapters = engines()
    target = parse_target(engine, adapters)
    if model.startswith("ollama:"):
        model = ModelName(model).text  # in the one of its forms that is recorded
    rows = [
        row
        for row in vault.registry.installs()
        if (row.engine, row.directory) == (target.engine, target.place) and model in {row.model, row.installed_name}
    ]
    if not rows:
        raise UsageProblem(
            f"{model} is not installed in {target.engine} at {target.place}",
            hint="`modelvault installs` lists what is installed where; name the directory: --engine ENGINE=DIR",
        )
    names = sorted({row.installed_name for row in rows})
    if len(names) > 1:
        commands = "\n".join(f"  {install_line(row).removal}" for row in rows)
        raise UsageProblem(f"{model} is installed there under several names", hint=f"type one of:\n{commands}")
    removed: list[str] = []
    kept: list[str] = []
    for row in rows:
        removal = adapters[row.engine].uninstall(InstallRecord.from_json(row.record))
        removed += removal.removed
        kept += removal.kept
        place = {"engine": row.engine, "directory": row.directory, "installed_name": row.installed_name}
        vault.record("uninstall", place)
    return UninstallResult(
        vault=vault.root,
        model=names[0],
        engine=target.engine,
        directory=target.place,
        removed=tuple(removed),
        kept=tuple(kept),
        warnings=tuple(f"{path} was changed after it had been installed, and is kept" for path in kept),
    )
