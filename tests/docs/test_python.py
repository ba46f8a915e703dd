"""The Python snippets of the documentation run, in the order of their page, on a toy model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODEL = "Qwen/Qwen2.5-0.5B-Instruct"


def snippets(page: Path) -> list[str]:
    """The Python blocks of a page, each at its own line numbers."""
    text = page.read_text()
    fenced = re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S)
    return ["\n" * text.count("\n", 0, match.start(1)) + match[1] for match in fenced]


def runnable(page: Path) -> list[str]:
    """The snippets of a page from the first one that imports preftune on; before it they are parts of a file."""
    blocks = snippets(page)
    first = next((i for i, text in enumerate(blocks) if re.search(r"^import preftune$", text, re.M)), len(blocks))
    return blocks[first:]


PAGES = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if runnable(page)]


def test_the_readme_and_the_python_page_have_snippets() -> None:
    assert ROOT / "README.md" in PAGES
    assert len(snippets(ROOT / "docs" / "do" / "python.md")) > 8


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_snippets_of_a_page_run(
    page: Path,
    tmp_path: Path,
    model_folder: Path,
    pairs_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They run one after another in one namespace. The message that a comment of python.md quotes is printed."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in runnable(page):
        code = block.replace(MODEL, str(model_folder))
        if page.name != "python.md":
            code = code.replace("prefs.jsonl", str(pairs_file))
        exec(compile(code, str(page), "exec"), names)
    if page.name == "python.md":
        assert "unknown key 'beta'; did you mean loss.beta?" in capsys.readouterr().out
