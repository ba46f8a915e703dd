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


@pytest.mark.parametrize("index", sorted((ROOT / "docs").rglob("index.md")), ids=lambda page: page.parent.name)
def test_an_index_lists_every_page_of_its_folder(index: Path) -> None:
    """In its text and in its toctree, in the same order."""
    tree = re.findall(r"^```\{toctree\}\n:hidden:\n\n(.*?)^```$", index.read_text(), re.M | re.S)
    entries = [index.parent / f"{entry}.md" for entry in "".join(tree).split()]
    pages = {page for page in index.parent.glob("*.md") if page != index}
    if index.parent.name == "docs":
        pages |= set(index.parent.glob("*/index.md"))
    assert set(entries) == pages
    listed = [(index.parent / link.partition("#")[0]).resolve() for link in links(index)]
    first = [page for page in dict.fromkeys(listed) if page in pages]
    assert first == entries if index.parent.name != "docs" else set(first) == pages


@pytest.mark.parametrize("folder", ["src", "examples", "configs", "scripts", "benchmarks", ".github"])
def test_pages_that_code_and_messages_name_exist(folder: str) -> None:
    named = {
        (path.name, page)
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in (".py", ".yaml", ".yml", ".html", ".js")
        for page in re.findall(r"(?:docs|\{DOCS\})/([\w./-]+\.md)", path.read_text())
    }
    assert [(name, page) for name, page in sorted(named) if not (ROOT / "docs" / page).is_file()] == []
    assert named or folder in ("benchmarks", "scripts")


def test_the_check_reports_broken_links(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One `two`, three\n\n# Again\n\n# Again\n")
    good = ["#one-two-three", "#again", "#again-1", "page.md#again", "page.md"]
    bad = ["#two", "#again-2", "other.md", "other.md#again"]
    assert [problem(page, link) for link in good] == [""] * len(good)
    assert all(problem(page, link) for link in bad)
