"""Fixtures for all tests: small real models, and machines to carry them between."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from machines import Machine
from make_models import make_awq, make_gguf_repository

# How long an example takes says how busy the machine is; what never ends is met by the limit on the whole test (pyproject.toml).
settings.register_profile("modelvault", deadline=None)
settings.load_profile("modelvault")


def pytest_configure() -> None:
    """Let Ctrl-C reach the programs that tests start: a shell that runs us in the background had it ignored, for them too."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository folder with one small GGUF (Q8_0) that llama.cpp runs."""
    directory = tmp_path_factory.mktemp("models") / "tiny-GGUF"
    make_gguf_repository(directory, name="tiny")
    return directory


@pytest.fixture(scope="session")
def tiny_awq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository folder with a small AWQ model that vLLM runs."""
    directory = tmp_path_factory.mktemp("models") / "tiny-AWQ"
    make_awq(directory, name="tiny-awq")
    return directory


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., Machine]:
    """Make machines by name: ``machine("pc")``, ``machine("server")``."""

    def make(name: str, endpoint: str | None = None, **variables: str) -> Machine:
        root = tmp_path / name
        root.mkdir(exist_ok=True)
        return Machine(root, endpoint, variables)

    return make


@pytest.fixture
def as_root() -> None:
    """Skip without root: loop mounts, network namespaces and other users need it."""
    if os.geteuid() != 0:
        reason = "needs root for loop mounts, namespaces or other users"
        if os.environ.get("MODELVAULT_REQUIRE_ENGINES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
