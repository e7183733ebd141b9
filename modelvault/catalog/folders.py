"""The catalogs together: the one that came with modelvault, and those of the site and of the user, where later ones win."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modelvault.artifact import ModelName
from modelvault.catalog.entries import CatalogEntry, in_order, read_entries
from modelvault.errors import UsageProblem

_SUGGESTIONS = 3


@dataclass(frozen=True, slots=True)
class Catalog:
    """All short names. ``notes`` say which entries replace others, ``problems`` which files could not be read, by their stem."""

    entries: Mapping[str, CatalogEntry]
    notes: tuple[str, ...] = ()
    problems: Mapping[str, UsageProblem] = field(default_factory=dict)

    def find(self, name: ModelName) -> CatalogEntry | None:
        """Look a name up, in whatever case it was typed.

        Raises the ``UsageProblem`` of the file that should have described it: what it would have replaced is not what is wanted.
        """
        entry = find_entry(name, self.entries)
        for stem in (name.text, entry.model if entry else ""):
            if problem := self.problems.get(stem.casefold()):
                raise problem
        return entry

    def notes_on(self, entry: CatalogEntry) -> tuple[str, ...]:
        """Give the notes on one entry."""
        return tuple(note for note in self.notes if note.startswith(f"{entry.name}: "))

    def unknown(self, name: ModelName) -> UsageProblem:
        """Say that there is no such name, and which ones look like it."""
        near = suggest(name, self.entries)
        hint = f"did you mean {' or '.join(near)}" if near else "`modelvault catalog` lists the short names"
        if self.problems:
            hint += f" (not read: {', '.join(sorted(self.problems))}; `modelvault catalog` says why)"
        return UsageProblem(f"{name} is not in the catalog", hint=hint, suggestions=near)


def load_catalog(directory: Path | None = None) -> Mapping[str, CatalogEntry]:
    """Read every ``*.toml`` of ``directory`` (default: the catalog that came with modelvault), by short name, as people count.

    Raises ``UsageProblem`` naming the file and the key for anything that the schema does not admit.
    """
    folder = directory if directory is not None else packaged_manifests()
    found = _read(folder)
    for problem in found.problems.values():
        raise problem
    if not found.entries:
        raise UsageProblem(
            f"{folder} holds no catalog entries", hint="reinstall modelvault, or name the directory of the entries"
        )
    return {name: found.entries[name] for name in in_order(list(found.entries))}


def combined(folders: Sequence[Path]) -> Catalog:
    """Read the catalog that came with modelvault and lay those of ``folders`` over it; a broken file there costs its own entry only."""
    entries = dict(load_catalog())
    spelled = {name.casefold(): name for name in entries}
    notes: list[str] = []
    problems: dict[str, UsageProblem] = {}
    for folder in folders:
        found = _read(folder)
        for name, entry in found.entries.items():
            problems.pop(name.casefold(), None)  # what an earlier folder could not say
            before = entries.pop(spelled.get(name.casefold(), ""), None)
            if before is not None:
                notes.append(f"{name}: the entry of {entry.file} replaces that of {before.file}")
            entries[name] = entry
            spelled[name.casefold()] = name
        problems |= found.problems
    return Catalog({name: entries[name] for name in in_order(list(entries))}, tuple(notes), problems)


def _read(folder: Path) -> Catalog:
    """Read the files of one folder, each for itself."""
    entries: dict[str, CatalogEntry] = {}
    taken: dict[str, Path] = {}
    problems: dict[str, UsageProblem] = {}
    for file in sorted(folder.glob("*.toml")):
        try:
            read = read_entries(file)
            for entry in read:
                other = taken.get(entry.name.text.casefold())
                if other is not None:
                    raise UsageProblem(
                        f"{file}: name: {entry.name} is the short name of an entry of {other.name}, but for its case",
                        hint="short names differ in more than case: choose another one",
                    )
        except UsageProblem as error:
            problems[file.stem.casefold()] = error
            continue
        taken |= {entry.name.text.casefold(): file for entry in read}
        entries |= {entry.name.text: entry for entry in read}
    return Catalog(entries, (), problems)


def packaged_manifests() -> Path:
    """Find the catalog: inside the package when it was installed from a wheel, else at the top of the checkout."""
    package = Path(__file__).parent.parent
    installed = package / "manifests"
    return installed if installed.is_dir() else package.parent / "manifests"


def find_entry(name: ModelName, entries: Mapping[str, CatalogEntry]) -> CatalogEntry | None:
    """Look a name up, in whatever case it was typed."""
    exact = entries.get(name.text)
    if exact is not None:
        return exact
    folded = name.text.casefold()
    return next((entry for key, entry in entries.items() if key.casefold() == folded), None)


def suggest(name: ModelName, entries: Mapping[str, CatalogEntry]) -> list[str]:
    """Give up to three names of the catalog that look like ``name``, the nearest first."""
    keys = {key.casefold(): key for key in entries}
    near = difflib.get_close_matches(name.text.casefold(), keys, n=_SUGGESTIONS)
    return [keys[key] for key in near]
