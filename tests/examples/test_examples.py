"""The examples of a loss, a reward and a format run through the command line on a toy model."""

from __future__ import annotations

import importlib.util
import json
import shlex
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tests.conftest import PAIRS, write_jsonl

from preftune import Judgement, PairLogps
from preftune.cli.main import run
from preftune.losses.pairwise import sigmoid

ROOT = Path(__file__).resolve().parents[2]
REVIEWS = [
    {"question": "the cat", "answers": [{"text": " no", "stars": 1}, {"text": " sat on the mat", "stars": 5}]},
    {"question": "a dog", "answers": [{"text": " yes.", "stars": 3}, {"text": " ran", "stars": 3}]},
    {"question": "we can", "answers": [{"text": f" guess {n}", "stars": n} for n in (2, 4, 3)]},
]


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands(name: str) -> list[list[str]]:
    """The preftune commands in the docstring of an example."""
    lines = str(example(name).__doc__).splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("    preftune ")]


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the examples and configs of the repository, and data with the names that the examples use."""
    monkeypatch.chdir(tmp_path)
    for name in ("examples", "configs"):
        Path(name).symlink_to(ROOT / name)
    write_jsonl(Path("prefs.jsonl"), PAIRS)
    write_jsonl(Path("prompts.jsonl"), [{"prompt": pair["prompt"]} for pair in PAIRS])
    write_jsonl(Path("reviews.jsonl"), [*REVIEWS, *({**REVIEWS[0], "question": f"the cat {i}"} for i in range(9))])
    write_jsonl(Path("samples.jsonl"), [{"prompt": "the cat", "responses": [" sat", " no no", " on a mat"]}])


def test_the_loss_trains(model_folder: Path) -> None:
    (words,) = commands("loss")
    words = [word.replace("MODEL", str(model_folder)) for word in words]
    assert run([*words, "data.max_length=64", "batch.pairs=4", "data.eval=null", "monitor=null", "out=run"]) == 0
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] == pytest.approx(0.25 * 0.6931, abs=1e-4)  # margin 0: (1 - 1/2)^2 ln 2


def test_the_loss_with_gamma_0_is_dpo() -> None:
    chosen, rejected, lengths = torch.tensor([-3.0, -9.0]), torch.tensor([-5.0, -2.0]), torch.tensor([2, 3])
    policy = PairLogps(chosen, rejected, lengths, lengths)
    reference = PairLogps(rejected, chosen, lengths, lengths)
    expected = sigmoid(policy, reference, torch.ones(2), beta=0.3)
    assert torch.equal(example("loss").focal(policy, reference, beta=0.3, gamma=0.0), expected)


def test_the_reward_scores_pairs_and_samples() -> None:
    score, pairs, _ = commands("reward")
    assert run(score) == 0
    assert len(Path("scores.jsonl").read_text().splitlines()) == len(PAIRS)
    assert run([*pairs, "--out", "pairs.jsonl"]) == 0
    (pair,) = map(json.loads, Path("pairs.jsonl").read_text().splitlines())
    (judgement,) = pair["judgements"]
    assert pair["responses"][judgement["better"]] == " on a mat"


def test_the_reward_trains_a_policy_with_ppo(model_folder: Path) -> None:
    words = commands("reward")[2]
    assert run(["init", "ppo", f"model.path={model_folder}", "data.train=prompts.jsonl"]) == 0
    small = ["rollout.prompts=4", "rollout.max_new_tokens=8", "data.eval=null"]
    small += ["ppo.minibatches=1", "train.max_steps=1", "train.eval_every=null", "out=ppo"]
    assert run([*words, *small]) == 0


def test_the_reward_prefers_new_words_and_the_target_length() -> None:
    numbers = " ".join(map(str, range(20)))
    rewards = example("reward").concise(["", "", "1 2", "", ""], ["a " * 20, numbers, numbers, "a", ""])
    assert rewards == [0.05, 1.0, 0.9, pytest.approx(0.05), None]


def test_the_format_is_checked_and_trains(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check, train = commands("format")
    assert run(check) == 0
    words = [word.replace("MODEL", str(model_folder)) for word in train]
    assert run([*words, "data.max_length=64", "data.eval=null", "monitor=null", "out=run"]) == 0
    assert "12 rows read" in capsys.readouterr().err


def test_the_format_orders_answers_by_stars_and_skips_ties() -> None:
    first, tied, three = map(example("format").stars, REVIEWS)
    assert first.responses == (" sat on the mat", " no")
    assert first.judgements == (Judgement(0, 1),)
    assert tied is None
    assert [(j.better, j.worse) for j in three.judgements] == [(0, 1), (0, 2), (1, 2)]
