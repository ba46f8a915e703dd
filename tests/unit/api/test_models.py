"""Models in memory given to sample, score, winrate and frontier."""

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


def test_a_model_in_memory_is_its_folder(model_folder: Path, tmp_path: Path) -> None:
    """Same numbers, the model unchanged, no file left, and its tokenizer found where the model came from."""
    before = set(tmp_path.iterdir())
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = make_model(seed=1)
    sampled = preftune.sample(model=model, tokenizer=tokenizer, prompts=PROMPTS, **BRIEF)
    assert sampled.rows["responses"] == preftune.sample(model=model_folder, prompts=PROMPTS, **BRIEF).rows["responses"]
    assert sampled.rows["responses"] == preftune.sample(model=model, prompts=PROMPTS, **BRIEF).rows["responses"]
    scores = preftune.score(policy=other, reference=model, tokenizer=tokenizer, data=PAIRS, quiet=True)
    back = preftune.score(policy=model_folder, reference=other, tokenizer=tokenizer, data=PAIRS, quiet=True)
    assert any(scores.rows["margin"])
    assert scores.rows["margin"] == pytest.approx([-margin for margin in back.rows["margin"]], abs=1e-6)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert set(tmp_path.iterdir()) == before


def test_several_models_in_memory_are_compared(model_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    models = [make_model(seed=1), make_model(seed=2)]
    call: dict[str, Any] = {"data": PAIRS, "judge": length, "tokenizer": tokenizer, "temperatures": [1.0], **BRIEF}
    wins = preftune.winrate(policy=models, out="wins", **call)
    assert [name.rpartition("-")[0] for name in wins.rows["policy"]] == ["memory:policy", "memory:policy"]
    files = set(Path("wins").iterdir())
    assert preftune.winrate(policy=models, out="wins", **call).rows == wins.rows  # the names are of the weights
    assert set(Path("wins").iterdir()) == files
    rest: dict[str, Any] = {"reward": length, "prompts": PROMPTS, "yardstick": 4, "samples": 2, "tokenizer": tokenizer}
    plane = preftune.frontier(reference=model_folder, policy=models, **rest, **BRIEF)
    kl = {row["name"]: row["kl"] for row in plane.rows if row["name"] != model_folder.name}
    assert len(kl) == 2
    assert all(kl.values())


def test_an_adapter_in_memory_counts_with_its_base(model_folder: Path) -> None:
    """The base may differ from the one on disk."""
    tuned = add_lora(make_model(seed=1), 2, 4.0, ["q_proj"])
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    state = {name: tensor.clone() for name, tensor in tuned.state_dict().items()}
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    call: dict[str, Any] = {"reference": model_folder, "tokenizer": tokenizer, "data": PAIRS, "quiet": True}
    found = preftune.score(policy=tuned, **call)
    assert all(torch.equal(tensor, state[name]) for name, tensor in tuned.state_dict().items())
    with pytest.raises(preftune.ModelError, match="give the PeftModel around it"):
        preftune.score(policy=tuned.get_base_model(), **call)
    merged = tuned.merge_and_unload()
    assert found.rows["margin"] == pytest.approx(preftune.score(policy=merged, **call).rows["margin"], abs=1e-5)
    assert found.rows["margin"] != preftune.score(policy=make_model(seed=1), **call).rows["margin"]


def test_a_model_that_was_tuned_in_memory(model_folder: Path) -> None:
    """After training in place, the object and the run's folder are the same model. LoRA leaves the object as it was."""
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


def test_without_its_tokenizer(model_folder: Path) -> None:
    with pytest.raises(preftune.ConfigError, match=r"sample\(\): model: a model in memory without its tokenizer"):
        preftune.sample(model=make_model(), prompts=PROMPTS)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    with pytest.raises(preftune.ConfigError, match=r"pairs\(\): reward: a model in memory"):
        preftune.pairs([{"prompt": "a", "responses": ["b", "c"]}], reward=make_model())
    with pytest.raises(preftune.ConfigError, match=r"check_data\(\): model: a model in memory"):
        preftune.check_data(PAIRS, model=make_model())
    found = preftune.sample(model=make_model(), tokenizer=tokenizer, prompts=PROMPTS, out="s.jsonl", **BRIEF)
    assert json.loads(Path("s.jsonl.meta.json").read_text())["settings"]["model"].startswith("memory:model-")
    assert found.path == Path("s.jsonl")
