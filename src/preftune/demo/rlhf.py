"""The demo's other way: a reward model from the same judgements, and PPO against it with four models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from preftune.config.sampling import PPOConfig, PPOParameters, PromptConfig, RolloutConfig
from preftune.config.schema import BatchConfig, DataConfig, ModelConfig, OptimConfig, RewardConfig, TrainConfig
from preftune.measures.frontier import Point
from preftune.methods import ppo, reward
from preftune.train.display import Display


@dataclass(frozen=True, slots=True)
class Amount:
    """How much PPO: the KL coefficients of its runs, and their steps."""

    coefficients: tuple[float, ...] = (0.3, 0.1)
    steps: int = 40


def train_reward_model(out: Path, start: Path, display: Display) -> Path:
    """From the judgements that DPO learns from."""
    config = RewardConfig(
        model=ModelConfig(path=str(start), dtype="fp32"),
        data=DataConfig(train=str(out / "preferences.jsonl"), eval=0.1, max_length=128),
        optim=OptimConfig(lr=2e-3, schedule="cosine"),
        batch=BatchConfig(pairs=112),
        train=TrainConfig(epochs=3),
        normalise=False,  # its rewards then have the scale of the judgements, and kl_coef that of DPO's beta
        out=str(out / "reward-model"),
    )
    return reward.run(config, display=display)


def train_ppo(out: Path, start: Path, judge: Path, coefficient: float, steps: int, display: Display) -> Path:
    """PPO against the reward model."""
    config = PPOConfig(
        model=ModelConfig(path=str(start), dtype="fp32"),
        data=PromptConfig(train=str(out / "preferences.jsonl")),
        reward=str(judge),
        rollout=RolloutConfig(prompts=50, responses=4, max_new_tokens=64),
        ppo=PPOParameters(kl_coef=coefficient, epochs=2),
        optim=OptimConfig(lr=3e-4, schedule="linear", warmup=0),
        train=TrainConfig(epochs=steps, max_steps=steps),
        out=str(out / f"ppo-kl-{coefficient:g}"),
    )
    return ppo.run(config, display=display)


def points(
    out: Path,
    start: Path,
    amount: Amount,
    judged: Callable[[str, Path], Point],
    display: Display,
    say: Callable[[str], None],
) -> list[Point]:
    """One point for each KL coefficient; `judged` samples from a folder and measures with the true reward."""
    judge = train_reward_model(out, start, display)
    found = []
    for coefficient in amount.coefficients:
        found.append(
            judged(f"PPO, KL {coefficient:g}", train_ppo(out, start, judge, coefficient, amount.steps, display))
        )
        reached = f"true reward {found[-1].reward:+.3f} at KL {found[-1].kl:.3f}"
        say(f"      PPO at KL coefficient {coefficient:g}: {reached}")
    return found
