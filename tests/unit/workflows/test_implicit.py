"""The implicit reward in use: the best of n, and a scalar reward model that learns it. Both by their commands."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import PAIRS, make_model, make_tokenizer, write_jsonl
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from preftune.cli.main import run
from preftune.errors import ConfigError
from preftune.rewards.models import parse_implicit
from preftune.rewards.open import open_reward
from preftune.rewards.reward import PromptResponse


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    make_model(seed=7).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def log_ratio(policy: Path, reference: Path, prompt: str, response: str, ended: bool = True) -> float:
    """Plain transformers."""
    tokenizer = make_tokenizer()
    begin = len(tokenizer(prompt)["input_ids"])
    ids = torch.tensor([tokenizer(prompt + response)["input_ids"] + [2] * ended])
    found = []
    for folder in (policy, reference):
        with torch.no_grad():
            logits = AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids).logits[0, begin - 1 : -1]
        found.append(float(logits.log_softmax(-1).gather(1, ids[0, begin:, None]).sum()))
    return found[0] - found[1]


def test_best_of_n(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: Path, model_folder: Path) -> None:
    """Of each prompt's samples the one with the largest log-ratio; beta has no say in the order."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("prompts.jsonl"), [{"prompt": pair["prompt"]} for pair in PAIRS[:3]])
    drawn = ["--model", str(policy), "--prompts", "prompts.jsonl", "--n", "4", "--max-new-tokens", "6"]
    assert run(["sample", *drawn, "--out", "samples.jsonl", "-q"]) == 0
    for beta in ("", ",0.1"):
        judge = f"implicit:{policy},{model_folder}{beta}"
        best = ["--select", "top-k", "--k", "1", "--reward", judge, "--out", "best.jsonl"]
        assert run(["pairs", "samples.jsonl", *best, "-q"]) == 0
        for row, kept in zip(lines("samples.jsonl"), lines("best.jsonl"), strict=True):
            both = zip(row["responses"], row["ended"], strict=True)
            ratios = [log_ratio(policy, model_folder, row["prompt"], text, ended) for text, ended in both]
            assert kept["responses"] == [row["responses"][ratios.index(max(ratios))]]
            assert kept["scores"] == [pytest.approx(max(ratios) * (0.1 if beta else 1.0), abs=1e-4)]


def test_distilling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: Path, model_folder: Path) -> None:
    """Labels are sigmoid(beta margin), whatever the data say, and scalar rewards come to differ by beta margin."""
    monkeypatch.chdir(tmp_path)
    turned = [{**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in PAIRS]
    write_jsonl(Path("prefs.jsonl"), turned)
    assert run(["data", "convert", "prefs.jsonl", "--to", "groups", "--out", "responses.jsonl"]) == 0
    judge, beta = f"implicit:{policy},{model_folder},0.05", 0.05
    labelling = ["--select", "all", "--soft", "--reward", judge, "--out", "labelled.jsonl", "-q"]
    assert run(["pairs", "responses.jsonl", *labelling]) == 0
    labelled = lines("labelled.jsonl")
    for pair, row in zip(PAIRS, labelled, strict=True):
        ratios = [log_ratio(policy, model_folder, pair["prompt"], text) for text in row["responses"]]
        (j,) = row["judgements"]
        margin = beta * (ratios[j["better"]] - ratios[j["worse"]])
        assert margin > 0
        assert j["probability"] == pytest.approx(1 / (1 + math.exp(-margin)), abs=1e-4)
    Path("reward.yaml").write_text(
        f"model: {{path: {model_folder}, dtype: fp32}}\ndata: {{train: labelled.jsonl}}\nnormalise: false\n"
        "optim: {lr: 5.0e-3, schedule: cosine}\nbatch: {pairs: 8}\ntrain: {epochs: 150}\nout: distilled\n"
    )
    assert run(["reward", "reward.yaml", "-q"]) == 0
    model = AutoModelForSequenceClassification.from_pretrained("distilled/final").eval()
    tokenizer = AutoTokenizer.from_pretrained("distilled/final")
    for row in labelled:
        (j,) = row["judgements"]
        with torch.no_grad():
            rewards = [
                float(model(**tokenizer(f"{row['prompt']}{text}</s>", return_tensors="pt")).logits)
                for text in row["responses"]
            ]
        expected = math.log(j["probability"] / (1 - j["probability"]))
        assert rewards[j["better"]] - rewards[j["worse"]] == pytest.approx(expected, abs=0.05)


def test_chat_responses_are_labelled_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def said(role: str, text: str) -> dict[str, str]:
        return {"role": role, "content": text}

    chat = [
        {"prompt": [said("user", "hi")], "chosen": [said("assistant", "a")], "rejected": [said("assistant", "bbb")]}
    ]
    write_jsonl(Path("chat.jsonl"), chat)
    assert run(["data", "convert", "chat.jsonl", "--to", "groups", "--out", "groups.jsonl"]) == 0
    assert run(["pairs", "groups.jsonl", "--reward", "length", "--out", "p.jsonl", "-q"]) == 0
    (row,) = lines("p.jsonl")
    assert row["prompt"] == [said("user", "hi")]
    assert row["responses"] == ["a", "bbb"]
    assert row["judgements"] == [{"better": 1, "worse": 0}]


def test_beta_is_a_part_of_the_name(policy: Path, model_folder: Path) -> None:
    asked = [PromptResponse("the cat", " sat"), PromptResponse("a dog", " ran")]
    plain = open_reward(f"implicit:{policy},{model_folder}")(asked)
    assert open_reward(f"implicit:{policy},{model_folder},0.1")(asked) == pytest.approx([0.1 * x for x in plain])
    assert parse_implicit("a,b", "") == (("a", "b"), 1.0)


@pytest.mark.parametrize("name", ["a", "a,b,", "a,b,c", "a,b,0", "a,b,-1", "a,b,inf", "a,b,0.1,c", ",b"])
def test_what_is_no_implicit_reward(name: str) -> None:
    with pytest.raises(ConfigError, match="implicit:"):
        parse_implicit(name, "--reward")
