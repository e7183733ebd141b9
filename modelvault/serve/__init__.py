"""Read-only endpoints over a vault, for other machines on the same side.

``create_app`` gives the ASGI application, ``run`` serves it until Ctrl-C. Both need the extra ``serve`` (starlette and uvicorn);
importing this package without it raises ``UsageProblem``.
"""

from modelvault.errors import UsageProblem

try:
    from modelvault.serve.app import create_app
    from modelvault.serve.server import HubServer, run
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in {"starlette", "uvicorn", "anyio", "h11"}:
        raise
    raise UsageProblem(
        f"serving needs the package {error.name}, which is not installed",
        hint="install both where modelvault is: pip install starlette uvicorn",
    ) from error

from modelvault.serve.repositories import Shelf

__all__ = ["HubServer", "Shelf", "create_app", "run"]
