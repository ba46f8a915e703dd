"""The directive `error-messages`: every message of one class of errors, read from the source code of preftune."""

from __future__ import annotations

from docutils import nodes
from messages import SOURCE, messages
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class ErrorMessages(SphinxDirective):
    """A definition list: each message, and below it why it matters and what to do."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        entries = []
        for path in SOURCE.rglob("*.py"):
            self.env.note_dependency(str(path))
        for message in messages(self.arguments[0]):
            body = nodes.definition()
            for label, parts in (("Why: ", message.why), ("What to do: ", message.fix)):
                if parts:
                    body += nodes.paragraph("", label + " Or: ".join(parts))
            entries.append(nodes.definition_list_item("", nodes.term("", message.what), body))
        return [nodes.definition_list("", *entries, classes=["errors"])]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("error-messages", ErrorMessages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
