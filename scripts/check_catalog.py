"""Compare every entry of the catalog with what its source says: repository, license, gating, files. Needs a network.

Ends with 0 if all of it agrees, with 1 if something does not, with 10 if the source cannot be reached. It changes nothing: an entry
becomes ``verified = true`` when a person has read the result and the license.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from modelvault.artifact import FileRole, ModelName, SourceFile, file_role
from modelvault.catalog import CatalogEntry, find_entry, load_catalog, suggest
from modelvault.cli.console import human_size
from modelvault.cli.run import printable
from modelvault.errors import ModelvaultError, SourceUnavailable, UsageProblem
from modelvault.inspect import check_listing
from modelvault.operations.catalog import recipe_of
from modelvault.sources import Snapshot
from modelvault.sources.hub import HubSource
from modelvault.sources.selection import Wish, select


def chosen(catalog: Path | None, names: Sequence[str]) -> list[CatalogEntry]:
    """Give the entries that are meant, or all. Raises ``UsageProblem`` with the nearest names."""
    entries = load_catalog(catalog)
    found = []
    for name in map(ModelName, names):
        entry = find_entry(name, entries)
        if entry is None:
            near = suggest(name, entries)
            raise UsageProblem(
                f"{name} is not in the catalog", hint=f"did you mean {' or '.join(near)}" if near else None
            )
        found.append(entry)
    return found or list(entries.values())


def look(source: HubSource, entry: CatalogEntry) -> tuple[int | None, list[str]]:
    """Give the bytes of the weights as the source lists them, and what does not agree with the entry.

    Raises ``SourceUnavailable`` where the source itself is out of reach.
    """
    try:
        snapshot = source.snapshot(entry.repository, entry.revision)
    except SourceUnavailable as error:
        if "status" not in error.data:
            raise
        return None, [error.message]
    problems = list(facts(entry, snapshot))
    try:
        recipe_of(entry)
        files = select(snapshot.files, Wish(entry.quant, entry.include, entry.exclude)).files
        check_listing([file.path for file in files], allow_pickle=False)
    except ModelvaultError as error:
        return None, [*problems, error.message]
    return weight(files), problems


def facts(entry: CatalogEntry, snapshot: Snapshot) -> Iterator[str]:
    """Compare what the source says of the repository."""
    if snapshot.license != entry.license:
        yield f"license {snapshot.license or 'not stated'}, not {entry.license}"
    if snapshot.gated != entry.gated:
        yield "gated" if snapshot.gated else "not gated"


def weight(files: Sequence[SourceFile]) -> int:
    """Sum up what a memory has to hold."""
    return sum(file.size for file in files if file_role(file.path) is FileRole.WEIGHT)


def check(source: HubSource, entries: Sequence[CatalogEntry]) -> int:
    """Print a line for each entry as it was looked at; give the number of those that do not agree."""
    wide = max(len(entry.name.text) for entry in entries)
    wrong = 0
    print(f"{'name':<{wide}}  {'weights':>8}  {'about':>8}  result")
    for entry in entries:
        size, problems = look(source, entry)
        shown = human_size(size) if size is not None else "?"
        result = "differs" if problems else "ok"
        print(f"{entry.name.text:<{wide}}  {shown:>8}  {human_size(entry.size):>8}  {result}")
        for problem in problems:
            print(f"  {printable(problem)}")
        wrong += bool(problems)
        sys.stdout.flush()
    print(f"{len(entries) - wrong} of {len(entries)} entries agree with {source.endpoint}")
    return wrong


def main() -> int:
    """Read the command line and check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these short names")
    parser.add_argument("--endpoint", metavar="URL", help="another hub or a mirror")
    parser.add_argument("--catalog", type=Path, metavar="DIR", help="another folder of entries than manifests/")
    asked = parser.parse_args()
    try:
        entries = chosen(asked.catalog, asked.names)
        source = HubSource(asked.endpoint)
        try:
            return bool(check(source, entries))
        finally:
            source.close()
    except ModelvaultError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
