"""What a model card says of the license: the lines at the head of ``README.md`` that the Hub goes by, too.

They are YAML; of that only plain ``key: value`` lines are read, and whatever else is there counts as nothing said.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from modelvault.artifact import FileReport, check_license, check_link
from modelvault.errors import UsageProblem
from modelvault.inspect.documents import read_all
from modelvault.inspect.source import open_file

CARD = "README.md"
_GGUF_LICENSE, _GGUF_LINK = "general.license", "general.license.link"
_HEAD = 64 << 10  # bytes; lists of languages and benchmarks make some long
_FRONT = re.compile(r"---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_LINE = re.compile(
    r"""^(license|license_name|license_link):[ \t]*(['"]?)([^'"#\[\]{}\r\n]+?)\2[ \t]*\r?$""", re.MULTILINE
)


def stated_license(files: Mapping[str, Path], reports: Mapping[str, FileReport]) -> tuple[str | None, str | None]:
    """Read the name of a model's license and the address of its text from its card, else from a GGUF file's metadata.

    Each is ``None`` where nobody states it. Raises ``OSError``.
    """
    said = _said(files[CARD]) if CARD in files else {}
    if said.get("license") == "other":
        said["license"] = said.get("license_name", "other")
    metadata = next((report.metadata for report in reports.values() if _GGUF_LICENSE in report.metadata), {})
    name = _checked(check_license, said.get("license")) or _checked(check_license, metadata.get(_GGUF_LICENSE))
    link = _checked(check_link, said.get("license_link")) or _checked(check_link, metadata.get(_GGUF_LINK))
    return name, link


def _said(card: Path) -> dict[str, str]:
    with open_file(card, CARD) as (file, size):
        text = read_all(file.read, min(size, _HEAD)).decode("utf-8", "replace")
    front = _FRONT.match(text)
    return {key: value.strip() for key, _, value in _LINE.findall(front[1])} if front else {}


def _checked(check: Callable[[str], str], text: object) -> str | None:
    try:
        return check(text) if isinstance(text, str) else None
    except UsageProblem:  # a garbled one counts as none: anybody may write a card
        return None
