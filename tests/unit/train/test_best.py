"""Which evaluation is the best one, and the number of evaluations since then."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from preftune.config.schema import BestConfig, DPOConfig
from preftune.errors import ConfigError
from preftune.train.best import Best, best_evaluation, value_of


def section(metric: str, **more: Any) -> dict[str, Any]:
    return BestConfig(metric=metric, **more).model_dump()


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("loss", (3.0, 1.0, 2.0, 1.0), Best(10, 1.0, 2)),
        ("loss", (3.0, 2.0, 1.0), Best(20, 1.0, 0)),
        ("loss", (math.nan, 2.0, math.inf), Best(10, 2.0, 1)),
        ("loss", (1.0, 2.0), Best(0, 1.0, 1)),
        ("calibration/brier", (0.3, 0.2), Best(10, 0.2, 0)),
        ("rewards/accuracies", (0.5, 0.7, 0.7, 0.6), Best(10, 0.7, 2)),
        ("objective/score", (-2.0, -1.0), Best(10, -1.0, 0)),
    ],
)
def test_the_first_of_the_best_evaluations_counts(metric: str, values: tuple[float, ...], best: Best) -> None:
    evaluations = [(10 * i, value) for i, value in enumerate(values)]
    assert best_evaluation(evaluations, section(metric)) == best
    flipped = section("own", direction="higher" if metric in ("loss", "calibration/brier") else "lower")
    assert best_evaluation([(step, -value) for step, value in evaluations], flipped) == replace(best, value=-best.value)


@pytest.mark.parametrize(
    ("values", "min_change", "best"),
    [
        ((1.0, 0.95, 0.91, 0.85), 0.1, Best(30, 0.85, 0)),  # 0.15 better than the first
        ((1.0, 0.95, 0.91, 0.92), 0.1, Best(20, 0.91, 3)),  # the best one, but never better by more than 0.1
        ((1.0, 0.8, 0.75, 0.71), 0.1, Best(30, 0.71, 2)),
        ((1.0, 0.9, 0.9), 0.0, Best(10, 0.9, 1)),
    ],
)
def test_a_small_improvement_does_not_restart_the_patience(
    values: tuple[float, ...], min_change: float, best: Best
) -> None:
    evaluations = [(10 * i, value) for i, value in enumerate(values)]
    assert best_evaluation(evaluations, section("loss", min_change=min_change)) == best


def test_without_a_value_no_evaluation_is_best() -> None:
    assert best_evaluation([], section("loss")) is None
    assert best_evaluation([(0, math.nan)], section("loss")) is None
    assert math.isnan(value_of({"step": 0, "split": "eval", "drift/kl": 1.0}, section("loss")))


def test_a_metric_that_the_run_does_not_have_is_an_error() -> None:
    evaluation = {"loss": 1.0, "loss_se": 0.1}
    with pytest.raises(ConfigError, match=r"no metric 'rewards/margins'\n  fix: use one of loss"):
        value_of(evaluation, section("rewards/margins"), required=True)
    assert value_of(evaluation, section("loss"), required=True) == 1.0


SECTIONS: dict[str, Any] = {"model": {"path": "m"}, "data": {"train": "d", "eval": 0.1}, "train": {"eval_every": 5}}


@pytest.mark.parametrize(
    ("best", "metric", "patience"),
    [
        ("loss", "loss", None),
        ("eval_loss", "loss", None),
        ("accuracy", "rewards/accuracies", None),
        ({"metric": "loss", "patience": 3}, "loss", 3),
    ],
)
def test_a_metric_can_be_written_in_several_ways(best: Any, metric: str, patience: int | None) -> None:
    config = DPOConfig(**SECTIONS, best=best)
    assert config.best == BestConfig(metric=metric, patience=patience)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"best": "bleu"}, "set best.direction to lower or higher, or use one of the metrics loss"),
        ({"best": 3}, "best is a section, not a value; set best.metric"),
        ({"best": {"patience": 3}}, "best.metric is required"),
        ({"data": {"train": "d"}}, r"best needs held-out data; set data.eval"),
        ({"train": {}}, r"best needs evaluations during training; set train.eval_every"),
    ],
)
def test_a_section_that_cannot_work_is_an_error(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DPOConfig(**{**SECTIONS, "best": "loss", **change})
