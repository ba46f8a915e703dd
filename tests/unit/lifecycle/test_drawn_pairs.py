"""The pairs that a run scores at some of its steps: their log-probs, and no effect on the training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import PAIRS
from tests.unit.lifecycle.test_monitor import run
from transformers import AutoModelForCausalLM

from preftune.config.schema import LoraConfig
from preftune.lifecycle.drawn_pairs import MOMENTS, moments_of


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    run(folder, model_folder)
    return folder / "run"


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / "drawn_pairs" / name).read_text())


def logp(model: Any, tokenizer: Any, prompt: str, response: str) -> float:
    """The log-prob of the response and EOS, by plain transformers."""
    ids = tokenizer(prompt)["input_ids"]
    answer = [*tokenizer(response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids + answer])).logits[0].double().log_softmax(-1)
    return sum(float(logits[len(ids) + i - 1, token]) for i, token in enumerate(answer))


def test_the_log_probs_are_those_of_the_models_at_both_ends(tuned: Path, model_folder: Path, tokenizer: Any) -> None:
    drawn = read(tuned, "pairs.json")
    assert drawn["split"] == "training"
    assert drawn["total"] == len(drawn["pairs"]) == len(PAIRS)
    pairs_of_data = {(pair["prompt"], pair["chosen"], pair["rejected"]) for pair in PAIRS}
    for step, source in ((0, model_folder), (4, tuned / "final")):
        model = AutoModelForCausalLM.from_pretrained(source).eval()
        scored = read(tuned, f"step-{step:08d}.json")
        assert scored["step"] == step
        for pair, sides in list(zip(drawn["pairs"], scored["logps"], strict=True))[:4]:
            prompt, chosen, rejected = (drawn["texts"][number] for number in pair["texts"])
            assert (prompt, chosen, rejected) in pairs_of_data
            for text, value in ((chosen, sides[0]), (rejected, sides[1])):
                assert value == pytest.approx(logp(model, tokenizer, prompt, text), abs=1e-4)
    np.testing.assert_array_equal(drawn["reference"], read(tuned, "step-00000000.json")["logps"])


def test_token_rewards_add_up_to_the_implicit_rewards_of_the_last_step(tuned: Path) -> None:
    drawn, last = read(tuned, "pairs.json"), read(tuned, "step-00000004.json")["logps"]
    rows = read(tuned, "tokens.json")
    assert rows
    for row in rows:
        for side, name in enumerate(("chosen", "rejected")):
            reward = drawn["beta"] * (last[row["pair"]][side] - drawn["reference"][row["pair"]][side])
            assert sum(value for _, value in row[name]) == pytest.approx(reward, abs=1e-5)  # fp32 sums
            text = drawn["texts"][drawn["pairs"][row["pair"]]["texts"][1 + side]]
            assert "".join(piece for piece, _ in row[name]).strip().startswith(text.strip())
    margins = (np.array(last) - np.array(drawn["reference"])) @ [1, -1]
    assert rows[0]["pair"] == int(np.argmin(margins))


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)])
def test_scoring_does_not_change_the_training(tmp_path: Path, model_folder: Path, lora: LoraConfig | None) -> None:
    lines = []
    for name, number in (("with", 256), ("without", 0)):
        (tmp_path / name).mkdir()
        run(tmp_path / name, model_folder, lora=lora, report_pairs=number)
        folder = tmp_path / name / "run"
        assert (folder / "drawn_pairs").exists() == (number > 0)
        metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        lines.append([{k: v for k, v in line.items() if not k.endswith("_per_s")} for line in metrics])
    assert lines[0] == lines[1]


@given(steps=st.integers(1, 3000), number=st.integers(2, len(MOMENTS)))
def test_moments_are_steps_of_the_run_with_both_ends(steps: int, number: int) -> None:
    moments = moments_of(steps, number)
    assert moments[0] == 0
    assert moments[-1] == steps
    assert len(moments) <= number
    assert moments == sorted(set(moments))
