"""docs/lookup/exit-codes.md explains every exit code, and the messages that it quotes exist."""

from __future__ import annotations

import re
from pathlib import Path

from preftune import errors, stop

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "lookup" / "exit-codes.md").read_text()
CODES = {value.exit_code for value in vars(errors).values() if isinstance(value, type) and hasattr(value, "exit_code")}


def test_every_code_has_a_section_and_a_row() -> None:
    codes = {str(code) for code in CODES | {stop.STOPPED, stop.KILLED}}
    assert set(re.findall(r"^## (\d+):", PAGE, re.M)) == codes
    assert set(re.findall(r"^\| \[(\d+)\]", PAGE, re.M)) == codes


def test_the_quoted_messages_exist() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    quoted = [
        part.strip()
        for text in re.findall(r"^- ((?:`[^`]+`(?:, | or )?)+):", PAGE, re.M)
        for part in text.split("`")[1::2]
    ]
    assert len(quoted) > 5
    words = [piece for text in quoted for piece in re.split(r" ?\.\.\. ?", re.sub(r": \d+$", "", text)) if piece]
    assert [piece for piece in words if piece not in source] == []
