"""Responses with ratings, one per row, are compared if they answer the same prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_jsonl

from preftune.data.read_groups import read_groups
from preftune.errors import DataError
from preftune.formats.parsers import Reading


def rated(prompt: str, response: str, helpfulness: float, verbosity: float = 2) -> dict[str, Any]:
    return {"prompt": prompt, "response": response, "helpfulness": helpfulness, "verbosity": verbosity}


ROWS = [
    rated("p", "bad", 1, 4),
    rated("p", "good", 4, 1),
    rated("q", "only", 3),
    rated("r", "a", 2),
    rated("r", "b", 2),
]


def test_adjacent_rows_with_the_same_prompt_are_compared(tmp_path: Path) -> None:
    path = str(write_jsonl(tmp_path / "a.jsonl", ROWS))
    [group], account = read_groups(path, Reading(aspect="helpfulness"))
    assert (group.prompt, group.responses, group.origin) == ("p", ("bad", "good"), f"{path}:1")
    assert [(j.better, j.worse) for j in group.judgements] == [(1, 0)]
    assert account.read == 5
    reasons = {reason: len(origins) for reason, origins in account.dropped.items()}
    alone = "no adjacent row has a different response to the same prompt; sort the file by prompt"
    assert reasons == {alone: 1, "tied scores": 1}
    [group], _ = read_groups(path, Reading(aspect="verbosity", where=("prompt == p",)))
    assert [(j.better, j.worse) for j in group.judgements] == [(0, 1)]


def test_without_an_aspect_the_setting_is_named(tmp_path: Path) -> None:
    path = str(write_jsonl(tmp_path / "a.jsonl", ROWS))
    with pytest.raises(DataError, match=r"data\.aspect=helpfulness"):
        read_groups(path)


def test_an_annotation_of_ultrafeedback_is_an_aspect(tmp_path: Path) -> None:
    def completion(text: str, overall: float, honesty: str) -> dict[str, Any]:
        return {"response": text, "overall_score": overall, "annotations": {"honesty": {"Rating": honesty}}}

    row = {"instruction": "p", "completions": [completion("x", 9, "1"), completion("y", 2, "5")]}
    path = str(write_jsonl(tmp_path / "a.jsonl", [row]))
    assert read_groups(path)[0][0].judgements[0].better == 0
    assert read_groups(path, Reading(aspect="honesty"))[0][0].judgements[0].better == 1
    with pytest.raises(DataError, match=r"no rating 'truth' \(data.aspect\)(.|\n)*honesty, overall_score"):
        read_groups(path, Reading(aspect="truth"))


def test_an_aspect_that_nothing_uses_is_an_error(tmp_path: Path) -> None:
    path = str(write_jsonl(tmp_path / "a.jsonl", [{"prompt": "p", "chosen": "x", "rejected": "y"}]))
    with pytest.raises(DataError, match="no judgements to choose from"):
        read_groups(path, Reading(aspect="helpful"))
