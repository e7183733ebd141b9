"""Which certificates are trusted: the same for every source, and for the Hub's own client."""

import os
import ssl

import httpx2

from modelvault.errors import UsageProblem


def certificates() -> ssl.SSLContext:
    """Trust what the environment names, as curl and requests do; else what httpx2 finds, so that both clients agree."""
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        bundle = os.environ.get(variable)
        if bundle and not os.environ.get("SSL_CERT_FILE"):
            return _context(variable, bundle)
    try:
        return httpx2.create_ssl_context()
    except OSError as error:
        raise UsageProblem(
            f"cannot read the certificates that SSL_CERT_FILE or SSL_CERT_DIR names: {error}",
            hint="correct the variable, or unset it",
        ) from error


def _context(variable: str, bundle: str) -> ssl.SSLContext:
    try:
        if os.path.isdir(bundle):  # noqa: PTH112 (a string from the environment, handed on as it is)
            return ssl.create_default_context(capath=bundle)
        return ssl.create_default_context(cafile=bundle)
    except OSError as error:
        raise UsageProblem(
            f"cannot read the certificates that {variable} names: {error}", hint="correct the variable, or unset it"
        ) from error
