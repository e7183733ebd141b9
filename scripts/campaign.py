"""Breaks bundles, imports and drives in every way that we can, many times, and counts what came of it.

Each run breaks one thing at a random place or moment, looks at what is left with code that shares nothing with modelvault, and
then runs the same command again. The columns:

broken     runs that were really hit; the others ended before their moment came
detected   the command said so: another exit code than 0, or a warning that names the drive, and no internal error
unread     a bit flipped in a file that import never reads (README.txt and the like); everything imported was right
recovered  the command, run again once the cause was gone, ended well, and all bytes were those of an undisturbed run
lost       it did not, or not all of them were; must be 0
wrong      something was listed or installed that was not whole and right; must be 0

Kills and flips need nothing, though without root no drive is small; drives that fill up or are pulled out are small loop-mounted
file systems, and need root.
"""

import argparse
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from campaign_kinds import KINDS
from campaign_world import Outcome, World


def share(total: int, parts: int) -> list[int]:
    """Cut a number of runs into parts."""
    return [total // parts + (part < total % parts) for part in range(parts)]


def plan(counts: dict[str, int]) -> list[str]:
    """Give the kinds of all runs."""
    runs = []
    for group, count in counts.items():
        names = [name for name, (of, _) in KINDS.items() if of == group]
        for name, number in zip(names, share(count, len(names)), strict=True):
            runs += [name] * number
    return runs


def campaign(root: Path, counts: dict[str, int], seed: int, workers: int) -> dict[str, list[Outcome]]:
    """Do all runs, some at a time; whatever is broken is broken in a place of its own."""
    world = World(root)

    def one(item: tuple[int, str]) -> tuple[str, Outcome]:
        number, name = item
        place = root / f"run-{number}"
        place.mkdir()
        outcome = KINDS[name][1](world, place, random.Random(seed * 1_000_003 + number))
        shutil.rmtree(place)
        if outcome.defect:
            print(f"run {number} ({name}, seed {seed}): {outcome}\n{outcome.note}", file=sys.stderr)
        if number % 50 == 49:
            print(f"{number + 1} runs", file=sys.stderr, flush=True)
        return name, outcome

    results: dict[str, list[Outcome]] = {}
    with ThreadPoolExecutor(workers) as pool:
        for name, outcome in pool.map(one, enumerate(plan(counts))):
            results.setdefault(name, []).append(outcome)
    return results


def report(results: dict[str, list[Outcome]]) -> str:
    """Lay the results out as a table of Markdown."""
    columns = ["what was done", "runs", "broken", "detected", "unread", "recovered", "lost", "wrong"]
    rows = []
    for name, outcomes in results.items():
        hit = [outcome for outcome in outcomes if outcome.broken and not outcome.unread]
        cells = [
            len(outcomes),
            len(hit),
            sum(outcome.detected for outcome in hit),
            sum(outcome.unread for outcome in outcomes),
            sum(outcome.recovered for outcome in outcomes),
            sum(not outcome.recovered for outcome in outcomes),
            sum(outcome.wrong for outcome in outcomes),
        ]
        rows.append([name, *map(str, cells)])
    return "\n".join("| " + " | ".join(row) + " |" for row in [columns, ["---"] * len(columns), *rows])


def failed(results: dict[str, list[Outcome]]) -> bool:
    """Tell whether anything was lost, wrong, or broken without a word."""
    return any(outcome.defect for outcomes in results.values() for outcome in outcomes)


def main() -> int:
    """Run the campaign and print its table; 1 if anything was lost or wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="of bundle and import, half each")
    parser.add_argument("--flips", type=int, default=1000, help="bits flipped in bundles")
    parser.add_argument("--drives", type=int, default=50, help="filled up or pulled out (needs root)")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    counts = {"kills": options.kills, "flips": options.flips, "drives": options.drives}
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="modelvault-campaign-") as place:
        results = campaign(Path(place), counts, options.seed, options.workers)
    print(f"seed {options.seed}, {time.monotonic() - begun:.0f} s, {platform.system()} {platform.machine()}\n")
    print(report(results))
    return int(failed(results))


if __name__ == "__main__":
    sys.exit(main())
