"""Relative links that leave docs/ become links to the repository; the same pages work on GitHub and in the site."""

from __future__ import annotations

import os
import re

from sphinx.application import Sphinx

REPOSITORY = "https://github.com/preftune/preftune/blob/main/"
BLOCKS = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\[(?:[^\[\]]|\[[^\[\]]*\])*\]\()((?:\.\./)+[^()\s]+)(\))")


def outside(page: str, link: str) -> str:
    """Return the path from the root of the repository, or an empty text for a link that stays in docs/."""
    path = os.path.normpath(os.path.join("docs", os.path.dirname(page), link))
    return "" if path.startswith("docs/") else path


def rewrite(_app: Sphinx, page: str, source: list[str]) -> None:
    def one(match: re.Match[str]) -> str:
        path = outside(page, match[2])
        return f"{match[1]}{REPOSITORY}{path}{match[3]}" if path else match[0]

    parts = BLOCKS.split(source[0])
    source[0] = "".join(part if part.startswith("```") else LINK.sub(one, part) for part in parts)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", rewrite)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
