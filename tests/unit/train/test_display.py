"""Messages are printed as they are: names of splits and text in brackets are not read as emoji or styles."""

from __future__ import annotations

import pytest

from preftune.train.display import Display


@pytest.mark.parametrize("text", ["ds:train: 3 rows", "a :smile: b", "data[0] and [bold]"])
def test_messages_are_printed_unchanged(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    Display().say(text)
    assert capsys.readouterr().err == text + "\n"


def test_the_kl_of_the_monitor_is_shown_with_its_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    Display().line(3, "eval", {"drift/kl": -0.0132, "drift/kl_se": 0.0214, "loss": 0.5})
    assert capsys.readouterr().err == "step 3 held out: loss 0.5000 KL -0.013 +- 0.021\n"
