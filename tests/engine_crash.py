"""Kills an install at every step at which it touches the disk; run as a program by the conformance suite.

    python engine_crash.py ENGINE LINK DIRECTORY

For each step, a fork installs into a fresh directory and kills itself with SIGKILL just before the step (an audit hook counts
them). Then the engine must see nothing or a whole model, and a second run must mend what is left.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

from engine_cases import Blobs, Case, contents

from modelvault.engines import LinkMode

_EVENTS = {"os.rename", "os.link", "os.symlink", "os.mkdir", "os.remove", "os.rmdir", "os.utime", "os.truncate"}


def _dies_at(step: int, case: Case, link: LinkMode) -> bool:
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

        request = case.request(link=link)
        sys.addaudithook(count)
        case.engine.install(request)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, f"step {step}: exit code {os.WEXITSTATUS(status)}"
    return os.WIFSIGNALED(status)


def main() -> None:
    """Go through the steps until an install survives; print how many there were."""
    name, link, where = sys.argv[1], LinkMode(sys.argv[2]), Path(sys.argv[3])
    blobs = Blobs(where / "vault")
    reference = Case(name, blobs, where / "reference")
    expected = reference.engine.install(reference.request(link=link))
    step = 0
    while True:
        case = Case(name, blobs, where / f"step-{step}")
        died = _dies_at(step, case, link)
        seen = case.visible()
        assert seen <= reference.visible(), f"step {step}: {seen}"
        record = case.engine.install(case.request(link=link))
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


if __name__ == "__main__":
    main()
