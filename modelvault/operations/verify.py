"""``verify``: read every byte again, of models at rest or of a bundle."""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from modelvault.artifact import Digest, ModelName, StoredModel, looks_like_path
from modelvault.bundle.check import Finding, verify_bundle
from modelvault.bundle.reader import OpenBundle, open_bundle
from modelvault.errors import DigestMismatch, TrustRefused, UsageProblem
from modelvault.operations.finding import find_bundles
from modelvault.progress import Progress, Task
from modelvault.results import Damage, VerifyResult
from modelvault.store import hash_file
from modelvault.vault import Vault


def verify(vault: Vault, subjects: Sequence[str], progress: Progress, *, allow_unsigned: bool = False) -> VerifyResult:
    """Verify the named models (all, if nothing is named) or the named bundles, not both at once.

    Raises ``DigestMismatch`` (exit 12) with the result if anything is damaged, ``TrustRefused`` for a bundle's signature,
    ``UsageProblem`` for names and paths that there are not.
    """
    paths = [Path(subject).expanduser() for subject in subjects if looks_like_path(subject)]
    if paths and len(paths) < len(subjects):
        raise UsageProblem("models and bundles are verified separately", hint="run the command once for each kind")
    if len(paths) > 1:
        raise UsageProblem("one bundle is verified at a time", hint="run the command once for each bundle")
    if paths:
        result = _verify_bundle(vault, paths[0], progress, allow_unsigned=allow_unsigned)
    else:
        with vault.holding():
            result = _verify_models(vault, [ModelName(subject) for subject in subjects], progress)
    if result.damage:
        first = result.damage[0]
        raise DigestMismatch(
            f"{result.subject}: {len(result.damage)} damaged, the first is {first.where}: {first.problem}",
            hint=_hint(result.damage),
            result=result,
        )
    return result


def _hint(damage: Sequence[Damage]) -> str:
    models = sorted({model for item in damage for model in item.models})
    if not models:
        return "write the bundle again"
    return f"take the affected models out ({', '.join(models[:5])}) with `modelvault rm` and `gc`, then pull or import again"


def _verify_models(vault: Vault, names: Sequence[ModelName], progress: Progress) -> VerifyResult:
    begun = time.monotonic()
    models = vault.select(names)
    sizes: dict[Digest, int] = {}
    needed_by: dict[Digest, list[str]] = {}
    for stored in models:
        for digest, size in vault.store.blobs_of(stored.manifest).items():
            sizes[digest] = size
            needed_by.setdefault(digest, []).append(stored.model.name.text)
    with (
        progress.task("verifying", sum(sizes.values()), overall=True) as task,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        # The largest first, so that no thread is left alone with it at the end.
        order = sorted(sizes, key=lambda digest: sizes[digest], reverse=True)
        problems = dict(zip(order, pool.map(lambda digest: _problem(vault, digest, task), order), strict=True))
    for stored in models:
        _record(vault, stored, [problems[digest] for digest in vault.store.blobs_of(stored.manifest)])
    return VerifyResult(
        subject="models in the vault" if not names else ", ".join(map(str, names)),
        checked=len(sizes),
        size=sum(sizes.values()),
        seconds=time.monotonic() - begun,
        damage=tuple(
            Damage(str(vault.store.blob_path(digest)), problem, tuple(needed_by[digest]))
            for digest, problem in problems.items()
            if problem
        ),
    )


def _problem(vault: Vault, digest: Digest, task: Task) -> str | None:
    try:
        actual = hash_file(vault.store.blob_path(digest), task.advance)
    except FileNotFoundError:
        return "it is missing"
    except OSError as error:
        return f"it cannot be read: {(error.strerror or str(error)).lower()}"
    return None if actual == digest else f"its SHA-256 is {actual.hex}"


def _record(vault: Vault, stored: StoredModel, problems: Sequence[str | None]) -> None:
    found = [problem for problem in problems if problem]
    vault.record(
        "check",
        {
            "model": stored.model.name.text,
            "outcome": "damaged" if found else "ok",
            "detail": "; ".join(found[:5]) or None,
        },
    )


def _verify_bundle(vault: Vault, path: Path, progress: Progress, *, allow_unsigned: bool) -> VerifyResult:
    begun = time.monotonic()
    (path,) = find_bundles([path])
    try:
        bundle = open_bundle(path, vault.keys.verify)
    except TrustRefused:
        if not allow_unsigned:
            raise
        bundle = open_bundle(path, None)
    check = verify_bundle(bundle, progress)
    return VerifyResult(
        subject=str(path),
        checked=check.frames,
        size=check.size,
        seconds=time.monotonic() - begun,
        damage=tuple(_damage(bundle, finding) for finding in check.findings),
    )


def _damage(bundle: OpenBundle, finding: Finding) -> Damage:
    """Say which models a finding concerns: those that need a blob of which a piece lies there."""
    members = bundle.index.volumes[finding.volume - 1]
    touched = {member.digest for member in members if member.path in finding.paths and member.is_blob}
    where = f"volume {finding.volume}" + (f", frame {finding.frame}" if finding.frame else "")
    return Damage(where, finding.reason, tuple(map(str, bundle.index.needing(touched))))
