"""``serve``: the vault as a read-only Hub."""

from collections.abc import Callable

from modelvault.errors import UsageProblem
from modelvault.vault import Vault


def serve(vault: Vault, host: str, port: int, on_ready: Callable[[str], None]) -> None:
    """Answer until interrupted; ``on_ready`` is told the URL. Raises ``UsageProblem`` if the extra is not installed."""
    try:
        # Starlette and uvicorn are an extra: most machines never serve.
        from modelvault.serve import create_app, run  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise UsageProblem(
            f"`serve` needs packages that are not installed: {error.name}", hint="pip install 'modelvault[serve]'"
        ) from error
    run(create_app(vault.store), host, port, on_ready)
