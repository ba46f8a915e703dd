"""preftune eval frontier: figures compared with transformers, result files, invalid options."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.conftest import make_model, make_tokenizer, write_jsonl
from transformers import AutoModelForCausalLM

from preftune.config.schema import DataConfig
from preftune.errors import ConfigError, ModelError, RunError
from preftune.measures.frontier import best_of_n, tempered
from preftune.model.generate import Sampling, sample
from preftune.model.logprobs import Scorer
from preftune.scoring import response_logps
from preftune.train.display import Display
from preftune.workflows import frontier
from preftune.workflows.frontier import FrontierOptions


@pytest.fixture
def policies(tmp_path: Path) -> tuple[str, str]:
    """A reference, and a policy with slightly different weights."""
    for name, change in (("reference", 0.0), ("policy", 0.05)):
        model = make_model()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += change * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        model.save_pretrained(tmp_path / name)
        make_tokenizer().save_pretrained(tmp_path / name)
    return str(tmp_path / "reference"), str(tmp_path / "policy")


def options(tmp_path: Path, policies: tuple[str, str], **changes: object) -> FrontierOptions:
    data = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": p} for p in ("the cat", "a dog ran", "once")])
    settings = {"temperatures": (0.7, 1.0), "samples": 6, "yardstick": 32, "max_new_tokens": 8, **changes}
    return FrontierOptions(policies[0], (policies[1],), DataConfig(train=str(data)), "length", **settings)  # type: ignore[arg-type]


def test_reward_and_kl_equal_those_of_transformers(tmp_path: Path, policies: tuple[str, str]) -> None:
    """The KL at a temperature is that of the tempered distribution."""
    series = frontier.run(options(tmp_path, policies), tmp_path / "out", Display(quiet=True))
    assert list(series) == ["reference", "policy"]
    assert [p.name for p in series["policy"]] == ["policy, T 0.7", "policy"]
    models = [AutoModelForCausalLM.from_pretrained(path).eval() for path in policies]
    tokenizer = make_tokenizer()
    prompts = [tokenizer(p)["input_ids"] for p in ("the cat", "a dog ran", "once")]
    for point, temperature in zip(series["policy"], (0.7, 1.0), strict=True):
        samples = sample(models[1], tokenizer, prompts, Sampling(6, 8, temperature, seed=1))
        kl, rewards = [], []
        for sampled in samples:
            for ids, text in zip(sampled.group.response_ids, sampled.texts, strict=True):
                row = torch.tensor([[*sampled.group.prompt_ids.tolist(), *ids.tolist()]])
                start = len(sampled.group.prompt_ids)
                logps = []
                for model, t in ((models[1], temperature), (models[0], 1.0)):
                    with torch.no_grad():
                        logits = model(input_ids=row).logits[0, start - 1 : -1].double() / t
                    logps.append(torch.log_softmax(logits, -1).gather(1, row[0, start:, None]).sum())
                kl.append(float(logps[0] - logps[1]))
                rewards.append(len(text))
        assert point.kl == pytest.approx(np.mean(kl), abs=1e-4)
        assert point.reward == pytest.approx(np.mean(rewards), abs=1e-6)


def test_the_json_has_all_series_and_the_page_loads_nothing(tmp_path: Path, policies: tuple[str, str]) -> None:
    frontier.run(options(tmp_path, policies), tmp_path / "out", Display(quiet=True))
    facts = json.loads((tmp_path / "out" / "frontier.json").read_text())
    chat = dict.fromkeys(("arguments", "moment", "thinking", "scored_turns", "system_message")) | {
        "as_chat": None,
        "allow_dropped_text": False,
    }
    assert facts["settings"] == {
        "reference": policies[0],
        "policies": [policies[1]],
        "prompts": str(tmp_path / "prompts.jsonl"),
        "reward": "length",
        "temperatures": [0.7, 1.0],
        "samples": 6,
        "yardstick": 32,
        "max_new_tokens": 8,
        "max_prompts": None,
        "seed": 0,
        "dtype": "auto",
        "chat_template": None,
        "chat": chat,
        "settings": {"train": str(tmp_path / "prompts.jsonl")},
    }
    assert facts["prompts"] == 3
    (reference,) = facts["policies"]["reference"]
    assert reference["kl"] == 0
    for point in facts["policies"]["policy"]:
        low, high = point["kl_ci"]
        assert low < point["kl"] < high
    assert [p["name"] for p in facts["best of n"]] == [f"best of {n}" for n in (1, 2, 4, 8, 16, 32)]
    assert facts["best of n"][2]["kl"] == pytest.approx(math.log(4) - 3 / 4)
    kls = [p["kl"] for p in facts["optimum"]]
    assert kls == pytest.approx(np.geomspace(0.01, math.log(32) / 2, 16).tolist(), rel=1e-3)
    assert all(p["effective_samples"] > 1 for p in facts["optimum"])
    page = (tmp_path / "out" / "frontier.html").read_text()
    assert "policy, T 0.7" in page
    assert "http://" not in page.split("<script>")[0]


def test_the_reference_as_a_policy_has_kl_0(tmp_path: Path, policies: tuple[str, str]) -> None:
    series = frontier.run(
        options(tmp_path, (policies[0], policies[0]), temperatures=(1.0,)), tmp_path / "out", Display(quiet=True)
    )
    (point,) = series[policies[0]]
    assert point.kl == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperatures": (0.0,)}, "above 0"),
        ({"temperatures": (math.nan,)}, "above 0"),
        ({"dtype": "fp8"}, "fp8"),
        ({"reward": "lenght"}, "length"),
    ],
)
def test_invalid_options_are_refused(
    tmp_path: Path, policies: tuple[str, str], changes: dict[str, object], message: str
) -> None:
    job = options(tmp_path, policies)
    with pytest.raises(ConfigError, match=message):
        frontier.run(replace(job, **changes), tmp_path / "out", Display(quiet=True))  # type: ignore[arg-type]


def test_another_vocabulary_is_refused(tmp_path: Path, policies: tuple[str, str]) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(policies[1])
    with pytest.raises(ModelError, match="different vocabularies"):
        frontier.run(options(tmp_path, policies), tmp_path / "out", Display(quiet=True))


def test_a_policy_of_an_unfinished_run_is_refused(tmp_path: Path, policies: tuple[str, str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "manifest.json").write_text("{}")
    with pytest.raises(RunError, match="not finished"):
        frontier.run(options(tmp_path, (policies[0], str(run))), tmp_path / "out", Display(quiet=True))


def test_the_temperature_is_applied_after_the_softcap() -> None:
    """The order is the same as in sampling."""
    model = make_model("gemma2", head_dim=8, sliding_window=16, final_logit_softcapping=5.0)
    scorer = Scorer.of(model)
    assert scorer.head is not None
    assert scorer.head.softcap == 5.0
    tokenizer = make_tokenizer()
    (sampled,) = sample(model, tokenizer, [tokenizer("the cat")["input_ids"]], Sampling(2, 6))
    log_probs = response_logps(tempered(scorer, 0.5), [sampled.group])[0]
    for value, ids in zip(log_probs, sampled.group.response_ids, strict=True):
        row = torch.tensor([[*sampled.group.prompt_ids.tolist(), *ids.tolist()]])
        start = len(sampled.group.prompt_ids)
        with torch.no_grad():
            logits = model(input_ids=row).logits[0, start - 1 : -1].double() / 0.5
        expected = torch.log_softmax(logits, -1).gather(1, row[0, start:, None]).sum()
        assert value == pytest.approx(float(expected), abs=1e-4)


def test_best_of_n_of_a_coin_has_the_closed_form_reward() -> None:
    rewards = np.array([[0.0, 1.0] * 64])
    for n in (1, 2, 3):
        assert best_of_n(rewards, n).reward == pytest.approx(1 - 0.5**n, abs=0.01)


def test_more_new_tokens_than_the_model_has_positions_is_an_error(tmp_path: Path, policies: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match="in the model's context of 256 tokens"):
        frontier.run(options(tmp_path, policies, max_new_tokens=300), tmp_path / "out", Display(quiet=True))


def test_a_missing_policy_is_reported_before_sampling(tmp_path: Path, policies: tuple[str, str]) -> None:
    job = options(tmp_path, (policies[0], str(tmp_path / "polcy")))
    with pytest.raises(ModelError, match="no such folder"):
        frontier.run(job, tmp_path / "out", Display(quiet=True))


def test_with_one_prompt_the_interval_is_over_its_samples(tmp_path: Path, policies: tuple[str, str]) -> None:
    series = frontier.run(options(tmp_path, policies, max_prompts=1), tmp_path / "out", Display(quiet=True))
    assert all(p.kl_se > 0 for p in series["policy"])


def test_a_text_prompt_with_message_responses_is_read_as_chat(tmp_path: Path) -> None:
    """UltraFeedback has such rows."""
    from preftune.data.prompts import read_prompts
    from preftune.types import Message

    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    other = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "no"}]
    file = write_jsonl(tmp_path / "uf.jsonl", [{"prompt": "hello", "chosen": chat, "rejected": other}])
    groups, _ = read_prompts(str(file))
    assert groups[0].prompt == (Message("user", "hello"),)
