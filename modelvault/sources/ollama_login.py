"""The token exchange of Ollama's registries, as the client of release 0.24.0 does it (``server/auth.go``).

A registry that wants to know who asks answers 401 and names a realm; there a request that is signed with the user's key is given a
token. The realm has to have the registry's own origin, and the token is sent nowhere else.
"""

import base64
import hashlib
import re
import secrets
import threading
import time
import urllib.request
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import urllib3

from modelvault.errors import SourceUnavailable, Transient
from modelvault.sources.http import Web, is_address, origin, retry_after
from modelvault.strictjson import decode_object

_MAX_ANSWER = 64 << 10  # bytes
_MAX_KEY = 64 << 10  # bytes
_TOKEN = re.compile(r"[\x21-\x7e]+")  # what a header can hold
BUSY = {408, 425, 429, 500, 502, 503, 504}


class Login:
    """Holds the token of one registry and gets a new one when it is asked for. Safe in any thread."""

    def __init__(self, web: Web, registry: str, agent: str, key: Path) -> None:
        """Remember where to ask; ``key`` is an OpenSSH Ed25519 key, which need not exist: then nobody is asked for."""
        self._web = web
        self._registry = registry
        self._agent = agent
        self._key = key
        self._token: str | None = None
        self._lock = threading.Lock()

    def headers(self) -> dict[str, str]:
        """Give what goes along with a request to the registry itself."""
        token = self._token
        return {"user-agent": self._agent} | ({"authorization": f"Bearer {token}"} if token else {})

    def renew(self, challenge: str, used: dict[str, str]) -> None:
        """Answer a ``WWW-Authenticate`` header that came for a request with the headers ``used``.

        Raises ``SourceUnavailable`` where the registry does not want us, or wants what we do not give; ``Transient``.
        """
        with self._lock:
            if self.headers() == used:  # else another thread has got a token in the meantime
                self._token = self._fetch(self._address(challenge))

    def _address(self, challenge: str) -> str:
        """Write the address of the token, with the challenge's service and scopes, the time and a nonce."""
        scheme, _, listed = challenge.partition(" ")
        said = urllib.request.parse_keqv_list([item for item in urllib.request.parse_http_list(listed) if "=" in item])
        realm = said.get("realm", "")
        if scheme.lower() != "bearer" or not is_address(realm):
            raise SourceUnavailable(
                f"{self._registry} asks for a login that is not Ollama's: {challenge[:120]!r}",
                hint="check that it is a registry of Ollama's; others are not known here",
            )
        if origin(realm) != origin(self._registry):
            raise SourceUnavailable(
                f"{self._registry} sends us to {origin(realm)[1]} for a token, and tokens are not carried from one host to another",
                hint="ask the registry's operators; Ollama refuses this, too",
            )
        query = [("service", said.get("service", "")), *(("scope", one) for one in said.get("scope", "").split(" "))]
        query += [("ts", str(int(time.time()))), ("nonce", secrets.token_urlsafe(16))]
        # Sorted, as Go writes it: the registry checks the signature over the address as it reads it.
        separator = "&" if urlsplit(realm).query else "?"
        return realm + separator + urlencode(sorted(query, key=lambda item: item[0]))

    def _fetch(self, address: str) -> str:
        headers = {"user-agent": self._agent, "accept-encoding": "identity", **self._signed(address)}
        response = self._web.get(address, headers)
        try:
            if response.status in BUSY:
                raise Transient(f"the registry answers {response.status}", retry_after=retry_after(response.headers))
            if response.status != HTTPStatus.OK:
                raise self._refused(response)
            said = decode_object(response.read(_MAX_ANSWER))
            token = said.get("token") or said.get("access_token")
            if not isinstance(token, str) or not _TOKEN.fullmatch(token):
                raise ValueError("no token in it")
        except ValueError as error:
            raise SourceUnavailable(
                f"{self._registry} does not answer like a registry of Ollama's: {error}",
                hint="check the registry's address; a login page of the network may stand between",
            ) from error
        finally:
            response.close()
        return token

    def _refused(self, response: urllib3.BaseHTTPResponse) -> SourceUnavailable:
        who = f"the key {self._key}" if self._key.exists() else "anybody"
        return SourceUnavailable(
            f"{self._registry} gives no token to {who} (status {response.status})",
            hint="a private model needs the key of an account that may read it: `ollama signin` registers the one in ~/.ollama",
            status=response.status,
        )

    def _signed(self, address: str) -> dict[str, str]:
        """Sign the request with the user's key, if there is one."""
        try:
            data = self._key.read_bytes()[:_MAX_KEY]
        except FileNotFoundError:
            return {}
        # Slow to import, and most registries never ask.
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415
        from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
            Encoding,
            PublicFormat,
            load_ssh_private_key,
        )

        try:
            key = load_ssh_private_key(data, password=None)
            if not isinstance(key, Ed25519PrivateKey):
                raise TypeError("it is not an Ed25519 key")
        except (ValueError, TypeError) as error:
            raise SourceUnavailable(
                f"{self._key} is no key that Ollama could use: {error}",
                hint="move it away, and `ollama serve` makes a new one; or ask for a public model",
            ) from error
        nothing = base64.b64encode(hashlib.sha256().hexdigest().encode()).decode()
        signature = base64.b64encode(key.sign(f"GET,{address},{nothing}".encode())).decode()
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).split()[1].decode()
        return {"authorization": f"{public}:{signature}"}
