"""SFT on demonstrations and on chosen responses; implicit rewards of policies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import PAIRS, make_model, make_tokenizer, write_jsonl
from transformers import AutoModelForCausalLM, AutoTokenizer

from preftune.config.schema import BatchConfig, DataConfig, ModelConfig, OptimConfig, SFTConfig, TrainConfig
from preftune.errors import DataError, ModelError
from preftune.methods import sft
from preftune.methods.sft import preferred
from preftune.train.display import Display
from preftune.types import Judgement, TokenGroup
from preftune.workflows.score import ScoreOptions
from preftune.workflows.score import run as score


def train(tmp_path: Path, model: Path, rows: list[Any], epochs: int = 1) -> list[dict[str, Any]]:
    config = SFTConfig(
        model=ModelConfig(path=str(model), dtype="fp32"),
        data=DataConfig(train=str(write_jsonl(tmp_path / "d.jsonl", rows))),
        optim=OptimConfig(lr=5e-3),
        batch=BatchConfig(pairs=3, tokens=40),
        train=TrainConfig(epochs=epochs),
        out=str(tmp_path / "run"),
    )
    sft.run(config, display=Display(quiet=True))
    return [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]


def test_the_loss_is_the_mean_over_all_response_tokens_of_a_step(tmp_path: Path, model_folder: Path) -> None:
    """With several micro-batches, the loss equals that of transformers."""
    rows = [{"prompt": p["prompt"], "completion": p["chosen"]} for p in PAIRS[:3]]
    first = train(tmp_path, model_folder, rows)[0]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)
    total, count = 0.0, 0
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = [*tokenizer(row["prompt"] + row["completion"])["input_ids"], 2]
        labels = [-100] * len(prompt) + ids[len(prompt) :]
        n = len(ids) - len(prompt)
        with torch.no_grad():
            total += n * float(model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss)
        count += n
    assert first["loss"] == pytest.approx(total / count, rel=1e-5)


def test_sft_reduces_the_loss(tmp_path: Path, model_folder: Path) -> None:
    metrics = train(tmp_path, model_folder, [{"text": "the cat sat on the mat"}] * 6, epochs=10)
    assert metrics[-1]["loss"] < 0.3 * metrics[0]["loss"]


def ids(*values: int) -> Any:
    return np.array(values, dtype=np.int32)


def test_sft_on_preferences_uses_each_chosen_response_once() -> None:
    group = TokenGroup(ids(1), (ids(5), ids(6), ids(7)), (Judgement(0, 1), Judgement(2, 1)))
    again = TokenGroup(ids(1), (ids(5), ids(8)), (Judgement(0, 1),))
    labelled = TokenGroup(ids(2), (ids(5), ids(6)), labels=(1, -1))
    selected = preferred([group, again, labelled])
    assert [(g.prompt_ids.tolist(), g.response_ids[0].tolist()) for g in selected] == [
        ([1], [5]),
        ([1], [7]),
        ([2], [5]),
    ]
    repeated = TokenGroup(ids(1), (ids(5),))
    assert len(preferred([repeated, repeated])) == 2  # repeated demonstrations are all used


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    make_model(seed=7).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def test_scores_equal_plain_transformers(tmp_path: Path, model_folder: Path, policy_folder: Path) -> None:
    """Each response is scored alone with transformers, within 1e-4. Token rewards add up to rewards."""
    data = write_jsonl(tmp_path / "d.jsonl", PAIRS)
    scoring = ScoreOptions(str(policy_folder), str(model_folder), DataConfig(train=str(data)), beta=0.25, tokens=True)
    out = score(scoring, tmp_path / "scores.jsonl", Display(quiet=True))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    models = {
        name: AutoModelForCausalLM.from_pretrained(folder)
        for name, folder in (("policy", policy_folder), ("reference", model_folder))
    }
    assert [row["index"] for row in rows] == list(range(len(PAIRS)))
    for row, pair in zip(rows, PAIRS, strict=True):
        prompt = tokenizer(pair["prompt"])["input_ids"]
        for side in ("chosen", "rejected"):
            full = [*tokenizer(pair["prompt"] + pair[side])["input_ids"], 2]
            response = full[len(prompt) :]
            for name, model in models.items():
                with torch.no_grad():
                    logits = model(input_ids=torch.tensor([full])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
                expected = float(logits.gather(1, torch.tensor(response)[:, None]).sum())
                assert row[f"{name}_{side}_logp"] == pytest.approx(expected, abs=1e-4)
            assert row[f"{side}_tokens"] == len(response)
            assert "".join(row[f"{side}_token_strings"]) == pair[side] + "</s>"
            assert sum(row[f"{side}_token_rewards"]) == pytest.approx(row[f"reward_{side}"], abs=1e-6)
            ratio = row[f"policy_{side}_logp"] - row[f"reference_{side}_logp"]
            assert row[f"reward_{side}"] == pytest.approx(0.25 * ratio, abs=1e-6)
        assert row["margin"] == pytest.approx(row["reward_chosen"] - row["reward_rejected"], abs=1e-9)


def test_all_margins_are_0_if_the_policy_is_the_reference(tmp_path: Path, model_folder: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", PAIRS)
    out = score(
        ScoreOptions(str(model_folder), str(model_folder), DataConfig(train=str(data))),
        tmp_path / "s.jsonl",
        Display(quiet=True),
    )
    assert all(json.loads(line)["margin"] == 0 for line in out.read_text().splitlines())


def test_an_adapter_is_scored_with_its_adapter_weights(tmp_path: Path, model_folder: Path) -> None:
    from preftune.model.adapter import add_lora

    tuned = add_lora(AutoModelForCausalLM.from_pretrained(model_folder), 4, 8.0, "all-linear")
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    tuned.peft_config["default"].base_model_name_or_path = str(model_folder)
    tuned.save_pretrained(tmp_path / "adapter")
    data = write_jsonl(tmp_path / "d.jsonl", PAIRS)
    scoring = ScoreOptions(str(tmp_path / "adapter"), str(model_folder), DataConfig(train=str(data)))
    out = score(scoring, tmp_path / "s.jsonl", Display(quiet=True))
    assert all(json.loads(line)["margin"] != 0 for line in out.read_text().splitlines())


def test_a_reference_with_another_vocabulary_is_refused(tmp_path: Path, model_folder: Path) -> None:
    other = tmp_path / "other"
    make_model().save_pretrained(other)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["zzz"])
    tokenizer.save_pretrained(other)
    data = write_jsonl(tmp_path / "d.jsonl", PAIRS)
    with pytest.raises(ModelError, match="different vocabularies"):
        score(
            ScoreOptions(str(model_folder), str(other), DataConfig(train=str(data))),
            tmp_path / "s.jsonl",
            Display(quiet=True),
        )
    assert not (tmp_path / "s.jsonl").exists()


def test_data_without_pairs_are_refused_by_score(tmp_path: Path, model_folder: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "a", "completion": " b"}])
    with pytest.raises(DataError, match="'score' needs preference pairs"):
        score(
            ScoreOptions(str(model_folder), str(model_folder), DataConfig(train=str(data))),
            tmp_path / "s.jsonl",
            Display(quiet=True),
        )
