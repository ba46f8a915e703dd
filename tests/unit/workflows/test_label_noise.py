"""The noise finder: what it lists, that no fold has seen what it ranks, that a stopped command goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import write_jsonl
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from preftune.config.schema import BatchConfig, DataConfig, ModelConfig, NoiseConfig, OptimConfig, TrainConfig
from preftune.data.groups import read_groups
from preftune.errors import ConfigError, DataError, ModelError, RunError
from preftune.train.display import Display
from preftune.workflows import label_noise

QUIET = Display(quiet=True)
GOOD = [" the cat sat", " the moon", " a house in the wood"]
BAD = [" no", " not known", " no. not known"]
WHO = ["cat", "dog", "house", "hill", "river", "moon", "wood", "mat", "sky", "day", "answer", "time"]
FLIPPED = {4, 13, 27, 30}


def rows() -> list[dict[str, Any]]:
    """36 judgements, three a prompt; those of FLIPPED are the wrong way round."""
    found = []
    for who in WHO:
        for good, bad in zip(GOOD, BAD, strict=True):
            sides = (bad, good) if len(found) in FLIPPED else (good, bad)
            found.append({"prompt": f"look at the {who}", "chosen": sides[0], "rejected": sides[1]})
    return found


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
def test_the_pairs_that_were_turned_round_are_found(tmp_path: Path, model_folder: Path, ranker: Any) -> None:
    """With their line, the surest first, and no other pair."""
    wanted = config(tmp_path, model_folder, ranker=ranker, confidence=0.51)
    found = lines(label_noise.run(wanted, display=QUIET))
    assert {row["origin"] for row in found} == {f"{wanted.data.train}:{place + 1}" for place in FLIPPED}
    assert [row["confidence"] for row in found] == sorted((row["confidence"] for row in found), reverse=True)
    assert all(row["margin"] < 0 and row["confidence"] >= 0.51 for row in found)
    assert found[0]["chosen"] in BAD
    summary = json.loads((tmp_path / "noise" / "summary.json").read_text())
    assert (summary["judgements"], summary["backwards"], summary["listed"]) == (36, 4, 4)
    assert summary["accuracy"] == pytest.approx(32 / 36)


@pytest.mark.parametrize("ranker", ["dpo", "reward"])
def test_a_margin_is_that_of_a_model_which_has_not_seen_the_prompt(
    tmp_path: Path, model_folder: Path, ranker: Any
) -> None:
    """Plain transformers on the fold's own model."""
    wanted = config(tmp_path, model_folder, ranker=ranker)
    label_noise.run(wanted, display=QUIET)
    folder = tmp_path / "noise" / "fold-2"
    trained_on = {group.prompt for group in read_groups(str(folder / "train.json"))[0]}
    held_out = [row for row in rows() if row["prompt"] not in trained_on]
    assert len(trained_on) == 8
    found = json.loads((folder / "margins.json").read_text())
    assert len(found) == len(held_out) == 12
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
            own, before = (m(input_ids=ids).logits[0, begin - 1 : -1].log_softmax(-1) for m in (policy, reference))
        return float((own - before).gather(1, ids[0, begin:, None]).sum())

    for row, margin in zip(held_out, [one["margin"] for one in found], strict=True):
        expected = reward(row["prompt"], row["chosen"]) - reward(row["prompt"], row["rejected"])
        assert margin == pytest.approx(expected, abs=2e-4)


def test_a_stopped_command_goes_on(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folds that are there are not trained again, and the list is the same."""
    wanted = config(tmp_path, model_folder, confidence=0.6)
    whole = label_noise.run(wanted, display=QUIET).read_text()
    out = tmp_path / "noise"
    (out / "noise.jsonl").unlink()
    (out / "fold-3" / "margins.json").unlink()
    real, calls = label_noise.ranked, []
    monkeypatch.setattr(label_noise, "ranked", lambda *given: calls.append(given[1].parent.parent) or real(*given))
    assert label_noise.run(wanted, display=QUIET).read_text() == whole
    assert calls == [out / "fold-3"]
    stricter = lines(label_noise.run(wanted.model_copy(update={"confidence": 0.999}), display=QUIET))
    assert stricter == [row for row in map(json.loads, whole.splitlines()) if row["confidence"] >= 0.999]
    assert calls == [out / "fold-3"]
    with pytest.raises(RunError):
        label_noise.run(config(tmp_path, model_folder, folds=4), display=QUIET)


def test_a_soft_label_below_one_half_prefers_the_other_response(tmp_path: Path, model_folder: Path) -> None:
    """`probability` 0 on a turned pair is a right label, 1 a wrong one."""
    wanted = config(tmp_path, model_folder, confidence=0.6)
    soft = [{**row, "probability": float(place not in FLIPPED)} for place, row in enumerate(rows())]
    write_jsonl(tmp_path / "prefs.jsonl", soft)
    assert lines(label_noise.run(wanted, display=QUIET)) == []
    assert json.loads((tmp_path / "noise" / "summary.json").read_text())["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": {"eval": 0.1}}, ConfigError, "held out once"),
        ({"folds": 13}, DataError, "cannot split 12 distinct prompts into 13 folds"),
        ({"loss": {"name": "kto"}}, ConfigError, "ranks pairs by no reward"),
        ({"loss": {"name": "simpo"}}, ConfigError, "ranks pairs by no reward"),  # its margins would be lengths
        ({"reference": {"kind": "adapter-off"}}, ConfigError, "no adapter without lora"),
        ({"reference": {"path": "nowhere/model"}}, ModelError, "nowhere/model"),
    ],
)
def test_what_cannot_be_ranked(
    tmp_path: Path, model_folder: Path, changes: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        label_noise.run(config(tmp_path, model_folder, **changes), display=QUIET)
    assert not (tmp_path / "noise").exists()


def test_a_dry_run_writes_nothing(tmp_path: Path, model_folder: Path) -> None:
    label_noise.run(config(tmp_path, model_folder), display=QUIET, dry_run=True)
    assert not (tmp_path / "noise").exists()
