"""Every relative link of the documentation leads to a file that exists, and every anchor to a heading or a line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES = [*TOP, *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(([^()\s]+)\)")


def prose(page: Path) -> str:
    """The text of a page without its fenced blocks and code spans, in which brackets are not links."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "code", text)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, made as GitHub makes them, and explicit ones."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    result = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))
    for heading in re.findall(r"^#+ (.+?)\s*$", text, re.M):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        number = sum(re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", other) is not None for other in result)
        result.add(f"{anchor}-{number}" if anchor in result else anchor)
    return result


def links(page: Path) -> list[str]:
    return [link for link in LINK.findall(prose(page)) if not re.match(r"[a-z]+:", link)]


def problem(page: Path, link: str) -> str:
    """What is wrong with a link, or an empty text."""
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists():
        return "no such file"
    if anchor and target.suffix == ".md" and anchor not in anchors(target):
        return "no such heading"
    line = re.fullmatch(r"L(\d+)", anchor)
    if anchor and target.suffix == ".py" and not (line and int(line[1]) <= len(target.read_text().splitlines())):
        return "no such line"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_has_a_target(page: Path) -> None:
    problems = [(link, problem(page, link)) for link in links(page)]
    assert [f"{link}: {text}" for link, text in problems if text] == []


def test_the_index_lists_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    listed = {(index.parent / link.partition("#")[0]).resolve() for link in links(index)}
    assert {page for page in PAGES if page.is_relative_to(index.parent)} - {index} <= listed


def test_the_check_reports_broken_links(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One `two`, three\n\n# Again\n\n# Again\n")
    good = ["#one-two-three", "#again", "#again-1", "page.md#again", "page.md"]
    bad = ["#two", "#again-2", "other.md", "other.md#again"]
    assert [problem(page, link) for link in good] == [""] * len(good)
    assert all(problem(page, link) for link in bad)
