"""The interactive figures of the report, on pages that ask for them with `<figure data-figure="NAME"></figure>`.

They show the recorded demo, docs/_static/demo.html, and are drawn by the same files as in a report.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from preftune.report.page import asset, script_of

DEMO = Path(__file__).parents[1] / "_static" / "demo.html"
PLACE = re.compile(r'<figure data-figure="(\w+)">\s*</figure>')
DARK = re.compile(r"@media \(prefers-color-scheme:dark\)\{:root\{(.*?)\}\}", re.S)
LIGHT = re.compile(r":root\{(.*?)\}", re.S)


def cards() -> tuple[dict[str, str], dict[str, Any]]:
    """Return the HTML of each figure of the demo's report by its name, and the data of all figures."""
    text = DEMO.read_text(encoding="utf-8")
    sections = re.findall(r'<section class="fig" id="(\w+)".*?</section>', text, re.S)
    matches = {name: re.search(rf'<section class="fig" id="{name}".*?</section>', text, re.S) for name in sections}
    data = re.search(r'<script type="application/json" data-figures>(.*?)</script>', text, re.S)
    if data is None:
        raise ExtensionError(f"{DEMO} has no figures: write it again with scripts/demo_pictures.py")
    return {name: match[0] for name, match in matches.items() if match}, json.loads(data[1])


def style() -> str:
    """Return the style of the figures, with the colours of the theme that the reader chose."""
    tokens = asset("tokens.css")
    dark, light = DARK.search(tokens), LIGHT.search(tokens)
    assert dark
    assert light
    themes = f"body[data-theme=light]{{{light[1]}}}body[data-theme=dark]{{{dark[1]}}}"
    return f"{tokens}{themes}{asset('figures.css')}"


def insert(_app: Sphinx, pagename: str, _template: str, context: dict[str, Any], _doctree: object) -> None:
    """Replace the places of figures on a page, and add their data and script to its end."""
    body = context.get("body", "")
    names = PLACE.findall(body)
    if not names:
        return
    html, data = cards()
    missing = [name for name in names if name not in html]
    if missing:
        raise ExtensionError(f"{pagename}: {DEMO.name} has no figure {', '.join(missing)}; it has {', '.join(html)}")
    figures = {name: re.search(r'data-figure="(\w+)" data-key="(\w+)"', html[name]) for name in names}
    keys = {match[2] for match in figures.values() if match}
    kinds = [match[1] for match in figures.values() if match]
    text = json.dumps({key: data[key] for key in sorted(keys)}, ensure_ascii=False, separators=(",", ":"))
    body = PLACE.sub(lambda match: html[match[1]], body)
    context["body"] = (
        f"<style>{style()}</style>{body}"
        f'<script type="application/json" data-figures>{text.replace("<", chr(92) + "u003c")}</script>'
        f"<script>\n{script_of(kinds)}</script>"
    )


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", insert)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
