"""PPO from config to run folder: learning, metrics, resuming, invalid rewards, a diverging value model."""

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
from preftune.lifecycle.open_policy import open_policy
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


def vowels(responses: Sequence[PromptResponse]) -> list[float]:
    """Return the share of the letter a, which a tiny model can learn to produce in a few steps."""
    return [r.response.count("a") / max(1, len(r.response)) for r in responses]


def run(config: PPOConfig, reward: Any = vowels) -> Path:
    return ppo.run(config, reward=reward, display=Display(quiet=True))


def lines(tmp_path: Path, split: str = "train") -> list[dict[str, Any]]:
    every = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in every if line["split"] == split]


@pytest.mark.parametrize("kind", ["network", "head"])
def test_training_increases_the_reward(tmp_path: Path, model_folder: Path, kind: Any) -> None:
    settings = config(
        tmp_path,
        model_folder,
        value=ValueConfig(kind=kind),
        train=TrainConfig(epochs=100, max_steps=12),
        optim=OptimConfig(lr=1e-2, schedule="constant", warmup=0),
        ppo=PPOParameters(kl_coef=0.01, epochs=2, minibatches=2),
        rollout=RolloutConfig(prompts=6, responses=16, max_new_tokens=6),
        data=PromptConfig(train=str(tmp_path / "prompts.jsonl"), eval=0.2),
    )
    final = run(settings)
    training = lines(tmp_path)
    assert training[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert training[0]["value/mean"] == 0
    early, late = ([line["objective/score"] for line in training[part]] for part in (slice(0, 3), slice(-3, None)))
    assert sum(late) / 3 > sum(early) / 3 + 0.1
    assert training[-1]["objective/kl"] > 0.05
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
    assert names <= set(training[-1])
    assert AutoModelForCausalLM.from_pretrained(final).dtype == torch.float32


def test_the_ratio_is_1_in_the_first_update(tmp_path: Path, model_folder: Path) -> None:
    """In the only update, the policy is still the one that sampled the responses."""
    run(config(tmp_path, model_folder, ppo=PPOParameters(epochs=1, minibatches=1), train=TrainConfig(max_steps=1)))
    (line,) = lines(tmp_path)
    assert line["policy/ratio"] == pytest.approx(1, abs=1e-5)
    assert line["policy/clip_fraction"] == 0
    assert line["policy/approx_kl"] == pytest.approx(0, abs=1e-6)


def test_the_kl_coefficient_is_adapted_to_the_target(tmp_path: Path, model_folder: Path) -> None:
    settings = PPOParameters(kl_coef=0.05, kl_target=1000.0, kl_horizon=60, epochs=1, minibatches=1)
    run(config(tmp_path, model_folder, ppo=settings))
    coefficients = [line["objective/kl_coef"] for line in lines(tmp_path)]
    assert coefficients == pytest.approx([0.05 * (1 - 0.2 * 12 / 60) ** k for k in range(4)])


def weights(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return torch.cat([p.flatten() for p in model.parameters()])


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4, alpha=8.0)])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft, called here
def test_a_run_resumes_exactly_after_its_reward_function_failed(tmp_path: Path, model_folder: Path, lora: Any) -> None:
    """The function fails at step 3. After its repair, the run ends with the same weights as an uninterrupted one."""
    settings = PPOParameters(kl_target=0.5, kl_horizon=50, epochs=2, minibatches=2)
    whole = run(
        config(tmp_path / "a", model_folder, ppo=settings, lora=lora) if (tmp_path / "a").mkdir() is None else None
    )  # type: ignore[arg-type]
    (tmp_path / "b").mkdir()
    calls = 0

    def fails(responses: Sequence[PromptResponse]) -> list[float]:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise OSError("the reward server is gone")
        return vowels(responses)

    config_b = config(tmp_path / "b", model_folder, ppo=settings, lora=lora)
    with pytest.raises(ConfigError, match=r"(?s)the reward server is gone.*step 3"):
        run(config_b, fails)
    assert (tmp_path / "b" / "run" / "checkpoints" / "step-00000002").is_dir()
    resumed = run(config_b)
    before, after = lines(tmp_path / "a"), lines(tmp_path / "b")
    same = [key for key in before[0] if not key.endswith("_per_s")]
    assert [[line[key] for key in same] for line in before] == [[line[key] for key in same] for line in after]
    if lora is None:
        assert torch.equal(weights(whole), weights(resumed))
    else:
        assert isinstance(peft.AutoPeftModelForCausalLM.from_pretrained(resumed), peft.PeftModel)


