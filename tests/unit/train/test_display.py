"""Messages are printed as they are: names of splits and text in brackets are not read as emoji or styles."""

from __future__ import annotations

import re

import pytest

from preftune.train.display import Display, duration


@pytest.mark.parametrize("text", ["ds:train: 3 rows", "a :smile: b", "data[0] and [bold]"])
def test_messages_are_printed_unchanged(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    Display().say(text)
    assert capsys.readouterr().err == text + "\n"


def test_the_kl_of_the_monitor_is_shown_with_its_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    Display().line(3, "eval", {"drift/kl": -0.0132, "drift/kl_se": 0.0214, "loss": 0.5})
    assert capsys.readouterr().err == "step 3 held out: loss 0.5000 KL -0.013 +- 0.021\n"


def test_a_plain_line_of_training_has_what_a_reader_looks_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, 100.0, *[160.0] * 9])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    display = Display()
    display.stage("train", 100)
    display.line(0, "eval", {"drift/kl": 0.5, "loss": 0.69})
    display.line(20, "train", {"loss": 0.61, "rewards/margins": 0.4, "rewards/accuracies": 0.75, "pairs_per_s": 12.0})
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("train 20/100 loss 0.6100 margin 0.400 accuracy 0.75 pairs/s 12.0 KL 0.50")
    assert re.search(r" \d+\.\d GB 4 min left$", last)


@pytest.mark.parametrize(("seconds", "text"), [(40, "40 s"), (600, "10 min"), (11100, "3 h 5 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
