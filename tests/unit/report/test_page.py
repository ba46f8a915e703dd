"""Pages are self-contained, and no text in them can become markup or end a script."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from preftune.report.figures.frontier import Policy, frontier
from preftune.report.page import Absent, Folded, Number, Page, Step, Table, code, script_of, write_page

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}<!--"


class Census(HTMLParser):
    """Counts the elements of a page, and collects the texts of its scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1


def write(path: Path, text: str) -> str:
    points = [Policy(text, "reference", 0.0, 0.1), Policy(text, "policy", 1.0, 0.5, samples=[(text, text, 0.3)])]
    card = frontier(points, [(0.0, 0.1, 1.0, 9.0), (1.0, 0.6, 0.5, 8.0)], 9, text, text, text)
    parts = [
        card, Absent("tilt", text, text, text), Table(text, [text], [[text]], text),
        Folded(text, text, [(text, text)], text),
    ]  # fmt: skip
    write_page(path, Page(text, text, text, [text], [Number(text, text)], [Step(text, text)], parts))
    return path.read_text()


def test_hostile_text_stays_text_in_every_place(tmp_path: Path) -> None:
    counts = []
    for text in ("words", EVIL):
        census = Census()
        census.feed(write(tmp_path / "page.html", text))
        counts.append(census.tags)
    assert counts[0] == counts[1]
    page = write(tmp_path / "page.html", EVIL)
    data = re.search(r"data-figures>(.*?)</script>", page, re.S)
    assert data
    assert json.loads(data[1])["frontier"]["points"][1]["name"] == EVIL


def test_a_page_names_no_address_but_that_of_the_svg_namespace(tmp_path: Path) -> None:
    page = write(tmp_path / "page.html", "words")
    assert set(re.findall(r"https?://[^\s\"'<>)]+", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"<(?:link|iframe|object|embed)|@import|url\((?!#)", page)


@pytest.mark.parametrize("figure", ["frontier", "gradient", "shift", "tokens"])
def test_a_page_has_only_the_scripts_of_its_figures(figure: str) -> None:
    script = script_of([figure])
    assert f"FIGURES.{figure} =" in script
    assert "FIGURES.pairs" not in script
    assert script.count("function stepControl") == (figure in ("gradient", "shift"))


def test_parts_between_backticks_are_code_and_escaped() -> None:
    assert code("run `a <b>` or <i>") == "run <code>a &lt;b&gt;</code> or &lt;i&gt;"
