"""preftune data noise: listed judgements, margins of held-out folds, resuming, invalid settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import write_jsonl
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from preftune.config.schema import BatchConfig, DataConfig, ModelConfig, NoiseConfig, OptimConfig, TrainConfig
from preftune.data.read_groups import read_groups
from preftune.errors import ConfigError, DataError, ModelError, RunError
from preftune.train.display import Display
from preftune.workflows import label_noise

QUIET = Display(quiet=True)
GOOD = [" the cat sat", " the moon", " a house in the wood"]
BAD = [" no", " not known", " no. not known"]
WHO = ["cat", "dog", "house", "hill", "river", "moon", "wood", "mat", "sky", "day", "answer", "time"]
FLIPPED = {4, 13, 27, 30}


def rows() -> list[dict[str, Any]]:
    """36 judgements, three per prompt; those in FLIPPED are flipped."""
    judgements: list[dict[str, Any]] = []
    for who in WHO:
        for good, bad in zip(GOOD, BAD, strict=True):
            sides = (bad, good) if len(judgements) in FLIPPED else (good, bad)
            judgements.append({"prompt": f"look at the {who}", "chosen": sides[0], "rejected": sides[1]})
    return judgements


def config(tmp_path: Path, model: Path, **changes: Any) -> NoiseConfig:
    data = {"train": str(write_jsonl(tmp_path / "prefs.jsonl", rows())), **changes.pop("data", {})}
    return NoiseConfig(
        model=ModelConfig(path=str(model), dtype="fp32"),
        data=DataConfig(**data),
        optim=OptimConfig(lr=3e-3),
        batch=BatchConfig(pairs=9),
        train=TrainConfig(epochs=6 if changes.get("ranker") == "reward" else 3),
        out=str(tmp_path / "noise"),
        **{"folds": 3, **changes},
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("ranker", ["dpo", "reward"])
def test_exactly_the_flipped_judgements_are_listed(tmp_path: Path, model_folder: Path, ranker: Any) -> None:
    """With their line numbers, in order of decreasing confidence."""
    settings = config(tmp_path, model_folder, ranker=ranker, confidence=0.51)
    listed = lines(label_noise.run(settings, display=QUIET))
    assert {row["origin"] for row in listed} == {f"{settings.data.train}:{place + 1}" for place in FLIPPED}
    assert [row["confidence"] for row in listed] == sorted((row["confidence"] for row in listed), reverse=True)
    assert all(row["margin"] < 0 and row["confidence"] >= 0.51 for row in listed)
    assert listed[0]["chosen"] in BAD
    summary = json.loads((tmp_path / "noise" / "summary.json").read_text())
    assert (summary["judgements"], summary["backwards"], summary["listed"]) == (36, 4, 4)
    assert summary["accuracy"] == pytest.approx(32 / 36)


@pytest.mark.parametrize("ranker", ["dpo", "reward"])
def test_margins_come_from_a_model_not_trained_on_the_prompt(tmp_path: Path, model_folder: Path, ranker: Any) -> None:
    """The expected margins are computed with transformers from the fold's model."""
    settings = config(tmp_path, model_folder, ranker=ranker)
    label_noise.run(settings, display=QUIET)
    folder = tmp_path / "noise" / "fold-2"
    trained_on = {group.prompt for group in read_groups(str(folder / "train.json"))[0]}
    held_out = [row for row in rows() if row["prompt"] not in trained_on]
    assert len(trained_on) == 8
    saved = json.loads((folder / "margins.json").read_text())
    assert len(saved) == len(held_out) == 12
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    kind = AutoModelForSequenceClassification if ranker == "reward" else AutoModelForCausalLM
    policy = kind.from_pretrained(folder / "run" / "final").eval()
    reference = AutoModelForCausalLM.from_pretrained(model_folder)

    def reward(prompt: str, response: str) -> float:
        ids = torch.tensor([[*tokenizer(prompt + response)["input_ids"], 2]])
        begin = len(tokenizer(prompt)["input_ids"])
        with torch.no_grad():
            if ranker == "reward":
                return float(policy(input_ids=ids).logits)
            log_policy, log_reference = (
                m(input_ids=ids).logits[0, begin - 1 : -1].log_softmax(-1) for m in (policy, reference)
            )
        return float((log_policy - log_reference).gather(1, ids[0, begin:, None]).sum())

    for row, margin in zip(held_out, [row["margin"] for row in saved], strict=True):
        expected = reward(row["prompt"], row["chosen"]) - reward(row["prompt"], row["rejected"])
        assert margin == pytest.approx(expected, abs=2e-4)


def test_finished_folds_are_not_trained_again(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed command writes the same list; another confidence lists again without training."""
    settings = config(tmp_path, model_folder, confidence=0.6)
    whole = label_noise.run(settings, display=QUIET).read_text()
    out = tmp_path / "noise"
    (out / "noise.jsonl").unlink()
    (out / "fold-3" / "margins.json").unlink()
    original, calls = label_noise.margins_of, []
    monkeypatch.setattr(label_noise, "margins_of", lambda *args: calls.append(args[1].parent.parent) or original(*args))
    assert label_noise.run(settings, display=QUIET).read_text() == whole
    assert calls == [out / "fold-3"]
    stricter = lines(label_noise.run(settings.model_copy(update={"confidence": 0.999}), display=QUIET))
    assert stricter == [row for row in map(json.loads, whole.splitlines()) if row["confidence"] >= 0.999]
    assert calls == [out / "fold-3"]
    with pytest.raises(RunError):
        label_noise.run(config(tmp_path, model_folder, folds=4), display=QUIET)


def test_a_soft_label_below_one_half_prefers_the_other_response(tmp_path: Path, model_folder: Path) -> None:
    """With `probability` 0, a flipped judgement is a right label."""
    settings = config(tmp_path, model_folder, confidence=0.6)
    soft = [{**row, "probability": float(place not in FLIPPED)} for place, row in enumerate(rows())]
    write_jsonl(tmp_path / "prefs.jsonl", soft)
    assert lines(label_noise.run(settings, display=QUIET)) == []
    assert json.loads((tmp_path / "noise" / "summary.json").read_text())["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": {"eval": 0.1}}, ConfigError, "every fold is held out in turn"),
        ({"folds": 13}, DataError, "cannot split 12 distinct prompts into 13 folds"),
        ({"loss": {"name": "kto"}}, ConfigError, "does not define an implicit reward"),
        ({"loss": {"name": "simpo"}}, ConfigError, "does not define an implicit reward"),  # reference-free
        ({"reference": {"kind": "adapter-off"}}, ConfigError, "no adapter without lora"),
        ({"reference": {"path": "missing/model"}}, ModelError, "missing/model"),
    ],
)
def test_invalid_settings_are_refused(
    tmp_path: Path, model_folder: Path, changes: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        label_noise.run(config(tmp_path, model_folder, **changes), display=QUIET)
    assert not (tmp_path / "noise").exists()


def test_a_dry_run_writes_nothing(tmp_path: Path, model_folder: Path) -> None:
    label_noise.run(config(tmp_path, model_folder), display=QUIET, dry_run=True)
    assert not (tmp_path / "noise").exists()
