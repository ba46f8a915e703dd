"""A signal is answered before the next batch, token or row, at any moment of a run. The resumed run ends the same.

The signals are sent from inside the code that they interrupt, so every test is deterministic.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import PAIRS, write_jsonl
from tests.resume.runs import config, metrics, quiet, weights

from preftune.chat.render import Renderer
from preftune.config.sampling import PPOConfig, PPOParameters, PromptConfig, RolloutConfig
from preftune.config.schema import (
    BatchConfig,
    DataConfig,
    DPOConfig,
    ModelConfig,
    MonitorConfig,
    OptimConfig,
    RewardConfig,
    SFTConfig,
    TrainConfig,
)
from preftune.errors import Stopped
from preftune.lifecycle import drawn_pairs
from preftune.lifecycle.task import ResponseTask
from preftune.methods import dpo, ppo, reward, sft
from preftune.model import generate, reference
from preftune.model.reference_cache import Store
from preftune.rewards.reward import PromptResponse
from preftune.train.run import Run


def send_at_call(
    patch: pytest.MonkeyPatch, owner: Any, name: str, number: int, when: Callable[[], bool] = lambda: True
) -> list[int]:
    """Send SIGTERM at the beginning of call `number` of `owner.name`. Return a list that gets a 1 for each call after
    it. Only calls for which `when()` is true are counted."""
    original, calls, later = getattr(owner, name), list[int](), list[int]()

    def call(*arguments: Any, **keywords: Any) -> Any:
        if when():
            calls.append(1)
            if len(calls) == number:
                os.kill(os.getpid(), signal.SIGTERM)
            elif len(calls) > number:
                later.append(1)
        return original(*arguments, **keywords)

    patch.setattr(owner, name, call)
    return later


def without_gradients() -> bool:
    return not torch.is_grad_enabled()


def evaluated_config(pairs: Path, model: Path, out: Path) -> DPOConfig:
    """Twelve steps, evaluated at 0, 3, 6, 9 and 12; the held-out data are one batch, the monitor samples six tokens."""
    monitor = MonitorConfig(prompts=2, max_new_tokens=6)
    train = TrainConfig(epochs=4, eval_every=3, log_every=2)
    return config(pairs, model, out, monitor=monitor, train=train, report_pairs=0)


def require_equal(whole: Path, parts: Path) -> None:
    assert metrics(whole.parent) == metrics(parts.parent)
    one, two = weights(whole), weights(parts)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(("evaluation", "step"), [(1, 0), (2, 3), (3, 6), (5, 12)])
@pytest.mark.parametrize("place", ["held-out data", "monitor's tokens"])
def test_a_stop_in_an_evaluation_repeats_it(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, evaluation: int, step: int, place: str
) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    whole = dpo.run(evaluated_config(data, model_folder, tmp_path / "whole"), display=quiet())
    settings = evaluated_config(data, model_folder, tmp_path / "parts")
    with monkeypatch.context() as patch:
        if place == "held-out data":  # each evaluation measures the monitor's groups, and then the held-out groups
            later = send_at_call(patch, ResponseTask, "measure", 2 * evaluation, without_gradients)
        else:
            later = send_at_call(patch, generate._DrawToken, "__call__", 6 * (evaluation - 1) + 3)
        what = f"stopped after step {step} of 12; a checkpoint is saved" if step else "stopped before the first step"
        with pytest.raises(Stopped, match=what):
            dpo.run(settings, display=quiet())
    assert later == []
    if step:
        assert [m["step"] for m in metrics(tmp_path / "parts") if m["split"] == "eval"] == list(range(0, step, 3))
    assert len(list((tmp_path / "parts").glob("checkpoints/*"))) == (1 if step else 0)
    require_equal(whole, dpo.run(settings, display=quiet()))


def test_a_stop_in_the_repeated_evaluation_repeats_it_again(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    whole = dpo.run(evaluated_config(data, model_folder, tmp_path / "whole"), display=quiet())
    settings = evaluated_config(data, model_folder, tmp_path / "parts")
    for call in (4, 1):
        with monkeypatch.context() as patch:
            send_at_call(patch, ResponseTask, "measure", call, without_gradients)
            with pytest.raises(Stopped, match="stopped after step 3 of 12"):
                dpo.run(settings, display=quiet())
    require_equal(whole, dpo.run(settings, display=quiet()))


def test_a_run_that_is_killed_after_a_repeated_evaluation_has_its_metrics_once(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest checkpoint is still the one before the evaluation."""
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    whole = dpo.run(evaluated_config(data, model_folder, tmp_path / "whole"), display=quiet())
    settings = evaluated_config(data, model_folder, tmp_path / "parts")
    with monkeypatch.context() as patch:
        send_at_call(patch, ResponseTask, "measure", 4, without_gradients)
        with pytest.raises(Stopped):
            dpo.run(settings, display=quiet())

    class Killed(BaseException):
        pass

    def kill(self: Run) -> bool:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Run, "stop_requested", kill)  # called after step 4
        with pytest.raises(Killed):
            dpo.run(settings, display=quiet())
    assert [(m["step"], m["split"]) for m in metrics(tmp_path / "parts")][-2:] == [(3, "eval"), (4, "train")]
    require_equal(whole, dpo.run(settings, display=quiet()))


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (1, "stopped before the first step"),
        (2, "stopped after step 1 of 16"),
        (3, "stopped after step 1 of 16"),
        (4, "stopped after step 2 of 16"),
        (15, "stopped after step 7 of 16"),
    ],
)
def test_a_stop_between_two_micro_batches_repeats_the_step(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, call: int, what: str
) -> None:
    """Each step has two micro-batches. A signal in the first is answered before the second, and a signal in the second
    after the step."""
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)

    def settings(out: str) -> DPOConfig:
        rest: dict[str, Any] = {"batch": BatchConfig(pairs=2, tokens=16), "data": DataConfig(train=str(data))}
        return config(data, model_folder, tmp_path / out, train=TrainConfig(epochs=4, log_every=2), **rest)

    whole = dpo.run(settings("whole"), display=quiet())
    with monkeypatch.context() as patch:
        later = send_at_call(patch, ResponseTask, "loss_of", call)
        with pytest.raises(Stopped, match=what):
            dpo.run(settings("parts"), display=quiet())
    assert later == []
    require_equal(whole, dpo.run(settings("parts"), display=quiet()))


