"""preftune eval length-controlled: figures from AlpacaEval's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.measures.test_length_controlled import leaderboard

from preftune.cli.main import run as cli
from preftune.errors import DataError
from preftune.measures.length_controlled import length_controlled
from preftune.train.display import Display
from preftune.workflows import length_controlled as workflow

QUIET = Display(quiet=True)


def annotation(preference: float | None, longer: int, **fields: Any) -> dict[str, Any]:
    """`longer` is the length of the baseline's response minus that of the model's, in characters."""
    texts = {"output_1": "x" * (5000 + longer), "output_2": "y" * 5000}
    return {**texts, "generator_1": "baseline", "generator_2": "mine", "preference": preference, **fields}


def files(folder: Path, n: int = 60) -> tuple[Path, Path]:
    preference, longer, _, gamed = leaderboard(0, n)
    rows = [annotation(None if np.isnan(p) else 1 + p, int(d)) for p, d in zip(preference, longer, strict=True)]
    (folder / "annotations.json").write_text(json.dumps(rows))
    lines = ["index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline,model"]
    for i in range(2 * n):
        numbers = (float(column[i]) for column in (gamed.preference, gamed.length, gamed.difficulty))
        lines.append(f"{i % n},{','.join(map(repr, numbers))},False,concise")
    (folder / "gamed.csv").write_text("\n".join(lines))
    return folder / "annotations.json", folder / "gamed.csv"


def test_the_command_writes_the_figures_of_the_formula(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations, gamed = files(tmp_path)
    expected = length_controlled(*leaderboard(0, 60))
    out = tmp_path / "lc.json"
    assert cli(["eval", "length-controlled", str(annotations), "--gamed", str(gamed), "--out", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert figures["length_controlled_winrate"] == pytest.approx(100 * expected.rate, abs=1e-5)
    assert figures["lc_standard_error"] == pytest.approx(100 * expected.standard_error, abs=1e-5)
    assert (figures["model"], figures["baseline"], figures["prompts"], figures["unread"]) == ("mine", "baseline", 60, 1)
    assert f"length-controlled win rate {100 * expected.rate:.2f}" in capsys.readouterr().err


def test_preferences_are_read_as_in_alpaca_eval() -> None:
    """1: the baseline wins, 2: the model wins, 0 and 1.5 are ties, null is unread."""
    assert [workflow.preference_of(p, "") for p in (1, 2, 1.5, 0, 1.25)] == [0, 1, 0.5, 0.5, 0.25]
    assert np.isnan(workflow.preference_of(None, ""))
    for wrong in (0.5, 3, True, "1"):
        with pytest.raises(DataError, match="must be from 1"):
            workflow.preference_of(wrong, "here")


def test_the_baseline_has_a_win_rate_of_one_half(tmp_path: Path) -> None:
    _, gamed = files(tmp_path)
    same = [annotation(1.5, 0, generator_2="baseline") for _ in range(60)]
    (tmp_path / "same.json").write_text(json.dumps(same))
    assert workflow.run(tmp_path / "same.json", gamed, tmp_path / "o.json", QUIET).rate == 0.5
    assert json.loads((tmp_path / "o.json").read_text())["strength"] is None


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([], "not a list of annotations"),
        ([annotation(1, 0), annotation(1, 0, generator_2="other")], "generator_2 has 2 values: mine, other"),
        (
            [annotation(1, 0), {"preference": 1}],
            "annotation 2: output_1, output_2, generator_1 and generator_2 must be texts",
        ),
        ([annotation(1, 0), annotation(7, 0)], "annotation 2: preference is 7"),
        ([annotation(None, 0)], "no annotation has a preference"),
        ([annotation(1, 0)] * 61, "1 of 61 annotations have no instruction difficulty, the first is number 60"),
    ],
)
def test_annotations_that_cannot_be_used_are_refused(tmp_path: Path, rows: list[Any], match: str) -> None:
    _, gamed = files(tmp_path)
    (tmp_path / "bad.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match=match):
        workflow.run(tmp_path / "bad.json", gamed, tmp_path / "o.json", QUIET)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("index,preference,instruction_difficulty\n0,1,1\n", "no column std_delta_len"),
        ("index,preference,std_delta_len,instruction_difficulty\n0,x,1,1\n", r"gamed.csv:2: a column does not contain"),
        ("index,preference,std_delta_len,instruction_difficulty\n", "no rows"),
    ],
)
def test_gamed_rows_that_cannot_be_used_are_refused(tmp_path: Path, text: str, match: str) -> None:
    annotations, gamed = files(tmp_path)
    gamed.write_text(text)
    with pytest.raises(DataError, match=match):
        workflow.run(annotations, gamed, tmp_path / "o.json", QUIET)
    with pytest.raises(DataError, match="cannot be read"):
        workflow.run(annotations, tmp_path / "absent.csv", tmp_path / "o.json", QUIET)
