"""Metrics. They are collected as sums and counts, and divided once, when a line of metrics is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from preftune.formulas import implicit_reward, win
from preftune.ranks import group
from preftune.types import Judged, Logps, LossOutput


class Tally:
    """Add up (sum, count) pairs of metrics. Values stay on the device until `means` is called."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    def add(self, metrics: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        for name, (value, count) in metrics.items():
            self._sums[name] = self._sums[name].to(value.device) + value if name in self._sums else value
            self._counts[name] = self._counts[name].to(count.device) + count if name in self._counts else count

    def add_loss(self, out: LossOutput) -> None:
        """Add a loss and its metrics."""
        self.add({"loss": (out.loss_sum.detach(), out.count), **out.metrics})

    def merge(self, other: Tally) -> None:
        self.add({name: (other._sums[name], other._counts[name]) for name in other._sums})

    def state(self) -> dict[str, tuple[float, float]]:
        """Return the sums and counts as numbers, for a checkpoint."""
        return {name: (float(self._sums[name]), float(self._counts[name])) for name in self._sums}

    @staticmethod
    def of(state: Mapping[str, Sequence[float]]) -> Tally:
        """Return a tally with the sums and counts of `state`."""
        tally = Tally()
        tally.add({name: (torch.tensor(value), torch.tensor(count)) for name, (value, count) in state.items()})
        return tally

    def over_ranks(self) -> Tally:
        """Return the sums and counts of all ranks together."""
        if group.world() == 1:
            return self
        total = Tally()
        for state in group.gather(self.state()):
            total.merge(Tally.of(state))
        return total

    def means(self) -> dict[str, float]:
        """Return the mean of each metric whose count is not 0."""
        if not self._sums:
            return {}
        names = list(self._sums)
        table = torch.stack([torch.stack([self._sums[n].float(), self._counts[n].float()]) for n in names])
        return {n: value / count for n, (value, count) in zip(names, table.tolist(), strict=True) if count}


class Spread:
    """Standard error of a mean loss, computed over groups, because judgements of the same group are not independent.

    With the loss sum V_g and the count W_g of each group:  sqrt(sum_g (V_g - mean W_g)^2) / sum_g W_g
    """

    def __init__(self) -> None:
        self._sums: list[Tensor] = []
        self._counts: list[Tensor] = []

    def add(self, loss_G: Tensor, count_G: Tensor) -> None:
        """Add (G,) loss sums and counts of the groups of a batch."""
        self._sums.append(loss_G.double().cpu())
        self._counts.append(count_G.double().cpu())

    def over_ranks(self) -> Spread:
        """Return the values of all ranks together."""
        total = Spread()
        for sums, counts in group.gather((self._sums, self._counts)):
            total._sums += sums
            total._counts += counts
        return total

    def means(self) -> dict[str, float]:
        """Return the standard error as loss_se; empty for fewer than two groups."""
        if sum(map(len, self._sums)) < 2:
            return {}
        loss, count = torch.cat(self._sums), torch.cat(self._counts)
        total = float(count.sum())
        if not total:
            return {}
        mean = float(loss.sum()) / total
        return {"loss_se": float((loss - mean * count).square().sum().sqrt()) / total}


