"""``verify`` of a bundle: read every byte of it again, on however many drives, and say what is present, damaged and still wanted."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from modelvault.artifact import Digest
from modelvault.bundle.check import BundleCheck, Finding, verify_bundle
from modelvault.bundle.index import BundleUnfinished, Member, Span, merged, name_volumes
from modelvault.bundle.papers import Request, encode_request
from modelvault.bundle.ranges import Ranges
from modelvault.bundle.reader import OpenBundle
from modelvault.bundle.receive import volumes_wanted
from modelvault.bundle.staging import Staging
from modelvault.errors import DigestMismatch, ModelvaultError, UsageProblem, in_words
from modelvault.operations.delivery import Delivery, VolumesWanted, gather, staging_of
from modelvault.operations.finding import find_one
from modelvault.operations.keys import require_site, site_signer
from modelvault.operations.papers import require_writable, write_paper
from modelvault.operations.trust import FINISH
from modelvault.progress import Progress
from modelvault.results.bundles import Damage, ModelLine, RequestWritten, VerifyResult, VolumeLine
from modelvault.vault import Vault

_MOST_FILES = 3  # that are named where something is damaged
_ANSWER = "carry the request to the PC that wrote the bundle: `modelvault bundle --answer FILE --to DIR` answers it"


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asked for: the parts of one bundle, perhaps with a patch; and where to write a request for what is wanted of it."""

    paths: tuple[Path, ...]
    allow_unsigned: bool = False
    request: Path | None = None
    site: str | None = None


def verify_paths(vault: Vault, wish: Wish, progress: Progress) -> VerifyResult:
    """Check every frame of a bundle that is here, its index and its signatures. The vault says whom to trust, and what it has already.

    A vault that does not exist trusts nobody, and is made only to sign a request. Raises ``TrustRefused`` for a bundle that nobody
    trusted signed, unless that is allowed; ``DigestMismatch`` with the result if anything is damaged; ``BundleUnfinished`` if volumes were
    not written yet, ``VolumesWanted`` if some are not here; ``UsageProblem`` if there is no bundle, or several, or where a request could not
    be written, before anything is read. One that cannot be written all the same raises with the result.
    """
    begun = time.monotonic()
    if wish.request is not None:
        require_site(vault, wish.site)
        require_writable(wish.request)
    delivery = _only(vault, wish)
    bundle = delivery.bundle
    if wish.request is not None and bundle.index.patches is not None:
        raise UsageProblem(
            f"{bundle.places[0]} is a patch: a request is for the bundle that it mends",
            hint="give the path of that bundle along with it",
        )
    check = verify_bundle(bundle, progress, patches=delivery.patches)
    there = _together(check.good, _held(vault, bundle, thorough=wish.request is not None))
    wanted = {blob.digest for blob in bundle.index.blobs if not there[blob.digest].covers(0, blob.size)}
    volumes = volumes_wanted(bundle.index, wanted, there)
    mended, damage = _sorted_out(delivery, check)
    lacking = [blob.digest for blob in bundle.index.base if not vault.store.has(blob.digest, blob.size)]
    result = VerifyResult(
        subject=" ".join(str(place) for place in bundle.places),
        signer=bundle.signer.name if bundle.signer else None,
        unit="frame",
        checked=check.frames,
        size=check.size,
        seconds=time.monotonic() - begun,
        damage=damage,
        mended=mended,
        volumes=tuple(_volume_lines(delivery, check, {number for each in volumes.values() for number in each})),
        models=tuple(_model_lines(bundle, check, volumes, lacking)),
        warnings=(*delivery.warnings, *_of_base(bundle, lacking)),
    )
    if wish.request is not None:
        result = _with_request(vault, wish, bundle, there, result)
    return _judged(delivery, check, result)


def _only(vault: Vault, wish: Wish) -> Delivery:
    keys = vault.keys if vault.store.exists else None
    deliveries = gather(find_one(wish.paths), keys, None, allow_unsigned=wish.allow_unsigned)
    if len(deliveries) > 1:
        paths = [str(delivery.path) for delivery in deliveries]
        raise UsageProblem(
            f"these are different bundles: {', '.join(paths)}",
            hint="verify one at a time, with all the drives that it lies on",
            bundles=paths,
        )
    return deliveries[0]


