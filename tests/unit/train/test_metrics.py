"""The metrics of preference training, compared with values computed by hand."""

from __future__ import annotations

import pytest
import torch

from preftune.train.metrics import Spread, preference_metrics
from preftune.types import Judged, Logps


def logps(sums: list[float], lengths: list[int]) -> Logps:
    length_S = torch.tensor(lengths)
    token_N = torch.cat([torch.full((n,), s / n) for s, n in zip(sums, lengths, strict=True)])
    return Logps(token_N, torch.tensor(sums), length_S)


def judged(pairs: list[tuple[int, int]], labels: list[int]) -> Judged:
    better = torch.tensor([b for b, _ in pairs], dtype=torch.int64)
    worse = torch.tensor([w for _, w in pairs], dtype=torch.int64)
    one = torch.ones(len(pairs))
    label = torch.tensor(labels)
    return Judged(better, worse, one, one, 0 * one, label, 0.0 * label, torch.arange(len(labels)) // 2)


def test_drift_of_pairs_is_a_mean_over_tokens() -> None:
    """Three pairs: both log-probs fall; one falls; the chosen one is unchanged, which does not count as a fall."""
    policy = logps([-5.0, -9.0, -2.0, -7.0, -4.0, -8.0], [2, 3, 4, 1, 1, 2])
    reference = logps([-4.0, -6.0, -3.0, -5.0, -4.0, -7.0], [2, 3, 4, 1, 1, 2])
    metrics = preference_metrics(policy, reference, judged([(0, 1), (2, 3), (4, 5)], [0] * 6), beta=0.1)
    means = {name: float(value / count) for name, (value, count) in metrics.items()}
    assert means["drift/chosen"] == pytest.approx((-1 + 1 + 0) / (2 + 4 + 1))
    assert means["drift/rejected"] == pytest.approx((-3 - 2 - 1) / (3 + 1 + 2))
    assert means["drift/displaced"] == pytest.approx(1 / 3)
    assert means["rewards/margins"] == pytest.approx(0.1 * (2 + 3 + 1) / 3)


def test_labelled_responses_have_no_share_of_displaced_pairs() -> None:
    """A response without label, as in KTO, is neither chosen nor rejected."""
    policy, reference = logps([-5.0, -9.0, -2.0], [2, 3, 4]), logps([-4.0, -6.0, -3.0], [2, 3, 4])
    metrics = preference_metrics(policy, reference, judged([], [1, -1, 0]), beta=0.1)
    assert float(metrics["drift/chosen"][0] / metrics["drift/chosen"][1]) == pytest.approx(-1 / 2)
    assert float(metrics["drift/rejected"][0] / metrics["drift/rejected"][1]) == pytest.approx(-3 / 3)
    assert "drift/displaced" not in metrics


def test_there_are_no_drift_metrics_without_reference() -> None:
    metrics = preference_metrics(logps([-5.0, -9.0], [2, 3]), None, judged([(0, 1)], [0, 0]), beta=0.1)
    assert not [name for name in metrics if name.startswith("drift/")]


def test_the_standard_error_of_a_mean_loss_is_computed_over_groups() -> None:
    """For groups of one item it is std / sqrt(n). Copies of a judgement in the same group do not change it."""
    values = torch.tensor([0.2, 0.9, 0.4, 1.1])
    one, many = Spread(), Spread()
    one.add(values[:2], torch.ones(2))
    one.add(values[2:], torch.ones(2))
    many.add(5 * values, torch.full((4,), 5.0))
    expected = float(values.double().std(correction=0)) / 2
    assert one.means()["loss_se"] == pytest.approx(expected)
    assert many.means()["loss_se"] == pytest.approx(expected)
    single = Spread()
    single.add(values[:1], torch.ones(1))
    assert single.means() == {}
