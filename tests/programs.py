"""Programs of the system that tests compare with."""

import os
import shutil
from typing import NoReturn

import pytest


def missing(what: str) -> NoReturn:
    """Skip, or fail where everything has to be there."""
    reason = f"{what} is not installed: run scripts/setup-packages"
    if os.environ.get("MODELVAULT_REQUIRE_ENGINES") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def require_program(name: str) -> str:
    """Find a program; else skip or fail."""
    return shutil.which(name) or missing(name)
