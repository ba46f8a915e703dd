"""Model cards: their header, what they say about the run, and what they must not show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from preftune.report import harness
from preftune.report.card import Subject, lineage, loss_text, shortened_path, write_card
from preftune.report.svg import line_chart, ticks


def make_run(folder: Path, model: str = "org/base", **config: Any) -> Path:
    """Write the files of a finished DPO run."""
    folder.mkdir(parents=True)
    settings = {"model": {"path": model}, "loss": {"name": "sigmoid", "beta": 0.1}, "lora": {"rank": 4}, **config}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    data = {"/home/ann/secret/prefs.jsonl": {"read": 9, "kept": 8, "format": "pairs"}}
    manifest = {"identity": {"data": "f00d"}, "steps": 2, "data": data, "versions": {"torch": "2.13"}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    lines = [
        {"step": 1, "split": "train", "loss": 0.6931, "pairs_per_s": 5.5},
        {"step": 2, "split": "train", "loss": 0.5, "pairs_per_s": 6.5},
        {"step": 2, "split": "eval", "loss": float("nan")},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def card_of(run: Path, folder: Path, **changes: Any) -> tuple[dict[str, Any], str]:
    """The header and the text of a run's card."""
    subject = Subject(**{"name": "mine", "kind": "adapter", "base": "org/base", "run": run, **changes})
    _, header, text = write_card(folder, subject).read_text().split("---\n", 2)
    return yaml.safe_load(header), text


def test_the_card_says_what_was_trained_on_what(tmp_path: Path) -> None:
    header, text = card_of(make_run(tmp_path / "run"), tmp_path / "out")
    assert header["library_name"] == "peft"
    assert header["base_model"] == "org/base"
    assert header["base_model_relation"] == "adapter"
    assert header["tags"] == ["preftune", "dpo", "lora"]
    for part in ("9 rows read, 8 used", "f00d", "`sigmoid` (beta 0.1)", "| `loss` | 0.6931 | 0.5 |", "torch 2.13"):
        assert part in text
    assert "vllm serve org/base --enable-lora --lora-modules mine=MODEL" in text
    assert "## Limits" in text
    assert "](figures/loss.svg)" in text
    ElementTree.fromstring((tmp_path / "out" / "figures" / "loss.svg").read_text())


def test_the_card_has_no_folders_of_the_machine_and_no_timings(tmp_path: Path) -> None:
    base = tmp_path / "models" / "my-base"
    base.mkdir(parents=True)
    run = make_run(tmp_path / "run", str(base), out=str(tmp_path / "run"), reward="/home/ann/r.py:f")
    header, text = card_of(run, tmp_path / "out", base=str(base))
    assert "base_model" not in header  # the Hub accepts only ids
    assert "my-base" in text
    assert "vllm serve BASE --enable-lora --lora-modules mine=MODEL" in text
    assert "`BASE` is the folder of the base model `my-base`, or the id of its repository." in text
    assert "prefs.jsonl" in text
    for private in (str(tmp_path), "/home/ann", "pairs_per_s"):
        assert private not in text


def test_the_base_model_is_traced_through_earlier_runs(tmp_path: Path) -> None:
    sft = make_run(tmp_path / "sft")
    (sft / "final").mkdir()
    assert lineage(str(sft / "final")) == [str(sft / "final"), "org/base"]
    header, text = card_of(make_run(tmp_path / "run"), tmp_path / "out", base=str(sft / "final"))
    assert header["base_model"] == "org/base"
    assert "sft/final, from org/base" in text


def test_the_license_is_that_of_the_base_model(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    assert card_of(make_run(tmp_path / "run"), tmp_path / "out", base=str(base))[0]["license"] == "apache-2.0"
    assert "license" not in card_of(tmp_path / "run", tmp_path / "out2")[0]


@pytest.mark.parametrize("damage", ["manifest.json", "metrics.jsonl", "config.yaml"])
def test_a_damaged_run_still_gets_a_card(tmp_path: Path, damage: str) -> None:
    run = make_run(tmp_path / "run")
    (run / damage).write_text("{")
    assert "# mine" in card_of(run, tmp_path / "out")[1]


def test_old_pictures_are_removed(tmp_path: Path) -> None:
    (tmp_path / "out" / "figures").mkdir(parents=True)
    (tmp_path / "out" / "figures" / "old.svg").write_text("x")
    card_of(make_run(tmp_path / "run"), tmp_path / "out")
    assert not (tmp_path / "out" / "figures" / "old.svg").exists()


def test_texts_of_losses_and_paths() -> None:
    assert loss_text([{"name": "a", "weight": 2}, {"name": "b"}]) == "`a` (weight 2) + `b`"
    assert shortened_path("/a/b/c.jsonl") == "c.jsonl"
    assert shortened_path("data/c.jsonl") == "data/c.jsonl"
    assert shortened_path("judge:http://host/v1,m") == "judge:http://host/v1,m"


RESULTS = {
    "results": {"arc": {"alias": "arc", "acc,none": 0.25, "acc_stderr,none": 0.01, "em,strict": 0.5}},
    "n-samples": {"arc": {"original": 9, "effective": 8}},
}


def test_results_of_the_harness_are_in_the_card(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert harness.rows(run) == []
    folder = run / "harness" / "model"
    folder.mkdir(parents=True)
    old = {"results": {"arc": {"acc,none": 0.1}}}
    (folder / "results_2026-01-01.json").write_text(json.dumps(old))
    (folder / "results_2026-01-02.json").write_text(json.dumps(RESULTS))
    (folder / "results_2026-01-03.json").write_text("{")
    assert harness.rows(run)[1:] == [
        ("arc", "acc", "0.2500", "0.0100", "8"),
        ("arc", "em (strict)", "0.5000", "", "8"),
    ]
    assert "| arc | acc | 0.2500 | 0.0100 | 8 |" in card_of(run, tmp_path / "out")[1]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (1, 1), (0, 0), (-3, 1e-9), (1e6, 1e6 + 1), (0.1, 0.7)])
def test_ticks_cover_the_range_with_round_steps(low: float, high: float) -> None:
    values = ticks(low, high)
    assert values[0] <= low + 1e-9
    assert values[-1] >= high - 1e-9
    assert 2 <= len(values) <= 8


def test_a_chart_without_points_is_valid_and_names_are_escaped() -> None:
    for series in ({}, {"a<b": [(1.0, float("nan"))]}, {"a<b": [(1.0, 2.0)]}, {"a<b": [(1.0, 2.0), (2.0, 2.0)]}):
        ElementTree.fromstring(line_chart("<title>", "y & z", series))
