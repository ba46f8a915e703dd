"""Self-contained HTML pages, which load nothing from the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from preftune.files import write_text

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .3rem .8rem; text-align: left; }
th { border-bottom: 2px solid #888; } td { border-bottom: 1px solid #ddd; vertical-align: top; }
pre { background: #f4f4f4; padding: .8rem; overflow-x: auto; }
.shaded { white-space: pre-wrap; overflow-wrap: anywhere; }
.up { background: rgb(0 114 178 / var(--a)); } .down { background: rgb(213 94 0 / var(--a)); }
@media (prefers-color-scheme: dark) {
  body { background: #1b1b1b; color: #ddd; } pre { background: #2a2a2a; } td { border-color: #444; }
}
</style>
{% if plotly_js %}<script>{{ plotly_js }}</script>{% endif %}</head><body>
<h1>{{ title }}</h1>
{% for section in sections %}
<h2>{{ section.title }}</h2>
{% if section.text %}<p>{{ section.text }}</p>{% endif %}
{% if section.table %}<table><tr>{% for cell in section.table[0] %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in section.table[1:] %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</table>
{% endif %}
{% for figure in section.figures %}{{ figure.to_html(full_html=False, include_plotlyjs=False) | safe }}{% endfor %}
{% for label, pieces in section.shaded %}<h3>{{ label }}</h3>
<p class="shaded">{% for p in pieces %}<span class="{{ 'up' if p.value > 0 else 'down' }}"
style="--a: {{ p.strength }}" title="{{ p.title }}">{{ p.text }}</span>{% endfor %}</p>
{% endfor %}
{% if section.code %}<pre>{{ section.code }}</pre>{% endif %}
{% endfor %}
</body></html>
"""


@dataclass(frozen=True, slots=True)
class Piece:
    """A shaded piece of text: blue if `value` is above 0, otherwise orange, with the opacity `strength` (0 to 1)."""

    text: str
    value: float
    strength: str
    title: str


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with an optional paragraph, table (first row: headers), figures, block of code and shaded texts."""

    title: str
    text: str = ""
    table: Sequence[Sequence[str]] = ()
    figures: Sequence[Any] = ()
    code: str = ""
    shaded: Sequence[tuple[str, Sequence[Piece]]] = ()


def write_page(path: Path, title: str, sections: Sequence[Section]) -> None:
    """Write the page. All texts are escaped, so a model's output cannot become HTML. Plotly escapes its own JSON."""
    script = ""
    if any(section.figures for section in sections):
        from plotly.offline import get_plotlyjs

        script = Markup(get_plotlyjs())
    template = jinja2.Environment(autoescape=True).from_string(TEMPLATE)
    write_text(path, template.generate(title=title, sections=sections, plotly_js=script))
