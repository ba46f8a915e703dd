"""The directive `error-messages`: every message of one class of errors, read from the source code of preftune."""

from __future__ import annotations

from collections.abc import Sequence

from docutils import nodes
from messages import SOURCE, messages
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class ErrorMessages(SphinxDirective):
    """A definition list: each message, and below it why it matters and what to do."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        for path in SOURCE.rglob("*.py"):
            self.env.note_dependency(str(path))
        entries = []
        for message in messages(self.arguments[0]):
            body = nodes.definition("", *sentences("Why", message.why), *sentences("What to do", message.fix))
            entries.append(nodes.definition_list_item("", nodes.term("", message.what), body))
        return [nodes.definition_list("", *entries, classes=["errors"])]


def sentences(label: str, texts: Sequence[str]) -> list[nodes.Node]:
    """Return one paragraph, or a list if the text depends on the cause."""
    if len(texts) < 2:
        return [nodes.paragraph("", f"{label}: ", *marked(text)) for text in texts]
    items = [nodes.list_item("", nodes.paragraph("", "", *marked(text))) for text in texts]
    return [nodes.paragraph("", f"{label}, depending on the cause:"), nodes.bullet_list("", *items)]


def marked(text: str) -> list[nodes.Node]:
    """Return a text whose parts in backticks are code."""
    parts = text.split("`")
    return [nodes.literal("", part) if i % 2 else nodes.Text(part) for i, part in enumerate(parts) if part]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("error-messages", ErrorMessages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
