"""Models in memory as arguments of sample, score, winrate and frontier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import PAIRS, make_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import preftune
from preftune.model.adapter import add_lora

PROMPTS = ["the cat", "a dog"]
BRIEF: dict[str, Any] = {"max_new_tokens": 6, "quiet": True}


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def length(prompts: list[str], responses: list[str]) -> list[float]:
    return [float(len(response)) for response in responses]


def test_a_model_in_memory_gives_the_results_of_its_folder(model_folder: Path, tmp_path: Path) -> None:
    """The model stays unchanged, no file is left, and the tokenizer is read from the model's folder by default."""
    before = set(tmp_path.iterdir())
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = make_model(seed=1)
    sampled = preftune.sample(model=model, tokenizer=tokenizer, prompts=PROMPTS, **BRIEF)
    assert sampled.rows["responses"] == preftune.sample(model=model_folder, prompts=PROMPTS, **BRIEF).rows["responses"]
    assert sampled.rows["responses"] == preftune.sample(model=model, prompts=PROMPTS, **BRIEF).rows["responses"]
    scores = preftune.score(policy=other, reference=model, tokenizer=tokenizer, data=PAIRS, quiet=True)
    swapped = preftune.score(policy=model_folder, reference=other, tokenizer=tokenizer, data=PAIRS, quiet=True)
    assert any(scores.rows["margin"])
    assert scores.rows["margin"] == pytest.approx([-margin for margin in swapped.rows["margin"]], abs=1e-6)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert set(tmp_path.iterdir()) == before


def test_several_models_in_memory_are_compared(model_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    models = [make_model(seed=1), make_model(seed=2)]
    call: dict[str, Any] = {"data": PAIRS, "judge": length, "tokenizer": tokenizer, "temperatures": [1.0], **BRIEF}
    wins = preftune.winrate(policy=models, out="wins", **call)
    assert [name.rpartition("-")[0] for name in wins.rows["policy"]] == ["memory:policy", "memory:policy"]
    files = set(Path("wins").iterdir())
    assert preftune.winrate(policy=models, out="wins", **call).rows == wins.rows  # the names depend on the weights only
    assert set(Path("wins").iterdir()) == files
    rest: dict[str, Any] = {"reward": length, "prompts": PROMPTS, "yardstick": 4, "samples": 2, "tokenizer": tokenizer}
    plane = preftune.frontier(reference=model_folder, policy=models, **rest, **BRIEF)
    kl = {row["name"]: row["kl"] for row in plane.rows if row["name"] != model_folder.name}
    assert len(kl) == 2
    assert all(kl.values())


def test_an_adapter_in_memory_is_scored_with_its_base(model_folder: Path) -> None:
    """The base in memory is used, which may differ from the one on disk."""
    tuned = add_lora(make_model(seed=1), 2, 4.0, ["q_proj"])
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    state = {name: tensor.clone() for name, tensor in tuned.state_dict().items()}
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    call: dict[str, Any] = {"reference": model_folder, "tokenizer": tokenizer, "data": PAIRS, "quiet": True}
    scores = preftune.score(policy=tuned, **call)
    assert all(torch.equal(tensor, state[name]) for name, tensor in tuned.state_dict().items())
    with pytest.raises(preftune.ModelError, match="pass the PeftModel that wraps it"):
        preftune.score(policy=tuned.get_base_model(), **call)
    merged = tuned.merge_and_unload()
    assert scores.rows["margin"] == pytest.approx(preftune.score(policy=merged, **call).rows["margin"], abs=1e-5)
    assert scores.rows["margin"] != preftune.score(policy=make_model(seed=1), **call).rows["margin"]


def test_a_model_trained_in_memory_equals_the_model_in_the_run_folder(model_folder: Path) -> None:
    """With LoRA, the object stays unchanged."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    for lora in (None, {"rank": 2}):
        model = AutoModelForCausalLM.from_pretrained(model_folder)
        call: dict[str, Any] = {"lora": lora, "optim": {"lr": 1e-2}, "monitor": False, "quiet": True}
        result = preftune.dpo(model=model, tokenizer=tokenizer, data=PAIRS, out=f"run-{lora is None}", **call)
        rest: dict[str, Any] = {"reference": model_folder, "data": PAIRS, "tokenizer": tokenizer, "quiet": True}
        margins = [preftune.score(policy=policy, **rest).rows["margin"] for policy in (model, result, result.folder)]
        assert any(margins[1])
        assert margins[0] == pytest.approx([0.0] * len(PAIRS) if lora else margins[1], abs=1e-5)
        assert margins[1] == margins[2]


def test_a_model_in_memory_needs_a_tokenizer(model_folder: Path) -> None:
    with pytest.raises(preftune.ConfigError, match=r"sample\(\): model: the tokenizer of a model in memory is missing"):
        preftune.sample(model=make_model(), prompts=PROMPTS)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    with pytest.raises(preftune.ConfigError, match=r"pairs\(\): reward: expected a folder, got a model in memory"):
        preftune.pairs([{"prompt": "a", "responses": ["b", "c"]}], reward=make_model())
    with pytest.raises(preftune.ConfigError, match=r"check_data\(\): model: expected a folder, got a model in memory"):
        preftune.check_data(PAIRS, model=make_model())
    samples = preftune.sample(model=make_model(), tokenizer=tokenizer, prompts=PROMPTS, out="s.jsonl", **BRIEF)
    assert json.loads(Path("s.jsonl.meta.json").read_text())["settings"]["model"].startswith("memory:model-")
    assert samples.path == Path("s.jsonl")