def test_a_stop_in_the_reference_pass_keeps_what_is_computed(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    settings = config(data, model_folder, tmp_path / "run", batch=BatchConfig(pairs=2, tokens=16))
    saved: list[int] = []
    original = Store.flush
    with monkeypatch.context() as patch:
        patch.setattr(Store, "flush", lambda self: (saved.append(len(self._new)), original(self)))
        later = send_at_call(patch, reference, "logps", 2)
        with pytest.raises(Stopped, match="stopped before the first step"):
            dpo.run(settings, display=quiet())
    assert later == []
    assert saved[-1] > 0
    computed = send_at_call(monkeypatch, reference, "logps", 0)
    dpo.run(settings, display=quiet())
    assert len(computed) < len(PAIRS)


def test_a_stop_while_reading_and_tokenising_reads_no_further_row(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    (tmp_path / "own.py").write_text(
        "from preftune import PreferenceGroup, Judgement\nimport os, signal\nrows = []\n"
        "def parse(row):\n"
        "    rows.append(row)\n"
        "    if len(rows) == 3: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return PreferenceGroup(row['prompt'], (row['chosen'], row['rejected']), (Judgement(0, 1),))\n"
    )
    own = DataConfig(train=str(data), format=f"{tmp_path / 'own.py'}:parse")
    with pytest.raises(Stopped, match="stopped before the first step"):
        dpo.run(config(data, model_folder, tmp_path / "run", data=own), display=quiet())
    later = send_at_call(monkeypatch, Renderer, "_render", 3)
    with pytest.raises(Stopped, match="stopped before the first step"):
        dpo.run(config(data, model_folder, tmp_path / "run"), display=quiet())
    assert later == []
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["sft", "reward"])
def test_a_stop_in_an_evaluation_of_sft_and_reward_training_repeats_it(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    schema, module = {"sft": (SFTConfig, sft), "reward": (RewardConfig, reward)}[method]

    def settings(out: str) -> Any:
        return schema(
            model=ModelConfig(path=str(model_folder), dtype="fp32"),
            data=DataConfig(train=str(data), eval=0.25),
            batch=BatchConfig(pairs=2),
            train=TrainConfig(epochs=2, eval_every=2),
            out=str(tmp_path / out),
            **({"report_pairs": 0} if method == "reward" else {}),
        )

    whole = module.run(settings("whole"), display=quiet())
    with monkeypatch.context() as patch:
        later = send_at_call(patch, ResponseTask, "measure", 2, without_gradients)
        with pytest.raises(Stopped, match="stopped after step 2 of"):
            module.run(settings("parts"), display=quiet())
    assert later == []
    require_equal(whole, module.run(settings("parts"), display=quiet()))


def vowels(responses: Sequence[PromptResponse]) -> list[float]:
    return [sum(c in "aeiou" for c in r.response) / 10 for r in responses]


@pytest.mark.parametrize(
    ("owner", "name", "call", "step"),
    [
        (generate._DrawToken, "__call__", 3, 0),  # evaluation at step 0
        (generate._DrawToken, "__call__", 6 + 4, 0),  # rollout of step 1
        (generate._DrawToken, "__call__", 6 + 6 + 2, 1),  # rollout of step 2
        (generate._DrawToken, "__call__", 6 + 12 + 3, 2),  # evaluation after step 2
        (ppo.optimise.__globals__["ppo"], "policy_loss", 2, 1),  # first update of step 1: all updates are completed
    ],
)
def test_a_stopped_ppo_run_resumes_exactly(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, step: int
) -> None:
    data = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": row["prompt"]} for row in PAIRS])

    def settings(out: str) -> PPOConfig:
        return PPOConfig(
            model=ModelConfig(path=str(model_folder), dtype="fp32"),
            data=PromptConfig(train=str(data), eval=0.25),
            reward="vader",
            rollout=RolloutConfig(prompts=2, responses=2, max_new_tokens=6),
            ppo=PPOParameters(kl_target=0.5, kl_horizon=50, epochs=2, minibatches=2),
            optim=OptimConfig(lr=1e-3),
            train=TrainConfig(epochs=2, max_steps=4, eval_every=2),
            out=str(tmp_path / out),
        )

    whole = ppo.run(settings("whole"), reward=vowels, display=quiet())
    with monkeypatch.context() as patch:
        later = send_at_call(patch, owner, name, call)
        what = f"stopped after step {step} of 4; a checkpoint is saved" if step else "stopped before the first step"
        with pytest.raises(Stopped, match=what):
            ppo.run(settings("parts"), reward=vowels, display=quiet())
    assert len(later) == (3 - 1 if name == "policy_loss" else 0)
    resumed = ppo.run(settings("parts"), reward=vowels, display=quiet())
    rates = ("responses_per_s",)
    one, two = (
        [{k: v for k, v in m.items() if k not in rates} for m in metrics(tmp_path / n)] for n in ("whole", "parts")
    )
    assert one == two
    assert all(torch.equal(a, weights(resumed)[key]) for key, a in weights(whole).items())


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_stop_while_the_pairs_of_the_report_are_scored_repeats_the_scoring(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    train = TrainConfig(epochs=4, log_every=2)
    whole = dpo.run(config(data, model_folder, tmp_path / "whole", train=train), display=quiet())
    with monkeypatch.context() as patch:
        later = send_at_call(patch, drawn_pairs, "write_json", number)
        with pytest.raises(Stopped):
            dpo.run(config(data, model_folder, tmp_path / "parts", train=train), display=quiet())
        assert len(later) <= 2  # the files of this moment are completed or begun again
    parts = dpo.run(config(data, model_folder, tmp_path / "parts", train=train), display=quiet())
    require_equal(whole, parts)
    one, two = ({p.name: p.read_text() for p in (run.parent / "drawn_pairs").iterdir()} for run in (whole, parts))
    assert one == two
