"""What a model could do to whoever runs it: code of its own, pickles, chat templates. Told, not judged: that is for the policy."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from modelvault.artifact import FileReport
from modelvault.inspect.code import find_code
from modelvault.inspect.listing import is_pickle_name
from modelvault.inspect.source import is_pickle, read_head
from modelvault.inspect.templates import template_warnings


@dataclass(frozen=True, slots=True)
class Advice:
    """What was found: references to ``code``, the ``pickles``, and the ``dangerous`` and ``suspicious`` calls in them."""

    warnings: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    pickles: tuple[str, ...] = ()
    dangerous: tuple[str, ...] = ()
    suspicious: tuple[str, ...] = ()


def advise(files: Mapping[str, Path], reports: Mapping[str, FileReport], pickles: tuple[str, ...]) -> Advice:
    """Look at a model's files, of which ``pickles`` are known to be some. Raises ``OSError``."""
    code = find_code(files)
    dangerous: tuple[str, ...] = ()
    suspicious: tuple[str, ...] = ()
    if pickles:
        # Few models have any.
        from modelvault.inspect.pickles import scan_pickles  # noqa: PLC0415

        scan = scan_pickles({path: files[path] for path in pickles})
        dangerous, suspicious = scan.dangerous, scan.suspicious
    warnings = (
        *(f"a pickle would call what can do harm, {found}" for found in dangerous),
        *(f"a pickle would call what is not known to be harmless, {found}" for found in suspicious),
        *template_warnings(files, reports),
    )
    return Advice(warnings, code, pickles, dangerous, suspicious)


def find_pickles(files: Mapping[str, Path]) -> tuple[str, ...]:
    """Name the files that hold pickles, by name or by content; what is not there is passed over. Raises ``OSError``."""
    return tuple(
        path
        for path, place in files.items()
        if is_pickle_name(path) or (place.exists() and is_pickle(read_head(place, path)))
    )
