"""PPO from config to folder: what it learns, what it reports, resuming, bad rewards, values that blow up."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import make_model, write_jsonl
from transformers import AutoModelForCausalLM

from preftune.config.sampling import PPOConfig, PPOParameters, PromptConfig, RolloutConfig, ValueConfig
from preftune.config.schema import LoraConfig, ModelConfig, OptimConfig, TrainConfig
from preftune.errors import ConfigError, DataError, ModelError, NumericError, PreftuneError, RunError
from preftune.lifecycle.saved import open_policy
from preftune.methods import ppo, ppo_loop, rollouts
from preftune.rewards.reward import PromptResponse
from preftune.train.display import Display

PROMPTS = ["the cat", "a dog", "once upon", "we can", "maybe", "the answer is"]


def config(tmp_path: Path, model: Path, **sections: Any) -> PPOConfig:
    data = tmp_path / "prompts.jsonl"
    if not data.exists():
        write_jsonl(data, [{"prompt": prompt} for prompt in PROMPTS])
    return PPOConfig(
        model=ModelConfig(path=str(model), dtype="fp32"),
        data=sections.pop("data", PromptConfig(train=str(data))),
        reward=sections.pop("reward", "length"),
        rollout=sections.pop("rollout", RolloutConfig(prompts=3, responses=4, max_new_tokens=6)),
        ppo=sections.pop("ppo", PPOParameters(kl_coef=0.05, epochs=2, minibatches=2)),
        optim=sections.pop("optim", OptimConfig(lr=2e-3, schedule="constant", warmup=0)),
        train=sections.pop("train", TrainConfig(epochs=100, max_steps=4)),
        out=str(tmp_path / "run"),
        **sections,
    )


def vowels(answers: Sequence[PromptResponse]) -> list[float]:
    """Share of the letter a: something that a tiny model can learn within a few steps."""
    return [a.response.count("a") / max(1, len(a.response)) for a in answers]


def run(config: PPOConfig, reward: Any = vowels) -> Path:
    return ppo.run(config, reward=reward, display=Display(quiet=True))


def lines(tmp_path: Path, split: str = "train") -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["split"] == split]


@pytest.mark.parametrize("kind", ["network", "head"])
def test_it_raises_the_reward(tmp_path: Path, model_folder: Path, kind: Any) -> None:
    wanted = config(
        tmp_path,
        model_folder,
        value=ValueConfig(kind=kind),
        train=TrainConfig(epochs=100, max_steps=12),
        optim=OptimConfig(lr=1e-2, schedule="constant", warmup=0),
        ppo=PPOParameters(kl_coef=0.01, epochs=2, minibatches=2),
        rollout=RolloutConfig(prompts=6, responses=16, max_new_tokens=6),
        data=PromptConfig(train=str(tmp_path / "prompts.jsonl"), eval=0.2),
    )
    final = run(wanted)
    found = lines(tmp_path)
    assert found[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert found[0]["value/mean"] == 0
    early, late = ([line["objective/score"] for line in found[part]] for part in (slice(0, 3), slice(-3, None)))
    assert sum(late) / 3 > sum(early) / 3 + 0.1
    assert found[-1]["objective/kl"] > 0.05
    held_out = lines(tmp_path, "eval")
    assert held_out[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert held_out[-1]["objective/score"] > held_out[0]["objective/score"]
    names = {
        "loss/policy",
        "loss/value",
        "policy/approx_kl",
        "policy/clip_fraction",
        "policy/entropy",
        "value/clip_fraction",
        "value/explained_variance",
        "returns/mean",
        "objective/kl_coef",
        "responses/ended",
    }
    assert names <= set(found[-1])
    assert AutoModelForCausalLM.from_pretrained(final).dtype == torch.float32


def test_the_first_ratio_is_1(tmp_path: Path, model_folder: Path) -> None:
    """One pass, one update: the policy that is updated is the one that sampled."""
    run(config(tmp_path, model_folder, ppo=PPOParameters(epochs=1, minibatches=1), train=TrainConfig(max_steps=1)))
    (line,) = lines(tmp_path)
    assert line["policy/ratio"] == pytest.approx(1, abs=1e-5)
    assert line["policy/clip_fraction"] == 0
    assert line["policy/approx_kl"] == pytest.approx(0, abs=1e-6)


def test_the_coefficient_is_steered(tmp_path: Path, model_folder: Path) -> None:
    settings = PPOParameters(kl_coef=0.05, kl_target=1000.0, kl_horizon=60, epochs=1, minibatches=1)
    run(config(tmp_path, model_folder, ppo=settings))
    found = [line["objective/kl_coef"] for line in lines(tmp_path)]
    assert found == pytest.approx([0.05 * (1 - 0.2 * 12 / 60) ** k for k in range(4)])


def weights(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return torch.cat([p.flatten() for p in model.parameters()])


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4, alpha=8.0)])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft, called here
def test_a_run_that_a_reward_broke_goes_on_exactly(tmp_path: Path, model_folder: Path, lora: Any) -> None:
    """A reward function that fails at step 3 loses nothing: repaired, the run ends with the same weights."""
    settings = PPOParameters(kl_target=0.5, kl_horizon=50, epochs=2, minibatches=2)
    whole = run(
        config(tmp_path / "a", model_folder, ppo=settings, lora=lora) if (tmp_path / "a").mkdir() is None else None
    )  # type: ignore[arg-type]
    (tmp_path / "b").mkdir()
    calls = 0

    def breaks(answers: Sequence[PromptResponse]) -> list[float]:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise OSError("the reward server is gone")
        return vowels(answers)

    broken = config(tmp_path / "b", model_folder, ppo=settings, lora=lora)
    with pytest.raises(ConfigError, match=r"(?s)the reward server is gone.*step 3"):
        run(broken, breaks)
    assert (tmp_path / "b" / "run" / "checkpoints" / "step-00000002").is_dir()
    resumed = run(broken)
    before, after = lines(tmp_path / "a"), lines(tmp_path / "b")
    same = [key for key in before[0] if not key.endswith("_per_s")]
    assert [[line[key] for key in same] for line in before] == [[line[key] for key in same] for line in after]
    if lora is None:
        assert torch.equal(weights(whole), weights(resumed))
    else:
        assert isinstance(peft.AutoPeftModelForCausalLM.from_pretrained(resumed), peft.PeftModel)


def test_a_checkpoint_is_a_policy(tmp_path: Path, model_folder: Path) -> None:
    final = run(config(tmp_path, model_folder, train=TrainConfig(max_steps=2, save_every=2)))
    cpu = torch.device("cpu")
    opened = open_policy(str(tmp_path / "run" / "checkpoints" / "step-00000002"), "--policy", torch.float32, cpu)
    assert opened.name == "run@2"
    assert torch.equal(torch.cat([p.flatten() for p in opened.model.parameters()]), weights(final))
    assert open_policy(str(tmp_path / "run"), "--policy", torch.float32, cpu).name == "run"


@pytest.mark.parametrize(
    ("sections", "error", "message"),
    [
        ({"data": PromptConfig(train="missing.jsonl")}, DataError, "no such file"),
        ({"rollout": RolloutConfig(max_new_tokens=400)}, ConfigError, "rollout.max_new_tokens"),
        ({"reward": "nothing/here"}, ModelError, "no such folder"),
        ({"value": ValueConfig(path="nowhere/at/all")}, ModelError, "no such folder"),
    ],
)
def test_refusals_come_before_the_first_step(
    tmp_path: Path, model_folder: Path, sections: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        ppo.run(config(tmp_path, model_folder, **sections), display=Display(quiet=True))
    assert not (tmp_path / "run").exists()


def test_a_response_without_end_stops_the_run_if_asked(tmp_path: Path, model_folder: Path) -> None:
    wanted = config(tmp_path, model_folder, rollout=RolloutConfig(prompts=3, max_new_tokens=2, missing_eos="stop"))
    with pytest.raises(NumericError, match=r"step 1, .*prompts.jsonl:\d: a response did not end within 2 tokens"):
        run(wanted)


def test_the_penalty_for_responses_without_end(tmp_path: Path, model_folder: Path) -> None:
    """Every response is cut off at one token that is not EOS, or ended by it."""
    rollout = RolloutConfig(prompts=6, responses=8, max_new_tokens=1, missing_eos_penalty=2.0)
    run(
        config(tmp_path, model_folder, rollout=rollout, train=TrainConfig(max_steps=1)),
        lambda answers: [1.0] * len(answers),
    )
    (line,) = lines(tmp_path)
    assert line["objective/score"] == pytest.approx(1 - 2 * (1 - line["responses/ended"]))


def test_values_that_blow_up_stop_the_run(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    real = rollouts.Actors.act

    def act(self: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        logps, values = real(self, batch)
        return logps, values + (1e9 if calls > 5 else 0.0)

    monkeypatch.setattr(rollouts.Actors, "act", act)
    with pytest.raises(NumericError, match=r"(?s)step 2, .*prompts.jsonl:\d: the value of a token is 1e\+09.*blown up"):
        run(config(tmp_path, model_folder))
    assert (tmp_path / "run" / "checkpoints" / "step-00000001").is_dir()


def test_another_config_in_the_same_folder_is_refused(tmp_path: Path, model_folder: Path) -> None:
    run(config(tmp_path, model_folder, train=TrainConfig(max_steps=1)))
    with pytest.raises(RunError, match=r"ppo\.kl_coef was 0\.05"):
        run(
            config(
                tmp_path,
                model_folder,
                ppo=PPOParameters(kl_coef=0.2, epochs=2, minibatches=2),
                train=TrainConfig(max_steps=1),
            )
        )


def test_another_reward_model_in_the_same_folder_is_refused(tmp_path: Path, model_folder: Path) -> None:
    one = tmp_path / "one"
    shutil.copytree(model_folder, one)
    wanted = config(tmp_path, model_folder, train=TrainConfig(max_steps=1))
    wanted = wanted.model_copy(update={"reward": f"implicit:{one},{model_folder}"})
    ppo.run(wanted, display=Display(quiet=True))
    weights = load_file(one / "model.safetensors")
    save_file({name: value + 0.1 for name, value in weights.items()}, one / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunError, match="the reward has changed"):
        ppo.run(wanted, display=Display(quiet=True))


def test_a_dry_run_writes_nothing(tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ppo.run(config(tmp_path, model_folder), reward=vowels, display=Display(), dry_run=True)
    said = capsys.readouterr().err
    assert "4 steps, 48 responses of up to 6 tokens; 4 updates a step" in said
    assert "memory: about" in said
    assert not (tmp_path / "run").exists()


def test_prompts_of_preference_data(tmp_path: Path, model_folder: Path, pairs_file: Path) -> None:
    run(config(tmp_path, model_folder, data=PromptConfig(train=str(pairs_file)), train=TrainConfig(max_steps=1)))
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["data"][str(pairs_file)] == {"read": 8, "kept": 8}


def test_a_model_in_memory_gets_its_attention_back(tmp_path: Path, tokenizer: Any) -> None:
    model = make_model()
    before = model.config._attn_implementation
    wanted = config(tmp_path, Path("toy"), train=TrainConfig(max_steps=1))
    ppo.run(wanted, model=model, tokenizer=tokenizer, reward=vowels, display=Display(quiet=True))
    assert model.config._attn_implementation == before
    (tmp_path / "again").mkdir()
    again = config(tmp_path / "again", Path("toy"), train=TrainConfig(max_steps=1))
    with pytest.raises(PreftuneError):
        ppo.run(again, model=model, tokenizer=tokenizer, reward=lambda answers: [], display=Display(quiet=True))
    assert model.config._attn_implementation == before


def test_a_reward_that_breaks_in_the_evaluation_loses_nothing(tmp_path: Path, model_folder: Path) -> None:
    """The last evaluation fails after all steps: the repaired command exports what was trained."""
    data = PromptConfig(train=str(tmp_path / "prompts.jsonl"), eval=0.2)
    calls = 0

    def breaks(answers: Sequence[PromptResponse]) -> list[float]:
        nonlocal calls
        calls += 1
        return [float("nan")] * len(answers) if calls == 4 else vowels(answers)  # start, two steps, end

    wanted = config(tmp_path, model_folder, data=data, train=TrainConfig(max_steps=2, epochs=9))
    with pytest.raises(NumericError, match="evaluation at step 2"):
        run(wanted, breaks)
    assert (tmp_path / "run" / "checkpoints" / "step-00000002").is_dir()
    assert (run(wanted) / "model.safetensors").is_file()


def test_a_step_that_breaks_in_the_middle_leaves_the_checkpoint_as_it_was(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of step 3 is no state of step 2: resumed, the run ends as if nothing had happened."""
    train = TrainConfig(epochs=100, max_steps=4, save_every=1)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    whole = run(config(tmp_path / "a", model_folder, train=train))
    real, calls = ppo_loop.update, 0

    def breaks(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2 * 4 + 2:
            raise NumericError("the gradient norm is nan")
        return real(*args)

    wanted = config(tmp_path / "b", model_folder, train=train)
    with monkeypatch.context() as patch:
        patch.setattr(ppo_loop, "update", breaks)
        with pytest.raises(NumericError):
            run(wanted)
    assert torch.equal(weights(whole), weights(run(wanted)))


def test_gradient_checkpointing_changes_no_sample(tmp_path: Path, model_folder: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    plain = config(tmp_path / "a", model_folder, train=TrainConfig(max_steps=2, epochs=9))
    run(plain)
    model = plain.model.model_copy(update={"gradient_checkpointing": True})
    run(
        config(tmp_path / "b", model_folder, train=TrainConfig(max_steps=2, epochs=9)).model_copy(
            update={"model": model}
        )
    )
    for one, other in zip(lines(tmp_path / "a"), lines(tmp_path / "b"), strict=True):
        for key in ("objective/score", "objective/kl", "policy/entropy", "responses/tokens"):
            assert one[key] == pytest.approx(other[key], rel=1e-3, abs=1e-5)


def test_a_dry_run_leaves_a_model_in_memory_alone(tmp_path: Path, tokenizer: Any) -> None:
    model = make_model()
    before = [(name, p.clone()) for name, p in model.named_parameters()]
    wanted = config(tmp_path, Path("toy"), lora=LoraConfig(rank=2))
    ppo.run(wanted, model=model, tokenizer=tokenizer, reward=vowels, display=Display(quiet=True), dry_run=True)
    assert model.config._attn_implementation != "preftune_segments"
    after = list(model.named_parameters())
    assert [name for name, _ in after] == [name for name, _ in before]
    assert all(torch.equal(p, q) for (_, p), (_, q) in zip(after, before, strict=True))


def test_whitened_rewards_are_not_what_is_reported(tmp_path: Path, model_folder: Path) -> None:
    settings = PPOParameters(epochs=1, minibatches=1, whiten_rewards=True)
    run(
        config(tmp_path, model_folder, ppo=settings, train=TrainConfig(max_steps=1)),
        lambda answers: [3.0] * len(answers),
    )
    assert lines(tmp_path)[0]["objective/score"] == 3.0


@pytest.mark.parametrize(
    "section",
    [{"value": {"kind": "head", "path": "x"}}, {"rollout": {"missing_eos": "stop", "missing_eos_penalty": 1.0}}],
)
def test_options_without_use_are_refused(tmp_path: Path, model_folder: Path, section: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no use|starts at 0"):
        config(tmp_path, model_folder, **section)


@pytest.mark.parametrize("whiten", [True, False])
def test_the_first_update_of_a_step_is_the_same_for_every_estimator_of_the_kl(
    tmp_path: Path, model_folder: Path, whiten: bool
) -> None:
    """In step 2 the policy differs from the reference; with one update the KL is in the reward or in the loss."""
    norms = {}
    estimators: tuple[Literal["k1", "k2", "k3"], ...] = ("k1", "k2", "k3")
    for estimator in estimators:
        folder = tmp_path / estimator
        folder.mkdir()
        settings = PPOParameters(kl_coef=0.5, kl_estimator=estimator, epochs=1, minibatches=1, whiten_advantages=whiten)
        optim = OptimConfig(lr=2e-2, schedule="constant", warmup=0)
        run(config(folder, model_folder, ppo=settings, optim=optim, train=TrainConfig(epochs=100, max_steps=2)))
        second = lines(folder)[1]
        norms[estimator] = second["grad_norm"]
        assert second["objective/kl"] > 0.05
        assert ("loss/kl" in second) == (estimator != "k1")
        if estimator != "k1":
            assert second["loss/kl"] > 0
    assert norms["k2"] == pytest.approx(norms["k1"], rel=1e-4)
    assert norms["k3"] == pytest.approx(norms["k1"], rel=1e-4)


def test_a_finished_run_of_one_model_is_not_that_of_another(tmp_path: Path, model_folder: Path, tokenizer: Any) -> None:
    wanted = config(tmp_path, model_folder, train=TrainConfig(epochs=100, max_steps=1))
    given = {"tokenizer": tokenizer, "reward": vowels, "display": Display(quiet=True)}
    final = ppo.run(wanted, model=make_model(), **given)
    assert ppo.run(wanted, model=make_model(), **given) == final
    assert run(wanted) == final
    with pytest.raises(RunError, match="not the one this run started from"):
        ppo.run(wanted, model=make_model(seed=1), **given)
