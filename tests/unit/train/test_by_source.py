"""Metrics of each source are those that the source alone would have."""

from __future__ import annotations

import torch

from preftune.train.by_source import loss_by_source, rewards_by_source
from preftune.train.metric_names import by_source, source_metric
from preftune.train.metrics import Tally, preference_metrics
from preftune.types import Judged, Logps

NAMES = {0: "a", 2: "b.c", 3: "none"}


def logps(values: list[float]) -> Logps:
    return Logps(torch.zeros(0), torch.tensor(values), torch.ones(len(values), dtype=torch.int64))


def judged(better: list[int], worse: list[int], labels: list[int]) -> Judged:
    one, label = torch.ones(len(better)), torch.tensor(labels)
    group = torch.arange(len(labels)) // 2
    indices = (torch.tensor(part, dtype=torch.int64) for part in (better, worse))
    return Judged(*indices, one, one, 0 * one, label, 0.0 * label, group)


def means(metrics: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, float]:
    tally = Tally()
    tally.add(metrics)
    return tally.means()


def test_rewards_of_a_source_equal_those_of_its_pairs_alone() -> None:
    policy, reference = [1.0, 2.0, 5.0, 3.0, 0.5, 0.0], [0.0, 0.5, 1.0, 1.5, 1.0, 1.0]
    source_S = torch.tensor([0, 0, 2, 2, 2, 2])
    pairs = judged([0, 2, 5], [1, 3, 4], [0] * 6)
    result = by_source(means(rewards_by_source(logps(policy), logps(reference), pairs, 0.5, source_S, NAMES)))
    assert set(result) == {"a", "b.c"}
    for name, part, own in (("a", slice(0, 2), judged([0], [1], [0] * 2)), ("b.c", slice(2, 6), None)):
        alone = own or judged([0, 3], [1, 2], [0] * 4)
        expected = means(preference_metrics(logps(policy[part]), logps(reference[part]), alone, 0.5))
        assert result[name] == {metric: expected[metric] for metric in result[name]}
        assert {"rewards/margins", "rewards/accuracies"} <= set(result[name])


def test_rewards_of_labelled_responses() -> None:
    policy, source_S = logps([1.0, 2.0, 4.0, 3.0]), torch.tensor([0, 0, 2, 2])
    result = by_source(means(rewards_by_source(policy, None, judged([], [], [1, -1, 1, 1]), 1.0, source_S, NAMES)))
    assert result == {"a": {"rewards/chosen": 1.0, "rewards/rejected": 2.0}, "b.c": {"rewards/chosen": 3.5}}


def test_the_loss_of_each_source_is_a_mean_over_its_items() -> None:
    loss, count, source = torch.tensor([1.0, 3.0, 8.0]), torch.tensor([1.0, 1.0, 2.0]), torch.tensor([0, 0, 2])
    result = means(loss_by_source(loss, count, source, NAMES))
    assert result == {source_metric("a", "loss"): 2.0, source_metric("b.c", "loss"): 4.0}
    assert by_source({**result, "loss": 1.0}) == {"a": {"loss": 2.0}, "b.c": {"loss": 4.0}}
