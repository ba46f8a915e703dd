"""Reward models: step 1, learning, the saved model, and rewards of every kind."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import make_model, write_jsonl
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from preftune.cli.main import run as cli
from preftune.config.schema import (
    BatchConfig,
    DataConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    RewardConfig,
    TrainConfig,
)
from preftune.errors import ConfigError, ModelError, NumericError
from preftune.methods import reward
from preftune.rewards.models import RewardModel
from preftune.rewards.open import open_reward
from preftune.rewards.reward import PromptResponse, require_rewards, rewards_of
from preftune.train.display import Display
from preftune.train.metrics import Calibration

GOOD = [" the cat sat", " the moon", " a house in the wood"]
BAD = [" no", " not known", " no. not known"]
JUDGED = [
    {"prompt": prompt, "chosen": good, "rejected": bad}
    for prompt in ("Question: what is it? Answer:", "we look at", "once upon")
    for good in GOOD
    for bad in BAD
]


def run(tmp_path: Path, model: Path, rows: list[Any] | None = None, **sections: Any) -> Path:
    tmp_path.mkdir(exist_ok=True)
    data = write_jsonl(tmp_path / "data.jsonl", rows or JUDGED)
    config = RewardConfig(
        model=ModelConfig(path=str(model), **{"dtype": "fp32", **sections.pop("model_options", {})}),
        data=DataConfig(train=str(data), **sections.pop("data_options", {})),
        optim=OptimConfig(lr=3e-3),
        batch=BatchConfig(pairs=9),
        train=sections.pop("train", TrainConfig(epochs=6)),
        out=str(tmp_path / "run"),
        **sections,
    )
    return reward.run(config, display=Display(quiet=True))


def lines(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]


def test_rewards_start_at_0_and_training_increases_the_accuracy(tmp_path: Path, model_folder: Path) -> None:
    run(tmp_path, model_folder, data_options={"eval": 0.34})
    metrics = lines(tmp_path)
    first, last = ([line for line in metrics if line["split"] == "train"][i] for i in (0, -1))
    assert (first["step"], first["rewards/margins"], first["rewards/chosen"]) == (1, 0.0, 0.0)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert last["rewards/accuracies"] > 0.9
    held_out = [line for line in metrics if line["split"] == "eval"][-1]
    assert held_out["rewards/accuracies"] > 0.8
    assert 0 <= held_out["calibration/ece"] <= 1
    assert held_out["calibration/brier"] < 0.25
    assert "logps/chosen" not in last


def oracle(folder: Path, prompt: str, response: str, ended: bool = True) -> float:
    """Return the reward of one row as transformers computes it."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompt + response)["input_ids"] + ([tokenizer.eos_token_id] if ended else [])
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([ids])).logits)


@pytest.mark.parametrize("normalise", [True, False])
def test_transformers_computes_the_same_rewards(tmp_path: Path, model_folder: Path, normalise: bool) -> None:
    """From the saved folder, for single rows and in a padded batch."""
    final = run(tmp_path, model_folder, normalise=normalise)
    judge = open_reward(str(final))
    assert isinstance(judge, RewardModel)
    samples = [PromptResponse(row["prompt"], row[side]) for row in JUDGED[:6] for side in ("chosen", "rejected")]
    samples.append(PromptResponse("we look at", " the cat", ended=False))
    scale = json.loads((final / "config.json").read_text())["reward_scale"] or {"mean": 0.0, "std": 1.0}
    assert (scale["std"] != 1.0) == normalise
    expected = [(oracle(final, a.prompt, a.response, a.ended) - scale["mean"]) / scale["std"] for a in samples]  # type: ignore[arg-type]
    assert judge(samples) == pytest.approx(expected, abs=1e-4)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(final), AutoTokenizer.from_pretrained(final)
    texts = [f"{a.prompt}{a.response}</s>" for a in samples[:-1]]
    with torch.no_grad():
        logits = model(**tokenizer(texts, return_tensors="pt", padding=True)).logits[:, 0]
    assert ((logits - scale["mean"]) / scale["std"]).tolist() == pytest.approx(expected[:-1], abs=1e-4)


