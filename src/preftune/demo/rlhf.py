"""RLHF in the demo, for comparison: a reward model on the same pairs, and PPO against it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from preftune.config.sampling import PPOConfig, PPOParameters, PromptConfig, RolloutConfig
from preftune.config.schema import BatchConfig, DataConfig, ModelConfig, OptimConfig, RewardConfig, TrainConfig
from preftune.measures.frontier import Point
from preftune.methods import ppo, reward
from preftune.train.display import Display


@dataclass(frozen=True, slots=True)
class PPOScale:
    """The size of the comparison: the KL coefficients of the PPO runs, and their number of steps."""

    coefficients: tuple[float, ...] = (0.3, 0.1)
    steps: int = 40


def train_reward_model(out: Path, start: Path, display: Display) -> Path:
    """Train a reward model on the pairs that DPO is trained on."""
    config = RewardConfig(
        model=ModelConfig(path=str(start), dtype="fp32"),
        data=DataConfig(train=str(out / "preferences.jsonl"), eval=0.1, max_length=128),
        optim=OptimConfig(lr=2e-3, schedule="cosine"),
        batch=BatchConfig(pairs=112),
        train=TrainConfig(epochs=3),
        normalise=False,  # so that rewards have the scale of the labels, and kl_coef that of DPO's beta
        out=str(out / "reward-model"),
    )
    return reward.run(config, display=display)


def train_ppo(out: Path, start: Path, reward_model: Path, coefficient: float, steps: int, display: Display) -> Path:
    """Run PPO against the reward model."""
    config = PPOConfig(
        model=ModelConfig(path=str(start), dtype="fp32"),
        data=PromptConfig(train=str(out / "preferences.jsonl")),
        reward=str(reward_model),
        rollout=RolloutConfig(prompts=50, responses=4, max_new_tokens=64),
        ppo=PPOParameters(kl_coef=coefficient, epochs=2),
        optim=OptimConfig(lr=3e-4, schedule="linear", warmup=0),
        train=TrainConfig(epochs=steps, max_steps=steps),
        out=str(out / f"ppo-kl-{coefficient:g}"),
    )
    return ppo.run(config, display=display)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Reward and KL for each KL coefficient, the seconds of both stages, and the folder of the last PPO run."""

    points: list[Point]
    reward_model_s: float
    ppo_s: float
    folder: Path


def points(
    out: Path,
    start: Path,
    scale: PPOScale,
    measure: Callable[[str, Path], Point],
    display: Display,
    say: Callable[[str], None],
) -> Comparison:
    """Run RLHF for each KL coefficient. `measure` samples from a folder and uses the true reward."""
    began = time.perf_counter()
    folder = reward_model = train_reward_model(out, start, display)
    reward_model_s, ppo_s = time.perf_counter() - began, 0.0
    measured = []
    for coefficient in scale.coefficients:
        began = time.perf_counter()
        folder = train_ppo(out, start, reward_model, coefficient, scale.steps, display)
        ppo_s = time.perf_counter() - began
        point = measure(f"PPO, KL {coefficient:g}", folder)
        say(f"      PPO, KL coefficient {coefficient:g}: true reward {point.reward:+.3f} at KL {point.kl:.3f} nats")
        measured.append(point)
    return Comparison(measured, reward_model_s, ppo_s, folder.parent if folder.name == "final" else folder)
