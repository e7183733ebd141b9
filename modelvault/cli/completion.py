"""What the shell completes: names of the vault, of the catalog, of engines. A completion never fails: then it offers nothing."""

import contextlib
from collections.abc import Iterator


def models(incomplete: str) -> list[str]:
    """Complete a model of the vault."""
    return _starting(incomplete, _models())


def catalog(incomplete: str) -> list[str]:
    """Complete a short name of the catalog."""
    return _starting(incomplete, _catalog())


def engines(incomplete: str) -> list[str]:
    """Complete an engine."""
    return _starting(incomplete, _engines())


def links(incomplete: str) -> list[str]:
    """Complete a way to place bytes."""
    return _starting(incomplete, _links())


def _models() -> Iterator[str]:
    from modelvault.config import default_home
    from modelvault.store import Store

    for entry in Store(default_home()).entries():
        yield entry.name.text


def _catalog() -> Iterator[str]:
    from modelvault.config import default_home, load_config
    from modelvault.operations.catalog import the_catalog

    yield from the_catalog(load_config(default_home())).entries


def _engines() -> Iterator[str]:
    from modelvault.engines import engines

    yield from engines()


def _links() -> Iterator[str]:
    from modelvault.engines import LinkMode

    yield from LinkMode


def _starting(incomplete: str, names: Iterator[str]) -> list[str]:
    # Whatever is wrong with a vault or a catalog, a prompt is no place to say it: the command will.
    with contextlib.suppress(Exception):
        return sorted(name for name in names if name.startswith(incomplete))
    return []
