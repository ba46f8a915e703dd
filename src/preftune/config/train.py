"""The sections `train` and `best` of the config: length of a run, evaluations, checkpoints, and which weights to keep.

docs/lookup/configuration.md is generated from the field descriptions.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from preftune.config.section import Section
from preftune.config.values import HIGHER, LOWER, positive, read_best, read_metric


class TrainConfig(Section):
    epochs: int = Field(1, ge=1)
    """Passes over the training data, each in a different order."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many optimizer steps."""
    seed: int = Field(0, ge=0)
    """Seed for the order of the data and for the initial weights of an adapter."""
    log_every: int = Field(1, ge=1)
    """Steps between lines of metrics.jsonl. A line holds the means since the previous line; in ppo, the values of
    one step."""
    eval_every: int | None = Field(None, ge=1)
    """Steps between evaluations. null: evaluate before the first and after the last step."""
    save_every: int | Literal["auto"] | None = "auto"
    """Steps between checkpoints. auto: every two minutes, or less often if saving would take more than 2.5 % of the
    time. null: only when the run is stopped or fails, and at its end. The newest two checkpoints are kept."""
    save_end: bool = True
    """Save a checkpoint after the last step, from which a finished run continues if you raise train.epochs or
    train.max_steps. It takes three times the memory of the trained weights in fp32. The runs inside of preftune iterate
    and data noise keep none."""

    @field_validator("save_every")
    @classmethod
    def _at_least_one(cls, value: int | str | None) -> int | str | None:
        return positive(value)


class BestConfig(Section):
    metric: Annotated[str, BeforeValidator(read_metric)]
    """Metric of the evaluations by which they are compared, e.g. loss, rewards/accuracies, or in ppo objective/score.
    `best: loss` is short for `best: {metric: loss}`. The evaluation before the first step counts, too."""
    direction: Literal["auto", "lower", "higher"] = "auto"
    """Which values of the metric are better. auto: lower for losses, calibration and drift, higher for rewards."""
    final: Literal["best", "last"] = "best"
    """Weights in `final/`. best: those of the best evaluation. last: those of the last step; the best ones are in
    `checkpoints/best-XXXXXXXX`."""
    patience: int | None = Field(None, ge=1)
    """Stop early after this many evaluations in a row that are not better. null: never."""
    min_change: float = Field(0.0, ge=0)
    """For `patience`, an evaluation is better only if the metric improves by more than this."""

    @model_validator(mode="after")
    def _needs_direction(self) -> BestConfig:
        if self.direction == "auto" and self.metric not in (*LOWER, *HIGHER):
            names = ", ".join((*LOWER, *HIGHER))
            raise ValueError(f"set best.direction to lower or higher, or use one of the metrics {names}")
        return self


BestSection = Annotated[BestConfig | None, BeforeValidator(read_best)]