class Calibration:
    """Calibration of sigmoid(margin), the model's probability that the better response is better.

    calibration/ece     expected calibration error: with ten bins of the probability of the response that the model
                        prefers, the mean over judgements of |share that is right - mean probability| of the bin
    calibration/brier   mean squared difference of the model's probability and the label

    Sources: Guo et al. 2017, arXiv:1706.04599; Brier 1950.
    """

    BINS = 10

    def __init__(self) -> None:
        self._margins: list[Tensor] = []
        self._labels: list[Tensor] = []

    def add(self, margin_P: Tensor, label_P: Tensor) -> None:
        """Add (P,) margins of judgements, and the probability of each judgement in the data."""
        self._margins.append(margin_P.double().cpu())
        self._labels.append(label_P.double().cpu())

    def over_ranks(self) -> Calibration:
        """Return the values of all ranks together."""
        total = Calibration()
        for margins_, labels in group.gather((self._margins, self._labels)):
            total._margins += margins_
            total._labels += labels
        return total

    def table(self) -> list[tuple[float, float, int]]:
        """Return (mean probability, share that is right, number of judgements) of each bin that is not empty."""
        margin, label = torch.cat(self._margins), torch.cat(self._labels)
        probability = torch.sigmoid(margin.abs())
        right = torch.where(margin >= 0, label, 1 - label)
        right = torch.where(margin == 0, torch.full_like(right, 0.5), right)  # a tie counts as half right
        bin_P = ((probability - 0.5) * 2 * self.BINS).long().clamp(max=self.BINS - 1)
        bins = [(probability[bin_P == b], right[bin_P == b]) for b in range(self.BINS)]
        return [(float(p.mean()), float(r.mean()), len(p)) for p, r in bins if len(p)]

    def means(self) -> dict[str, float]:
        """Return both metrics; empty without judgements."""
        if not self._margins:
            return {}
        margin, label = torch.cat(self._margins), torch.cat(self._labels)
        error = sum(abs(probability - right) * n for probability, right, n in self.table()) / len(margin)
        brier = float((torch.sigmoid(margin) - label).square().mean())
        return {"calibration/ece": error, "calibration/brier": brier}


def margins(policy: Logps, reference: Logps | None, judged: Judged, beta: float) -> tuple[Tensor, Tensor]:
    """Return (P,) margins of rewards, and (P,) probabilities of the judgements in the data."""
    reward_S = _reward(policy, reference, beta)
    return reward_S[judged.better_P] - reward_S[judged.worse_P], judged.probability_P


def _reward(policy: Logps, reference: Logps | None, beta: float) -> Tensor:
    return implicit_reward(policy.sum_S, reference.sum_S, beta) if reference else beta * policy.sum_S


@torch.no_grad()
def preference_metrics(
    policy: Logps, reference: Logps | None, judged: Judged, beta: float
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the metrics of preference training, with their usual names, as (sum, count).

    rewards/chosen, rewards/rejected   beta (log pi - log ref), over judgements, or over labelled responses if there
                                       are no judgements; without reference, log ref is 0
    rewards/margins                    the difference, per judgement
    rewards/accuracies                 share of judgements with a positive margin; a tie counts as one half
    logps/chosen, logps/rejected       summed log-probs of the policy
    drift/chosen, drift/rejected       mean over tokens of log pi - log ref, in nats; only with a reference
    drift/displaced                    share of judgements whose responses are both less likely than under the reference
    """
    reward_S = _reward(policy, reference, beta)
    paired = bool(len(judged.better_P))
    good, bad = (judged.better_P, judged.worse_P) if paired else (judged.label_S > 0, judged.label_S < 0)
    values = {"rewards/chosen": reward_S[good], "rewards/rejected": reward_S[bad]}
    if paired:
        margin = reward_S[good] - reward_S[bad]
        values |= {"rewards/margins": margin, "rewards/accuracies": win(margin)}
    values |= {"logps/chosen": policy.sum_S[good], "logps/rejected": policy.sum_S[bad]}
    sums = {name: (v.sum(), v.new_full((), float(len(v)))) for name, v in values.items()}
    return {**sums, **_drift(policy, reference, good, bad, paired)} if reference else sums


def _drift(
    policy: Logps, reference: Logps, good: Tensor, bad: Tensor, paired: bool
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the drift metrics of the responses that `good` and `bad` index."""
    change_S, length_S = policy.sum_S - reference.sum_S, policy.length_S.to(policy.sum_S.dtype)
    metrics = {
        "drift/chosen": (change_S[good].sum(), length_S[good].sum()),
        "drift/rejected": (change_S[bad].sum(), length_S[bad].sum()),
    }
    if paired:
        both = ((change_S[good] < 0) & (change_S[bad] < 0)).to(change_S.dtype)
        metrics["drift/displaced"] = (both.sum(), both.new_full((), float(len(both))))
    return metrics