def test_a_checkpoint_can_be_opened_as_a_policy(tmp_path: Path, model_folder: Path) -> None:
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
        ({"reward": "nothing/here"}, ModelError, "the Hub is unreachable"),
        ({"value": ValueConfig(path="missing/at/all")}, ModelError, "no such folder"),
    ],
)
def test_invalid_settings_are_refused_before_the_run_folder_is_created(
    tmp_path: Path, model_folder: Path, sections: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        ppo.run(config(tmp_path, model_folder, **sections), display=Display(quiet=True))
    assert not (tmp_path / "run").exists()


def test_a_response_without_eos_stops_the_run_with_missing_eos_stop(tmp_path: Path, model_folder: Path) -> None:
    settings = config(tmp_path, model_folder, rollout=RolloutConfig(prompts=3, max_new_tokens=2, missing_eos="stop"))
    with pytest.raises(NumericError, match=r"step 1, .*prompts.jsonl:\d: a response did not end within 2 tokens"):
        run(settings)


def test_responses_without_eos_get_the_penalty(tmp_path: Path, model_folder: Path) -> None:
    """With one new token, a response either ends with EOS or is cut off."""
    rollout = RolloutConfig(prompts=6, responses=8, max_new_tokens=1, missing_eos_penalty=2.0)
    run(
        config(tmp_path, model_folder, rollout=rollout, train=TrainConfig(max_steps=1)),
        lambda responses: [1.0] * len(responses),
    )
    (line,) = lines(tmp_path)
    assert line["objective/score"] == pytest.approx(1 - 2 * (1 - line["responses/ended"]))


def test_a_diverging_value_model_stops_the_run(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    real = rollouts.PPOModels.policy_and_values

    def diverge(self: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        logps, values = real(self, batch)
        return logps, values + (1e9 if calls > 5 else 0.0)

    monkeypatch.setattr(rollouts.PPOModels, "policy_and_values", diverge)
    with pytest.raises(
        NumericError, match=r"(?s)step 2, .*prompts.jsonl:\d: the value of a token is 1e\+09.*has diverged"
    ):
        run(config(tmp_path, model_folder))
    assert (tmp_path / "run" / "checkpoints" / "step-00000001").is_dir()


def test_a_run_folder_is_refused_with_another_config(tmp_path: Path, model_folder: Path) -> None:
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


def test_a_run_folder_is_refused_with_another_reward_model(tmp_path: Path, model_folder: Path) -> None:
    one = tmp_path / "one"
    shutil.copytree(model_folder, one)
    settings = config(tmp_path, model_folder, train=TrainConfig(max_steps=1))
    settings = settings.model_copy(update={"reward": f"implicit:{one},{model_folder}"})
    ppo.run(settings, display=Display(quiet=True))
    weights = load_file(one / "model.safetensors")
    save_file({name: value + 0.1 for name, value in weights.items()}, one / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunError, match="the reward has changed"):
        ppo.run(settings, display=Display(quiet=True))


def test_a_dry_run_writes_nothing(tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ppo.run(config(tmp_path, model_folder), reward=vowels, display=Display(), dry_run=True)
    output = capsys.readouterr().err
    assert "4 steps, 48 responses of up to 6 tokens; 4 updates per step" in output
    assert "memory: about" in output
    assert not (tmp_path / "run").exists()


def test_preference_data_can_be_used_as_prompts(tmp_path: Path, model_folder: Path, pairs_file: Path) -> None:
    run(config(tmp_path, model_folder, data=PromptConfig(train=str(pairs_file)), train=TrainConfig(max_steps=1)))
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["data"][str(pairs_file)] == {"read": 8, "kept": 8, "format": "preference"}


def test_the_attention_of_a_model_in_memory_is_restored(tmp_path: Path, tokenizer: Any) -> None:
    model = make_model()
    before = model.config._attn_implementation
    settings = config(tmp_path, Path("toy"), train=TrainConfig(max_steps=1))
    ppo.run(settings, model=model, tokenizer=tokenizer, reward=vowels, display=Display(quiet=True))
    assert model.config._attn_implementation == before
    (tmp_path / "again").mkdir()
    again = config(tmp_path / "again", Path("toy"), train=TrainConfig(max_steps=1))
    with pytest.raises(PreftuneError):
        ppo.run(again, model=model, tokenizer=tokenizer, reward=lambda responses: [], display=Display(quiet=True))
    assert model.config._attn_implementation == before


def test_no_step_is_lost_if_the_reward_fails_in_the_last_evaluation(tmp_path: Path, model_folder: Path) -> None:
    """The last evaluation fails after all steps. After the repair, the command only saves the final model."""
    data = PromptConfig(train=str(tmp_path / "prompts.jsonl"), eval=0.2)
    calls = 0

    def fails(responses: Sequence[PromptResponse]) -> list[float]:
        nonlocal calls
        calls += 1
        return [float("nan")] * len(responses) if calls == 4 else vowels(responses)  # start, two steps, end

    settings = config(tmp_path, model_folder, data=data, train=TrainConfig(max_steps=2, epochs=9))
    with pytest.raises(NumericError, match="evaluation at step 2"):
        run(settings, fails)
    assert (tmp_path / "run" / "checkpoints" / "step-00000002").is_dir()
    assert (run(settings) / "model.safetensors").is_file()


def test_a_step_that_fails_between_updates_does_not_change_the_checkpoint(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights in the middle of step 3 are not saved as those of step 2, so the resumed run has the same result."""
    train = TrainConfig(epochs=100, max_steps=4, save_every=1)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    whole = run(config(tmp_path / "a", model_folder, train=train))
    real, calls = ppo_loop.update, 0

    def fails(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2 * 4 + 2:
            raise NumericError("the gradient norm is nan")
        return real(*args)

    settings = config(tmp_path / "b", model_folder, train=train)
    with monkeypatch.context() as patch:
        patch.setattr(ppo_loop, "update", fails)
        with pytest.raises(NumericError):
            run(settings)
    assert torch.equal(weights(whole), weights(run(settings)))


def test_gradient_checkpointing_does_not_change_samples(tmp_path: Path, model_folder: Path) -> None:
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


def test_a_dry_run_does_not_change_a_model_in_memory(tmp_path: Path, tokenizer: Any) -> None:
    model = make_model()
    before = [(name, p.clone()) for name, p in model.named_parameters()]
    settings = config(tmp_path, Path("toy"), lora=LoraConfig(rank=2))
    ppo.run(settings, model=model, tokenizer=tokenizer, reward=vowels, display=Display(quiet=True), dry_run=True)
    assert model.config._attn_implementation != "preftune_segments"
    after = list(model.named_parameters())
    assert [name for name, _ in after] == [name for name, _ in before]
    assert all(torch.equal(p, q) for (_, p), (_, q) in zip(after, before, strict=True))


def test_reported_scores_are_not_whitened(tmp_path: Path, model_folder: Path) -> None:
    settings = PPOParameters(epochs=1, minibatches=1, whiten_rewards=True)
    run(
        config(tmp_path, model_folder, ppo=settings, train=TrainConfig(max_steps=1)),
        lambda responses: [3.0] * len(responses),
    )
    assert lines(tmp_path)[0]["objective/score"] == 3.0


@pytest.mark.parametrize(
    "section",
    [{"value": {"kind": "head", "path": "x"}}, {"rollout": {"missing_eos": "stop", "missing_eos_penalty": 1.0}}],
)
def test_unused_options_are_refused(tmp_path: Path, model_folder: Path, section: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"starts with zeros|has no effect|no use"):
        config(tmp_path, model_folder, **section)


@pytest.mark.parametrize("whiten", [True, False])
def test_the_first_update_of_a_step_is_the_same_for_every_kl_estimator(
    tmp_path: Path, model_folder: Path, whiten: bool
) -> None:
    """In step 2 the policy differs from the reference, so the KL in the reward or in the loss has a gradient."""
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


def test_a_finished_run_is_refused_with_another_model(tmp_path: Path, model_folder: Path, tokenizer: Any) -> None:
    settings = config(tmp_path, model_folder, train=TrainConfig(epochs=100, max_steps=1))
    options = {"tokenizer": tokenizer, "reward": vowels, "display": Display(quiet=True)}
    final = ppo.run(settings, model=make_model(), **options)
    assert ppo.run(settings, model=make_model(), **options) == final
    assert run(settings) == final
    with pytest.raises(RunError, match="not the one this run started from"):
        ppo.run(settings, model=make_model(seed=1), **options)