def _held(vault: Vault, bundle: OpenBundle, *, thorough: bool) -> dict[Digest, Ranges]:
    """Say what this machine has of a bundle: in the vault, or received from other drives."""
    if not vault.store.exists:
        return {}
    held = Staging(staging_of(vault.partial, bundle.digest)).ranges(thorough=thorough)
    for blob in bundle.index.blobs:
        if vault.store.has(blob.digest, blob.size):
            held.setdefault(blob.digest, Ranges()).add(0, blob.size)
    return held


def _together(good: Mapping[Digest, Ranges], held: Mapping[Digest, Ranges]) -> dict[Digest, Ranges]:
    there = {blob: Ranges() for blob in good}
    for blob, ranges in there.items():
        for known in (good[blob], held.get(blob, ())):
            for offset, length in known:
                ranges.add(offset, length)
    return there


def _with_request(
    vault: Vault, wish: Wish, bundle: OpenBundle, there: Mapping[Digest, Ranges], result: VerifyResult
) -> VerifyResult:
    """Write down what is wanted; what is wrong with that hides nothing of what hours of reading found."""
    pieces = merged(
        Span(blob.digest, offset, length)
        for blob in bundle.index.blobs
        for offset, length in there[blob.digest].gaps(0, blob.size)
    )
    if wish.request is None or not pieces:
        return replace(result, warnings=(*result.warnings, "nothing is wanted: no request was written"))
    try:
        with in_words():
            return replace(result, request=_request(vault, wish.request.absolute(), wish.site, bundle, pieces))
    except ModelvaultError as error:
        error.result = result
        raise


def _request(
    vault: Vault, place: Path, site: str | None, bundle: OpenBundle, pieces: tuple[Span, ...]
) -> RequestWritten:
    """Sign the request as this site, and write it."""
    vault.create()
    signer, made = site_signer(vault, site)
    index = bundle.index
    request = Request(signer.name, bundle.digest, index.label, index.sequence, pieces)
    path = write_paper(place, request.file_name, encode_request(request), signer)
    size = sum(piece.length for piece in pieces)
    return RequestWritten(path, signer.name, len(pieces), size, signer.fingerprint, signer.info.spelled, made)


def _volume_lines(delivery: Delivery, check: BundleCheck, wanted: set[int]) -> Iterator[VolumeLine]:
    bundle = delivery.bundle
    damaged = {finding.volume for finding in check.findings if finding.bundle == bundle.digest}
    for number, members in enumerate(bundle.index.volumes, 1):
        state = "missing" if number in check.missing else "damaged" if number in damaged else "present"
        if state != "present" and delivery.patches and all(_sound(check, member) for member in members):
            state = "mended"
        yield VolumeLine(number, state, number in wanted, bundle.places_of(number))


def _sound(check: BundleCheck, member: Member) -> bool:
    """Whether the bytes of a member are whole on the drives that are here."""
    return not member.is_blob or check.good[member.digest].covers(member.offset, member.size)


def _model_lines(
    bundle: OpenBundle, check: BundleCheck, volumes: Mapping[Digest, tuple[int, ...]], lacking: Sequence[Digest]
) -> Iterator[ModelLine]:
    elsewhere = check.bad | {blob.digest for blob in bundle.index.base}
    for entry in bundle.index.models:
        needed = {blob.digest for blob in entry.blobs}
        numbers = sorted({number for blob in needed & volumes.keys() for number in volumes[blob]})
        if numbers:
            state = "wanted"
        elif not needed.isdisjoint(lacking):
            state = "incomplete"
        else:
            state = "present" if needed.isdisjoint(elsewhere) else "held"
        yield ModelLine(entry.name.text, state, tuple(numbers))


