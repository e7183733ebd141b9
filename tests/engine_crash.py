"""Kills an install at every step at which it touches the disk; run as a program by the conformance suite.

    python engine_crash.py ENGINE LINK DIRECTORY [update]

For each step, a fork installs into a fresh directory and kills itself with SIGKILL just before the step (an audit hook counts
them). Then the engine must see nothing or a whole model, or with ``update`` the old version or the new one; and a second run must
mend what is left.
"""

import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

from engine_cases import Blobs, Case, contents

from modelvault.engines import InstallRequest, LinkMode
from modelvault.fsio import hash_file

_EVENTS = {"os.rename", "os.link", "os.symlink", "os.mkdir", "os.remove", "os.rmdir", "os.utime", "os.truncate"}


def _dies_at(step: int, case: Case, request: InstallRequest) -> bool:
    child = os.fork()
    if child == 0:
        steps = 0

        def count(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal steps
            flags = arguments[2] if event == "open" else 0
            if event in _EVENTS or (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)):
                steps += 1
                if steps > step:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        case.engine.install(request)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, f"step {step}: exit code {os.WEXITSTATUS(status)}"
    return os.WIFSIGNALED(status)


def main() -> None:
    """Go through the steps until an install survives; print how many there were."""
    name, link, where = sys.argv[1], LinkMode(sys.argv[2]), Path(sys.argv[3])
    update = sys.argv[4:] == ["update"]
    blobs = Blobs(where / "vault")
    reference = Case(name, blobs, where / "reference")
    expected = reference.engine.install(_request(reference, link, update=update))
    step = 0
    while True:
        case = Case(name, blobs, where / f"step-{step}")
        old = case.engine.install(case.request(link=link)) if update else None
        died = _dies_at(step, case, replace(_request(case, link, update=update), previous=old))
        seen = case.visible()
        assert seen <= reference.visible(), f"step {step}: {seen}"
        if old:
            assert seen == reference.visible(), f"step {step}: the engine has neither version"
            _check_version(case, step)
        record = case.engine.install(replace(_request(case, link, update=update), previous=old))
        assert case.engine.verify(record) == [], f"step {step}"
        assert case.visible() == reference.visible(), f"step {step}"
        assert contents(case.directory).keys() == contents(reference.directory).keys(), (
            f"step {step}: something is left over"
        )
        if name != "ollama":  # where blobs are counted by reference, who placed them does not matter
            assert [file.link for file in record.files] == [file.link for file in expected.files], f"step {step}"
        case.engine.uninstall(record)
        assert contents(case.directory) == {}, f"step {step}: {contents(case.directory)}"
        assert blobs.intact(), f"step {step}: a blob of the vault changed"
        shutil.rmtree(case.directory)
        if not died:
            break
        step += 1
    print(step)  # noqa: T201 (the program's result)


def _request(case: Case, link: LinkMode, *, update: bool) -> InstallRequest:
    """Ask for the model, or for a newer version of the same name."""
    return case.request(case.newer() if update else None, link=link)


def _check_version(case: Case, step: int) -> None:
    """The weights that the engine would load are of one version or the other, byte for byte."""
    found = {hash_file(path).hex for path in case.served()}
    known = {max(stored.model.files, key=lambda file: file.size).digest.hex for stored in (case.stored(), case.newer())}
    assert len(found) == 1, f"step {step}: {found}"
    assert found < known, f"step {step}: {found}"


if __name__ == "__main__":
    main()
