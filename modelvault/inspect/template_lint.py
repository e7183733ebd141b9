"""Chat templates, read for what no template needs: a way out of the template into the Python that renders it.

Engines render the templates of models with Jinja, and more than one did so without a sandbox (CVE-2024-34359, CVE-2026-5760). Here a
template is parsed and never rendered, by Jinja's own parser, so that what is looked at is what an engine would run. The findings are
advice: a template without any is not thereby harmless. The only module that imports Jinja.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence

from jinja2 import Environment, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

MAX_TEMPLATE = 128 << 10
"""Characters; the longest real ones have some 30,000."""

_LOADS: Mapping[type[nodes.Node], str] = {
    nodes.Include: "include",
    nodes.Import: "import",
    nodes.FromImport: "import",
    nodes.Extends: "extends",
}


class _Generation(Extension):
    """``{% generation %}``, with which transformers marks what the model said."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's way to set it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Take what is between the marks."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


_ENVIRONMENT = Environment(  # noqa: S701 (nothing is rendered)
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=["jinja2.ext.loopcontrols", "jinja2.ext.do", _Generation],
)


def lint_template(template: str) -> tuple[str, ...]:
    """Say what a template has that none needs, each thing once. Never raises."""
    if len(template) > MAX_TEMPLATE:
        return (f"it has {len(template):,} characters, too many to be looked at",)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in its texts, which are its author's business
            tree = _ENVIRONMENT.parse(template)
        return tuple(dict.fromkeys(finding for node in _all(tree) for finding in _findings(node)))
    except TemplateError as error:
        return (f"it cannot be parsed: {str(error)[:120]}",)
    except (RecursionError, ValueError, OverflowError) as error:
        return (f"it cannot be parsed: {type(error).__name__}",)


def _all(tree: nodes.Node) -> Iterator[nodes.Node]:
    """Give every node, without recursion: how deep a template nests is for a stranger to say."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += reversed(list(node.iter_child_nodes()))


def _findings(node: nodes.Node) -> Iterator[str]:
    if type(node) in _LOADS:
        yield f"the tag {_LOADS[type(node)]}"
    elif isinstance(node, nodes.Filter) and node.name == "attr":
        yield "the filter attr"
    elif isinstance(node, nodes.Getattr) and node.attr.startswith("_"):
        yield f"the attribute {node.attr[:60]}"
    elif isinstance(node, nodes.Name) and node.name.startswith("__"):
        yield f"the name {node.name[:60]}"
    elif isinstance(node, nodes.Getitem):
        key = _text(node.arg)
        if key is not None and key.startswith("_"):
            yield f"the key {key[:60]!r}"
    text = _text(node)
    if text is not None and "__" in text:
        yield f"the text {text[:60]!r}"


def _text(node: nodes.Node) -> str | None:
    """Put a constant text together, as far as its parts stand side by side; nothing is computed."""
    if isinstance(node, nodes.Const):
        return node.value if isinstance(node.value, str) else None
    parts: Sequence[nodes.Node]
    if isinstance(node, nodes.Concat):
        parts = node.nodes
    elif isinstance(node, nodes.Add):
        parts = (node.left, node.right)
    else:
        return None
    texts = [_text(part) for part in parts]
    return "".join(text for text in texts if text is not None) if None not in texts else None
