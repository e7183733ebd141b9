"""Running the application: one process, one listening socket, until Ctrl-C."""

import contextlib
import os
import socket
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from modelvault.errors import UsageProblem

_GRACE = 2  # seconds that open downloads get after Ctrl-C
_BACKLOG = 128
_LAST_PORT = 65535


class HubServer:
    """A server that listens from the moment it is made, so that ``url`` is known and no early request is refused."""

    def __init__(self, app: ASGIApp, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen on ``host``; port 0 takes a free one. Raises ``UsageProblem`` if that is not possible."""
        self._socket = _listen(host, port)
        config = uvicorn.Config(
            app,
            access_log=False,
            log_level="warning",
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=_GRACE,
        )
        self._server = uvicorn.Server(config)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._socket.getsockname()[1]}"

    def serve(self) -> None:
        """Answer requests until ``stop`` is called or, in the main thread, Ctrl-C is pressed (not an error)."""
        with self._socket, contextlib.suppress(KeyboardInterrupt):
            self._server.run(sockets=[self._socket])

    def close(self) -> None:
        """Stop listening, for a server that never came to ``serve``."""
        self._socket.close()

    def stop(self) -> None:
        """Make ``serve`` return soon; may be called from any thread."""
        self._server.should_exit = True


def run(app: ASGIApp, host: str, port: int, on_ready: Callable[[str], None]) -> None:
    """Serve ``app`` until Ctrl-C; ``on_ready`` is told the URL once requests are taken. Port 0 takes a free one.

    Raises ``UsageProblem`` if the address cannot be listened on.
    """
    server = HubServer(app, host, port)
    with contextlib.closing(server), contextlib.suppress(KeyboardInterrupt):
        on_ready(server.url)
        server.serve()


def _listen(host: str, port: int) -> socket.socket:
    try:
        if not 0 <= port <= _LAST_PORT:
            raise OverflowError("ports are 0 to 65535")
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # asyncio turns Nagle's algorithm off only where the protocol is spelled out; socket.create_server leaves it at 0, and
        # then every small answer waits 40 ms for the client's delayed acknowledgement.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
    except (socket.gaierror, UnicodeError) as error:
        raise UsageProblem(
            f"cannot listen on {host!r}: there is no such address",
            hint="--host takes an address or a name of this machine, such as 127.0.0.1",
            host=host,
        ) from error
    except (OSError, OverflowError) as error:
        reason = os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else str(error)
        raise UsageProblem(
            f"cannot listen on {host} port {port}: {reason}",
            hint="choose another port with --port, or 0 for any that is free",
            host=host,
            port=port,
        ) from error
    return listener
