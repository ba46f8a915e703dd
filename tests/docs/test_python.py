"""The Python snippets of the documentation run, in order, on a toy model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2]
MODEL = "Qwen/Qwen2.5-0.5B-Instruct"


def snippets(page: str) -> list[str]:
    """The Python blocks of a page, each at its own line numbers."""
    text = (DOCS / page).read_text()
    found = re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S)
    return ["\n" * text.count("\n", 0, match.start(1)) + match[1] for match in found]


def test_every_snippet_of_the_python_page_runs(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = snippets("docs/python.md")
    assert len(blocks) > 8
    for block in blocks:
        exec(compile(block.replace(MODEL, str(model_folder)), "docs/python.md", "exec"), names)
    assert "unknown key 'beta'; did you mean loss.beta?" in capsys.readouterr().out


def test_the_snippet_of_the_readme_runs(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, pairs_file: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = [block for block in snippets("README.md") if "preftune" in block]
    assert blocks
    for block in blocks:
        exec(
            compile(block.replace(MODEL, str(model_folder)).replace("prefs.jsonl", str(pairs_file)), "README", "exec"),
            {},
        )