def _of_base(bundle: OpenBundle, lacking: Sequence[Digest]) -> Iterator[str]:
    """Say what a thin bundle leaves out that is not here either."""
    if lacking:
        named = ", ".join(map(bundle.index.called, lacking[:_MOST_FILES]))
        more = f" and {len(lacking) - _MOST_FILES} more" if len(lacking) > _MOST_FILES else ""
        yield f"the bundle leaves out what this vault does not have: {named}{more}; only a site that has it can import it"


def _judged(delivery: Delivery, check: BundleCheck, result: VerifyResult) -> VerifyResult:
    """Judge by what is wrong after all was read: what a patch mends is no damage, if nothing is wrong with the patch."""
    bundle = delivery.bundle
    models = [model.name for model in result.models if model.state != "present"]
    if result.damage:
        first = result.damage[0]
        raise DigestMismatch(
            f"{result.subject}: {len(result.damage)} damaged, the first is {first.where}: {first.problem}",
            hint=_ANSWER
            if result.request
            else "write the bundle again, to another drive if it happens again; or, where it arrived, have it mended: "
            "`modelvault verify PATH --request FILE` writes down what is wanted",
            result=result,
        )
    if not bundle.missing or (delivery.patches and not check.bad):
        return result
    if not bundle.finished:
        message = f"{result.subject} is not finished: {bundle.lack}"
        raise BundleUnfinished(message, hint=FINISH, result=result, models=models)
    raise VolumesWanted(
        f"{result.subject}: what is here is sound, but {'; '.join([bundle.lack, *_lacks_of_patches(delivery)])}",
        hint=_ANSWER if result.request else "verify all drives of a bundle together: modelvault verify PATH PATH",
        result=result,
        models=models,
        volumes=list(bundle.missing),
    )


def _lacks_of_patches(delivery: Delivery) -> Iterator[str]:
    for patch in delivery.patches:
        if patch.missing:
            yield f"of the patch, {patch.lack}"


def _runs(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Put frames that follow one another and have the same damage together: a drive that fails may have thousands."""
    runs: list[list[Finding]] = []
    for finding in findings:
        last = runs[-1][-1] if runs else None
        if last and last.frame and finding.frame == last.frame + 1 and _alike(last, finding):
            runs[-1].append(finding)
        else:
            runs.append([finding])
    return runs


def _alike(one: Finding, other: Finding) -> bool:
    return (one.bundle, one.volume, one.place, one.reason) == (other.bundle, other.volume, other.place, other.reason)


def _sorted_out(delivery: Delivery, check: BundleCheck) -> tuple[tuple[Damage, ...], tuple[Damage, ...]]:
    """Tell what patches mend from what is damaged: there is no patch, it is the patch itself, or a blob that lies there is not whole."""
    mended: list[Damage] = []
    damaged: list[Damage] = []
    for run in _runs(check.findings):
        blobs = {blob for finding in run for blob in finding.blobs}
        by_patch = delivery.patches and run[0].bundle == delivery.bundle.digest and check.bad.isdisjoint(blobs)
        (mended if by_patch else damaged).append(_damage(delivery.bundle, run))
    return tuple(mended), tuple(damaged)


def _damage(bundle: OpenBundle, run: Sequence[Finding]) -> Damage:
    """Say which files and models a run of findings concerns: those of which a piece lies there."""
    index, first, last = bundle.index, run[0], run[-1]
    where = name_volumes([first.volume]) + (" of the patch" if first.bundle != bundle.digest else "")
    if first.frame:
        where += f", frame {first.frame}" if first is last else f", frames {first.frame} to {last.frame}"
    where += f" in {first.place}" if first.place else ""
    blobs = tuple(dict.fromkeys(blob for finding in run for blob in finding.blobs))
    files = [index.called(blob) for blob in blobs[:_MOST_FILES]]
    more = f" and {len(blobs) - _MOST_FILES} more" if len(blobs) > _MOST_FILES else ""
    problem = f"{first.reason}; it holds {', '.join(files)}{more}" if files else first.reason
    return Damage(where, problem, tuple(map(str, index.needing(set(blobs)))))