def test_normalised_rewards_have_mean_0_and_variance_1(tmp_path: Path, model_folder: Path) -> None:
    judge = open_reward(str(run(tmp_path, model_folder)))
    samples = [PromptResponse(row["prompt"], row[side]) for row in JUDGED for side in ("chosen", "rejected")]
    values = torch.tensor(judge(samples))
    assert float(values.mean()) == pytest.approx(0, abs=1e-4)
    assert float(values.std(correction=0)) == pytest.approx(1, abs=1e-4)


def test_all_layouts_train_the_same_model(tmp_path: Path, model_folder: Path) -> None:
    rows = [
        {
            "prompt": "we look at",
            "responses": [" the cat", " a dog on the hill", " no", " not"],
            "judgements": [{"better": b, "worse": w} for b in (0, 1) for w in (2, 3)],
        }
    ] * 3
    weights = {}
    for attention in ("rows", "shared", "packed"):
        final = run(tmp_path / attention, model_folder, rows, model_options={"attention": attention}, normalise=False)
        model = AutoModelForSequenceClassification.from_pretrained(final)
        weights[attention] = torch.cat([p.flatten() for p in model.parameters()])
    assert torch.allclose(weights["rows"], weights["shared"], atol=2e-4)
    assert torch.allclose(weights["rows"], weights["packed"], atol=2e-4)


def test_a_lora_adapter_is_merged_into_the_saved_model(tmp_path: Path, model_folder: Path) -> None:
    final = run(tmp_path, model_folder, lora=LoraConfig(rank=4, alpha=8.0))
    assert (final / "model.safetensors").is_file()
    assert not (final / "adapter_config.json").exists()
    last = lines(tmp_path)[-1]
    assert last["rewards/accuracies"] > 0.7
    judge = open_reward(str(final))
    a, b = judge([PromptResponse("we look at", " the moon"), PromptResponse("we look at", " no")])
    assert a > b


def test_a_reward_model_can_be_trained_further(tmp_path: Path, model_folder: Path) -> None:
    """It starts from the trained head."""
    first = run(tmp_path / "a", model_folder)
    before = lines(tmp_path / "a")[-1]["rewards/accuracies"]
    run(tmp_path / "b", first, train=TrainConfig(epochs=1))
    assert lines(tmp_path / "b")[0]["rewards/accuracies"] >= before - 0.2
    assert lines(tmp_path / "b")[0]["rewards/margins"] > 0.1


def test_a_model_that_learnt_nothing_has_no_scale(tmp_path: Path, model_folder: Path) -> None:
    """Judgements of probability 0.5 do not change rewards of 0."""
    rows = [{"prompt": "a", "chosen": " b", "rejected": " c", "probability": 0.5}]
    final = run(tmp_path, model_folder, rows, train=TrainConfig(max_steps=2))
    assert json.loads((final / "config.json").read_text()).get("reward_scale") is None
    assert open_reward(str(final))([PromptResponse("a", " b")]) == [0.0]


def test_training_without_normalise_removes_the_scale(tmp_path: Path, model_folder: Path) -> None:
    first = run(tmp_path / "a", model_folder)
    second = run(tmp_path / "b", first, normalise=False, train=TrainConfig(max_steps=1))
    assert json.loads((second / "config.json").read_text()).get("reward_scale") is None
    (value,) = open_reward(str(second))([PromptResponse("we look at", " the moon")])
    assert value == pytest.approx(oracle(second, "we look at", " the moon"), abs=1e-4)


