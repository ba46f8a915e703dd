"""The configs in configs/small with a pretrained model and human preferences; scores equal plain transformers."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from preftune import DPOConfig, SFTConfig, dpo, load_config, sft
from preftune.chat.render import Renderer
from preftune.config.schema import DataConfig
from preftune.data.read_groups import read_groups
from preftune.data.tokenize_groups import Limits, tokenize
from preftune.model.load import end_ids, load_tokenizer, locate
from preftune.train.display import Display
from preftune.workflows import score

SMALL = Path(__file__).parents[2] / "configs" / "small"


@pytest.fixture
def story_model(shared: Path) -> str:
    return str(shared / "models" / "stories260k")


@pytest.fixture
def hh(shared: Path, tmp_path: Path) -> str:
    """The path of a file with 24 short rows of HH harmless."""
    with gzip.open(shared / "data" / "hh_harmless_test.jsonl.gz", "rt") as file:
        lines = [line for line in file if len(line) < 700][:24]
    path = tmp_path / "hh.jsonl"
    path.write_text("".join(lines))
    return str(path)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def plain_logp(model: Any, prompt: Any, response: Any) -> float:
    """Return log pi(response | prompt), computed with plain transformers."""
    ids = torch.tensor([[*prompt.tolist(), *response.tolist()]])
    with torch.no_grad():
        logps = model(ids).logits[0].double().log_softmax(-1)
    return float(logps[len(prompt) - 1 : -1].gather(-1, ids[0, len(prompt) :, None]).sum())


def test_sft_and_dpo_learn_and_scores_equal_plain_transformers(story_model: str, hh: str, tmp_path: Path) -> None:
    """With hh-sft.yaml and hh-dpo.yaml. transformers loads the final model and generates with it."""
    overrides = [f"data.train={hh}", "batch.pairs=64", "train.epochs=3"]
    sft_model = sft(
        load_config(
            SFTConfig, SMALL / "hh-sft.yaml", [f"model.path={story_model}", *overrides, f"out={tmp_path / 'sft'}"]
        )
    )
    final = dpo(
        load_config(
            DPOConfig, SMALL / "hh-dpo.yaml", [f"model.path={sft_model}", *overrides, f"out={tmp_path / 'dpo'}"]
        )
    )
    steps = [row for row in lines_of(tmp_path / "dpo" / "metrics.jsonl") if row["split"] == "train"]
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert steps[0]["rewards/margins"] == 0
    assert steps[-1]["loss"] < steps[0]["loss"]

    model, tokenizer = AutoModelForCausalLM.from_pretrained(final), AutoTokenizer.from_pretrained(final)
    prompt = tokenizer("\n\nHuman: hello\n\nAssistant:", return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=5, do_sample=False).shape[1] > prompt["input_ids"].shape[1]

    out = score.run(
        score.ScoreOptions(str(final), str(sft_model), DataConfig(train=hh, max_length=512)),
        tmp_path / "scores.jsonl",
        Display(quiet=True),
    )
    reference = AutoModelForCausalLM.from_pretrained(sft_model)
    rendered = Renderer.of(load_tokenizer(locate(str(final))), end_ids(locate(str(final))))
    groups, account = read_groups(hh)
    ids = tokenize(groups, rendered, Limits(512), account)
    scores = lines_of(out)
    assert len(scores) == len(ids) >= 20
    for row, group in zip(scores[:12], ids, strict=False):
        for name, plain in (("policy", model), ("reference", reference)):
            for role, response in zip(("chosen", "rejected"), group.response_ids, strict=True):
                expected = plain_logp(plain, group.prompt_ids, response)
                assert row[f"{name}_{role}_logp"] == pytest.approx(expected, abs=1e-4)


def test_dpo_on_chat_pairs_saves_the_chat_template(story_model: str, shared: Path, tmp_path: Path) -> None:
    """The model has no chat template; chat-dpo.yaml sets one by name."""
    data = shared / "data" / "dpo_en_demo.json"
    rows = json.loads(data.read_text())[:8]
    (tmp_path / "chat.json").write_text(json.dumps(rows))
    changes = [
        f"model.path={story_model}",
        f"data.train={tmp_path / 'chat.json'}",
        "batch.pairs=8",
        "train.max_steps=2",
    ]
    final = dpo(load_config(DPOConfig, SMALL / "chat-dpo.yaml", [*changes, f"out={tmp_path / 'chat'}"]))
    steps = [row for row in lines_of(tmp_path / "chat" / "metrics.jsonl") if row["split"] == "train"]
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    tokenizer = AutoTokenizer.from_pretrained(final)
    assert tokenizer.chat_template
    assert "hello" in tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
