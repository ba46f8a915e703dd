"""What RLHF and DPO need on the same judgements: measured in the demo's comparison, or a recorded measurement."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from preftune.report.figures.pipeline import Model, Stage, pipeline
from preftune.report.page import Card

DPO_KNOBS = ("beta", "learning rate", "epochs")
REWARD_KNOBS = ("learning rate", "epochs")
PPO_KNOBS = (
    "KL coefficient", "learning rate", "clip range", "epochs per rollout", "prompts and samples per step",
    "GAE lambda", "weight of the value loss", "number of steps",
)  # fmt: skip

#: benchmarks/comparison.py on the model stories260k: CPU seconds and sampled tokens, means over three seeds. The
#: newest row "comparison" in benchmarks/results.jsonl; a test compares them.
RECORDED = {"DPO 0.1": (77.1, 0), "reward model": (73.4, 0), "PPO 0.1": (528.8, 614400)}
RECORDED_BYTES = 1_056_000  # 264 thousand weights in fp32
RECORDED_TEXT = (
    "Recorded, not from this run: means over three seeds of benchmarks/comparison.py with a language model of 260 "
    "thousand weights, in CPU seconds on an AMD EPYC. For the figures of this run: preftune demo --with-ppo."
)


def recorded() -> Card:
    """Return the figure with the recorded comparison."""
    seconds, tokens = zip(*RECORDED.values(), strict=True)
    return _card(seconds, tokens[2], RECORDED_BYTES, RECORDED_TEXT, None)


def measured(
    seconds: tuple[float, float, float], ppo_folder: Path, model_bytes: int, rewards: tuple[float, float]
) -> Card:
    """Return the figure with the seconds of DPO, of the reward model and of PPO in this run."""
    text = "Measured in this run: the seconds of DPO, of the reward model and of the last PPO run, on the same pairs."
    return _card(seconds, sampled_tokens(ppo_folder), model_bytes, text, rewards)


def sampled_tokens(folder: Path) -> int:
    """Return how many tokens a PPO run has sampled: the mean length of each step's samples times their number."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rollout = json.loads((folder / "manifest.json").read_text())["identity"]["config"]["rollout"]
    per_step = int(rollout["prompts"]) * int(rollout["responses"])
    mean_lengths = [float(line["responses/tokens"]) for line in lines if line["split"] == "train"]
    return round(sum(mean_lengths) * per_step)


def _card(seconds: Sequence[float], tokens: int, size: int, text: str, rewards: tuple[float, float] | None) -> Card:
    def model(role: str, *, trained: bool = False) -> Model:
        return Model(role, trained, size)

    dpo_s, reward_s, ppo_s = seconds
    policy, reference = model("policy", trained=True), model("reference")
    reward, value = model("reward model"), model("value model", trained=True)
    rlhf = [
        Stage("reward model", [model("reward model", trained=True)], reward_s, 0, REWARD_KNOBS),
        Stage("PPO", [policy, reference, reward, value], ppo_s, tokens, PPO_KNOBS),
    ]
    return pipeline(rlhf, [Stage("DPO", [policy, reference], dpo_s, 0, DPO_KNOBS)], text, rewards)
