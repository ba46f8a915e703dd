"""The pipeline before and after: RLHF with a reward model and PPO, and DPO beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from preftune.report.page import Card


@dataclass(frozen=True, slots=True)
class Model:
    """A model in memory during a stage: its role, whether it is trained, and the bytes of its weights."""

    role: str
    trained: bool
    bytes: int


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of a pipeline: models, seconds, tokens that were sampled, and the settings that must be chosen."""

    name: str
    models: Sequence[Model]
    seconds: float
    generated_tokens: int
    knobs: Sequence[str]


def pipeline(rlhf: Sequence[Stage], dpo: Sequence[Stage], measured: str, rewards: tuple[float, float] | None) -> Card:
    """Return the card. `rewards` are those that both pipelines reached, if they were measured."""
    data = {"rlhf": [asdict(stage) for stage in rlhf], "dpo": [asdict(stage) for stage in dpo]}
    return Card(
        "pipeline",
        "The same judgements, with and without reinforcement learning",
        sentence(rlhf, dpo, rewards),
        "Each box is a stage; its width is what you choose. Squares are the models that it holds in memory, filled if "
        "they are trained.",
        "DPO needs two models, one stage and no samples.",
        "Stages that wait for each other: an error of the reward model is found by PPO and amplified.",
        measured,
        data,
        "pipeline",
    )


def sentence(rlhf: Sequence[Stage], dpo: Sequence[Stage], rewards: tuple[float, float] | None) -> str:
    """Return what both pipelines needed, and what they reached."""
    many, few = (max(len(stage.models) for stage in lane) for lane in (rlhf, dpo))
    slow, fast = (sum(stage.seconds for stage in lane) for lane in (rlhf, dpo))
    text = f"DPO trains with {few} models in memory and {fast:.0f} s, RLHF with {many} models and {slow:.0f} s"
    if rewards is None:
        return f"{text}, on the same judgements."
    return f"{text}. They reach a reward of {rewards[1]:.2f} and {rewards[0]:.2f}."
