"""Self-contained HTML pages: a verdict, what to do next, figures, tables and folded texts. They load nothing.

The files in `assets` are written into the page as they are; a page has only the scripts of the figures that it shows.
All texts are escaped, so a model's output cannot become HTML.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import jinja2
from markupsafe import Markup, escape

from preftune.files import write_text

#: Figures whose drawing uses functions of another figure's file.
NEEDS = {"gradient": ("landscape",), "bradley_terry": ("landscape",), "shift": ("landscape",)}


@dataclass(frozen=True, slots=True)
class Card:
    """A figure with its texts.

    figure      the file in assets/figures that draws it; `key` is where the page keeps its data, which cards may share
    sentence    what it shows, with numbers
    source      which numbers are measured and which are computed
    """

    kind: ClassVar[str] = "card"
    figure: str
    title: str
    sentence: str
    read: str
    healthy: str
    warns: str
    source: str
    data: Mapping[str, Any]
    key: str
    name: str = ""
    wide: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.figure)


@dataclass(frozen=True, slots=True)
class Absent:
    """A figure that the page cannot show: why, and the command that measures what it needs."""

    kind: ClassVar[str] = "absent"
    name: str
    title: str
    reason: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table with a heading, and a paragraph above it."""

    kind: ClassVar[str] = "table"
    title: str
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    text: str = ""


@dataclass(frozen=True, slots=True)
class Folded:
    """Text that is folded away: paragraphs with labels, and a block of code."""

    kind: ClassVar[str] = "folded"
    title: str
    text: str = ""
    texts: Sequence[tuple[str, str]] = ()
    code: str = ""
    open: bool = False


@dataclass(frozen=True, slots=True)
class Number:
    """A number that carries the verdict, and what it is."""

    value: str
    text: str


@dataclass(frozen=True, slots=True)
class Step:
    """A command to run next, and why."""

    command: str
    why: str


Part = Card | Absent | Table | Folded


@dataclass(frozen=True, slots=True)
class Page:
    """A page, from top to bottom."""

    title: str
    verdict: str
    about: str = ""
    warnings: Sequence[str] = ()
    numbers: Sequence[Number] = ()
    steps: Sequence[Step] = ()
    parts: Sequence[Part] = field(default_factory=tuple)


@cache
def asset(name: str) -> str:
    """Return a file of `assets`."""
    return files("preftune.report").joinpath("assets", name).read_text(encoding="utf-8")


def script_of(figures: Iterable[str]) -> str:
    """Return the script that draws these kinds of figures."""
    names = list(dict.fromkeys(name for figure in figures for name in (*NEEDS.get(figure, ()), figure)))
    parts = ["math.js", "core.js", *(f"figures/{name}.js" for name in names), "start.js"]
    return "(() => {\n" + "\n".join(asset(name) for name in parts) + "})();\n"


def style() -> str:
    """Return the style sheet of a page."""
    return "".join(asset(name) for name in ("tokens.css", "page.css", "figures.css"))


def card_html(card: Card) -> str:
    """Return the HTML of a card, in which the script draws."""
    return Markup(_template("card.html").render(card=card).strip())


def data_json(cards: Iterable[Card]) -> str:
    """Return the data of cards as JSON that cannot end a script element."""
    data = {"version": 1, **{card.key: card.data for card in cards}}
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def write_page(path: Path, page: Page) -> None:
    """Write the page. Raises StorageError."""
    cards = [part for part in page.parts if isinstance(part, Card)]
    scripted = cards or page.steps
    values = {
        "page": page,
        "css": Markup(style()),
        "card": card_html,
        "data": data_json(cards) if scripted else "",
        "script": Markup(script_of(card.figure for card in cards)) if scripted else "",
        "version": version("preftune"),
    }
    write_text(path, _template("page.html").generate(**values))


def code(text: str) -> Markup:
    """Return a text as HTML, with the parts between backticks as code."""
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 else escape(part)
        for index, part in enumerate(text.split("`"))
    )


@cache
def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["code"] = code
    return environment.from_string(asset(name))
