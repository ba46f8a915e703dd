"""Messages are printed as they are: names of splits and text in brackets are not read as emoji or styles."""

from __future__ import annotations

import pytest

from preftune.train.display import Display


@pytest.mark.parametrize("text", ["ds:train: 3 rows", "a :smile: b", "data[0] and [bold]"])
def test_messages_are_printed_unchanged(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    Display().say(text)
    assert capsys.readouterr().err == text + "\n"
