"""Drift metrics against closed forms, and warnings at their thresholds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from preftune.measures import advice as thresholds
from preftune.measures.advice import advice
from preftune.measures.drift import divergence, likelihood

FIRST = {
    "step": 0,
    "drift/gap": 3.0,
    "drift/kl": 0.0,
    "drift/kl_se": 0.0,
    "drift/displaced": 0.0,
    "drift/tokens": 40.0,
    "drift/ended": 0.9,
    "drift/repetition": 0.05,
    "drift/diversity": 0.8,
}


def test_the_gap_is_zero_for_longer_responses_with_the_same_log_prob_per_token() -> None:
    tokens = np.array([10.0, 20.0])
    same = likelihood(-2 * 2 * tokens, 2 * tokens, -2 * tokens, tokens)
    assert same["drift/own_logps"] == 2 * same["drift/data_logps"] == -60
    assert same["drift/gap"] == 0
    metrics = likelihood(-1.5 * 2 * tokens, 2 * tokens, np.array([-30.0, -30.0]), tokens)
    assert metrics["drift/own_per_token"] == -1.5
    assert metrics["drift/data_per_token"] == -2.0
    assert metrics["drift/gap"] == pytest.approx(0.5 * 15)


def test_the_kl_of_two_gaussians_matches_the_closed_form() -> None:
    """Samples of N(m, 1) against N(0, 1): KL = m^2 / 2, with the standard error of a mean over prompts."""
    m, generator = 2.0, np.random.default_rng(0)
    x = generator.normal(m, 1.0, (2000, 4))
    metrics = divergence(-((x - m) ** 2) / 2, -(x**2) / 2)
    assert metrics["drift/kl_se"] == pytest.approx(m / np.sqrt(2000 * 4), rel=0.1)
    assert abs(metrics["drift/kl"] - m**2 / 2) < 3 * metrics["drift/kl_se"]


def test_unchanged_or_missing_metrics_give_no_warning() -> None:
    assert advice(FIRST, FIRST) == {}
    assert advice({**FIRST, "step": 9}, FIRST) == {}
    assert advice({"step": 9}, {"step": 0}) == {}


# metrics beyond a threshold, subject and text of the warning, and metrics just within the threshold
CASES: list[tuple[dict[str, float], str, str, dict[str, float]]] = [
    (
        {"drift/gap": 40.0},
        "gap",
        "the responses in your data have become unlikely under the model: gap 40 nats (3 at step 0, warning above 20). "
        "Refresh the data with preftune iterate.",
        {"drift/gap": 20.0},
    ),
    (
        {"drift/kl": 14.21, "drift/kl_se": 0.93},
        "kl",
        "the policy has a KL of 14.2 +- 0.9 nats per response from the reference (warning above 10). Lower optim.lr or "
        "raise loss.beta.",
        {"drift/kl": 10.0, "drift/kl_se": 0.9},
    ),
    (
        {"drift/displaced": 0.62, "drift/chosen": -0.02},
        "displaced",
        "have both become less likely than under the reference in 62% of the pairs (warning above 50%)",
        {"drift/displaced": 0.62, "drift/chosen": -0.001},
    ),
    (
        {"drift/tokens": 61.0},
        "length",
        "61 tokens on average (40 at step 0, warning above 1.5 times that)",
        {"drift/tokens": 60.0},
    ),
    (
        {"drift/ended": 0.6},
        "ended",
        "only 60% of the policy's responses end before the token limit (90% at step 0",
        {"drift/ended": 0.75},
    ),
    ({"drift/repetition": 0.3}, "repetition", "30% of a response's word pairs are repeated", {"drift/repetition": 0.2}),
    ({"drift/diversity": 0.5}, "diversity", "only 50% of the word pairs in all responses", {"drift/diversity": 0.57}),
]


@pytest.mark.parametrize(("beyond", "subject", "text", "within"), CASES, ids=[row[1] for row in CASES])
def test_a_warning_names_metric_threshold_and_remedy(
    beyond: dict[str, float], subject: str, text: str, within: dict[str, float]
) -> None:
    now: dict[str, Any] = {**FIRST, "step": 9}
    warnings = advice({**now, **beyond}, FIRST)
    assert list(warnings) == [subject]
    assert text in warnings[subject]
    assert "warning" in warnings[subject]
    assert advice({**now, **within}, FIRST) == {}


@pytest.mark.parametrize(("beyond", "subject", "text", "within"), CASES, ids=[row[1] for row in CASES])
def test_a_warning_needs_enough_responses(
    beyond: dict[str, float], subject: str, text: str, within: dict[str, float]
) -> None:
    now: dict[str, Any] = {**FIRST, "step": 9, **beyond}
    assert list(advice({**now, "drift/responses": float(thresholds.ENOUGH)}, FIRST)) == [subject]
    assert advice({**now, "drift/responses": thresholds.ENOUGH - 1.0, "drift/kl_se": 2.0}, FIRST) == {}


def test_a_kl_that_is_certainly_too_large_is_reported_for_few_responses_too() -> None:
    few = {**FIRST, "step": 9, "drift/responses": 8.0, "drift/kl_se": 3.0, "drift/gap": 90.0}
    assert list(advice({**few, "drift/kl": 19.1}, FIRST)) == ["kl"]
    assert advice({**few, "drift/kl": 18.9}, FIRST) == {}


def test_a_value_that_is_nan_is_reported_for_few_responses_too() -> None:
    now = {**FIRST, "step": 9, "drift/responses": 2.0, "drift/gap": math.nan}
    assert list(advice(now, FIRST)) == ["gap"]


def test_a_large_gap_at_the_start_is_reported_once_and_again_only_if_it_grows() -> None:
    far = {**FIRST, "drift/gap": 60.0}
    assert "preftune sft" in advice(far, far)["start"]
    assert advice({**far, "step": 9, "drift/gap": 60.0 + thresholds.GAP}, far) == {}
    warnings = advice({**far, "step": 9, "drift/gap": 85.0}, far)
    assert list(warnings) == ["gap"]
    assert "85 nats" in warnings["gap"]
    assert "60 at step 0" in warnings["gap"]
    late = {**far, "step": 9}  # the monitor was enabled later, so there is no evaluation at step 0
    assert "start" not in advice(late, late)


def evaluation(step: int, loss: float, error: float | None = None) -> dict[str, float]:
    return {"step": step, "loss": loss, **({} if error is None else {"loss_se": error})}


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (
            [evaluation(0, 0.6931, 0.0), evaluation(10, 0.65, 0.01), evaluation(20, 0.87, 0.08)],
            "the held-out loss rose by 0.22 +- 0.081, from 0.65 at step 10 to 0.87 at step 20. The model at step 10 "
            "was better on these rows; best=loss keeps it (docs/do/training.md). Use fewer epochs (train.epochs, "
            "train.max_steps) or a lower optim.lr.",
        ),
        (
            [evaluation(0, 0.6931, 0.0), evaluation(20, 0.8, 0.05)],
            "the held-out loss rose by 0.107 +- 0.05, from 0.6931 at step 0 to 0.8 at step 20. The model before "
            "training was better on these rows.",
        ),
        ([evaluation(0, 3.1), evaluation(5, 2.2), evaluation(9, 2.3)], "the held-out loss rose by 0.1, from 2.2 at"),
        (
            [evaluation(i, loss, 0.2) for i, loss in enumerate((0.5, 0.52, 0.55, 0.6))],
            "the held-out loss rose by 0.1 +- 0.28, from 0.5 at step 0 to 0.6 at step 3",
        ),
        ([evaluation(i, loss, 0.2) for i, loss in enumerate((0.5, 0.55, 0.54, 0.6))], ""),
        ([evaluation(i, loss, 0.2) for i, loss in enumerate((0.5, 0.501, 0.502, 0.503))], ""),  # converged
        ([evaluation(i, loss) for i, loss in enumerate((2.2, 2.2001, 2.2002, 2.2003))], ""),
        ([evaluation(0, 0.6931, 0.0), evaluation(10, 0.65, 0.05), evaluation(20, 0.7, 0.05)], ""),  # noise
        ([evaluation(0, 3.1), evaluation(5, 2.2), evaluation(9, 2.21)], ""),
        ([evaluation(0, 0.7, 0.0), evaluation(9, 0.6, 0.01)], ""),
        ([evaluation(0, 0.7, 0.0)], ""),
        ([], ""),
    ],
)
def test_a_held_out_loss_that_rose_above_its_minimum_is_reported(lines: list[dict[str, float]], text: str) -> None:
    warning = thresholds.held_out_rose(lines)
    assert warning.startswith(text) if text else warning == ""