def test_the_padding_token_is_not_eos(tmp_path: Path, model_folder: Path, tokenizer: Any) -> None:
    """With EOS as padding, transformers would read the reward one token too early, so another token is used."""
    folder = tmp_path / "model"
    make_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["pad_token"] = "</s>"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    final = run(tmp_path, folder)
    assert AutoTokenizer.from_pretrained(final).pad_token == "<s>"
    judge, scale = open_reward(str(final)), json.loads((final / "config.json").read_text())["reward_scale"]
    (value,) = judge([PromptResponse("we look at", " the cat sat")])
    assert value == pytest.approx(
        (oracle(final, "we look at", " the cat sat") - scale["mean"]) / scale["std"], abs=1e-4
    )


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("vadre", ConfigError, "did you mean 'vader'"),
        ("MODEL", ModelError, "the model is LlamaForCausalLM, not a reward model"),
        ("missing.py:reward", ConfigError, "no such file"),
    ],
)
def test_invalid_rewards_are_refused(model_folder: Path, name: str, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        open_reward(str(model_folder) if name == "MODEL" else name)


FUNCTIONS = """
def good(prompts, responses):
    return [float(len(r)) for r in responses]
def raises(prompts, responses):
    return [1 / (len(r) - 3) for r in responses]
def nan(prompts, responses):
    return [float("nan") if r == "abc" else 0.0 for r in responses]
def short(prompts, responses):
    return [0.0]
def column(prompts, responses):
    return [[0.0] for r in responses]
def huge(prompts, responses):
    return [1e300 for r in responses]
def words(prompts, responses):
    return ["good" for r in responses]
def other(texts):
    return [0.0 for t in texts]
def nothing(prompts, responses):
    print(len(responses))
def text(prompts, responses):
    return "11"
def lazy(prompts, responses):
    for r in responses:
        yield {}["score"]
def quits(prompts, responses):
    raise SystemExit(3)
"""


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "raises",
            ConfigError,
            r"mine.py:5: the reward function raised ZeroDivisionError: .*\n  step 7, data:2; on the response 'abc'",
        ),
        ("nan", NumericError, "step 7, data:2: the reward of 1 of 2 responses is nan"),
        ("short", ConfigError, "returned 1 rewards for 2 responses"),
        ("column", ConfigError, r"returned 2 rewards for 2 responses, with the shape \(2, 1\)"),
        ("huge", NumericError, r"the reward of 2 of 2 responses is 1e\+300"),
        (
            "words",
            ConfigError,
            "step 7, data:1: the reward function returned a list with 'good', not a list of numbers",
        ),
        ("nothing", ConfigError, "the reward function returned a NoneType, not a list of numbers"),
        ("text", ConfigError, "the reward function returned a str, not a list of numbers"),
        ("lazy", ConfigError, r"mine.py:24: the reward function raised KeyError: 'score'"),
        ("quits", ConfigError, r"mine.py:26: the reward function raised SystemExit: 3"),
    ],
)
def test_errors_of_reward_functions_name_the_step_and_the_row(
    tmp_path: Path, name: str, error: Any, message: str
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(FUNCTIONS)
    samples = [PromptResponse("p", "abcd", origin="data:1"), PromptResponse("q", "abc", origin="data:2")]
    assert rewards_of(open_reward(f"{file}:good"), samples, "step 7").tolist() == [4, 3]
    with pytest.raises(error, match=message):
        rewards_of(open_reward(f"{file}:{name}"), samples, "step 7")


def test_a_reward_function_with_other_arguments_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(FUNCTIONS)
    with pytest.raises(ConfigError, match="has the arguments texts"):
        open_reward(f"{file}:other")


def test_vader_and_length_are_rewards() -> None:
    pytest.importorskip("vaderSentiment")
    samples = [PromptResponse("p", " a great day"), PromptResponse("p", " a horrible day")]
    good, bad = open_reward("vader")(samples)
    assert good > 0.5
    assert bad < -0.5
    assert open_reward("length")(samples) == [12.0, 15.0]


def test_calibration_equals_values_computed_by_hand() -> None:
    """Three judgements at probability 0.9, two of them right; one at 0.6, wrong; one tie."""
    calibration = Calibration()
    sure, half = math.log(0.9 / 0.1), math.log(0.6 / 0.4)
    calibration.add(torch.tensor([sure, sure, -sure, -half, 0.0]), torch.ones(5))
    table = calibration.table()
    assert [row[2] for row in table] == [1, 1, 3]
    assert table[0][:2] == (0.5, 0.5)
    assert table[1] == pytest.approx((0.6, 0.0, 1))
    assert table[2] == pytest.approx((0.9, 2 / 3, 3))
    means = calibration.means()
    assert means["calibration/ece"] == pytest.approx((0.6 + 3 * (0.9 - 2 / 3)) / 5)
    assert means["calibration/brier"] == pytest.approx((0.01 + 0.01 + 0.81 + 0.36 + 0.25) / 5)


def test_a_response_that_is_too_long_gets_no_reward(tmp_path: Path, model_folder: Path) -> None:
    """It would have to be truncated, so its reward would be that of another text. `require_rewards` raises an error."""
    long = PromptResponse("the cat", " sat" * 300, origin="prompts.jsonl:7")
    short = PromptResponse("the cat", " sat")
    for name in (str(run(tmp_path, model_folder)), f"implicit:{model_folder},{model_folder}"):
        judge = open_reward(name)
        rewards = rewards_of(judge, [short, long, short], "here")
        assert np.isnan(rewards).tolist() == [False, True, False]
        assert rewards[[0, 2]] == pytest.approx(rewards_of(judge, [short], "here")[0], abs=1e-6)
        assert np.isnan(rewards_of(judge, [long], "here")).all()
        with pytest.raises(ModelError, match=r"prompts.jsonl:7: 1 of 2 responses got no reward"):
            require_rewards(judge, [short, long], "here")


def test_samples_that_are_too_long_for_a_reward_model_are_dropped_and_counted(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    final, long = run(tmp_path, model_folder), " sat" * 300
    rows = [
        {"prompt": "once upon", "responses": [GOOD[0], BAD[0], long]},
        {"prompt": "we look at", "responses": [long, long + " on"]},
    ]
    samples = write_jsonl(tmp_path / "s.jsonl", rows)
    out = tmp_path / "pairs.jsonl"
    assert cli(["pairs", str(samples), "--reward", str(final), "--out", str(out)]) == 0
    output = " ".join(capsys.readouterr().err.split())
    assert "dropped 1 (line 2): no response got a reward" in output
    assert "not used in these groups: 1 without a reward" in output
    (row,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert row["responses"] == [GOOD[0], BAD[0]]


def test_pairs_that_are_too_long_are_scored_as_training_would_truncate_them(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The beginning of the prompt is truncated and counted, as in a run."""
    final = run(tmp_path, model_folder)
    long = {"prompt": "we look at" + " the moon" * 300 + " and", "chosen": " sat on", "rejected": " no"}
    data = write_jsonl(tmp_path / "long.jsonl", [long, {**long, "prompt": "and"}])
    assert cli(["score", "--reward", str(final), "--data", str(data), "--out", str(tmp_path / "s.jsonl"), "-q"]) == 0
    assert cli(["score", "--reward", str(final), "--data", str(data), "--out", str(tmp_path / "s.jsonl")]) == 0
    assert "the beginning of the prompt was truncated (max_length 256)" in capsys.readouterr().err
    scores = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert scores[1]["reward_chosen"] == pytest.approx(
        open_reward(str(final))([PromptResponse("and", " sat on")])[0], abs=1e-4
    )
    assert all(math.isfinite(row["margin"]) for row in scores)
    too_long = ["--max-length", "9000"]
    assert cli(["score", "--reward", str(final), "--data", str(data), *too_long]) == 2
    assert "but the model's context has 256" in capsys.readouterr().err
    assert cli(["score", "--reward", "length", "--data", str(data), *too_long]) == 2


def test_baseline_rewards_depend_only_on_length_or_a_hash() -> None:
    """length, short and random. The random reward of a text does not depend on the other texts."""
    responses = [
        PromptResponse("p", "a"),
        PromptResponse("p", "bbb"),
        PromptResponse("q", "a"),
        PromptResponse("p", "\ud83d"),
    ]
    assert open_reward("length")(responses) == [1, 3, 1, 1]
    assert open_reward("short")(responses) == [-1, -3, -1, -1]
    numbers = list(open_reward("random")(responses))
    assert numbers[:1] == list(open_reward("random")(responses[:1]))
    assert len(set(numbers)) == 4
    many = open_reward("random")([PromptResponse("p", str(i)) for i in range(2000)])
    assert all(0 <= x < 1 for x in many)
    assert sum(many) / len(many) == pytest.approx(0.5, abs=0.03)


def test_errors_of_a_reward_in_memory_name_its_line() -> None:
    def mine(responses: Any) -> list[float]:
        return [{}["score"] for _ in responses]

    line = mine.__code__.co_firstlineno + 1
    with pytest.raises(ConfigError, match=rf"test_reward.py:{line}: the reward function raised KeyError: 'score'"):
        rewards_of(mine, [PromptResponse("p", "a", origin="data:1")], "step 1")
