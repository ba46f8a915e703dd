"""Metrics as sums that are divided once, when a line is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from preftune.formulas import implicit_reward, win
from preftune.types import Judged, Logps, LossOutput


class Tally:
    """Adds up (sum, count) pairs without asking the device for a number until `means`."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    def add(self, metrics: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        for name, (value, count) in metrics.items():
            self._sums[name] = self._sums[name].to(value.device) + value if name in self._sums else value
            self._counts[name] = self._counts[name].to(count.device) + count if name in self._counts else count

    def add_loss(self, out: LossOutput) -> None:
        """A loss and its metrics."""
        self.add({"loss": (out.loss_sum.detach(), out.count), **out.metrics})

    def merge(self, other: Tally) -> None:
        self.add({name: (other._sums[name], other._counts[name]) for name in other._sums})

    def state(self) -> dict[str, tuple[float, float]]:
        """What a checkpoint keeps."""
        return {name: (float(self._sums[name]), float(self._counts[name])) for name in self._sums}

    @staticmethod
    def of(state: Mapping[str, Sequence[float]]) -> Tally:
        """The tally that `state` was taken of."""
        tally = Tally()
        tally.add({name: (torch.tensor(value), torch.tensor(count)) for name, (value, count) in state.items()})
        return tally

    def means(self) -> dict[str, float]:
        """Means of everything that was counted."""
        if not self._sums:
            return {}
        names = list(self._sums)
        table = torch.stack([torch.stack([self._sums[n].float(), self._counts[n].float()]) for n in names])
        return {n: value / count for n, (value, count) in zip(names, table.tolist(), strict=True) if count}


class Spread:
    """The standard error of a mean loss over groups, which are independent where the judgements of one are not.

    With loss sum V_g and count W_g of each group:  sqrt(sum_g (V_g - mean W_g)^2) / sum_g W_g
    """

    def __init__(self) -> None:
        self._sums: list[Tensor] = []
        self._counts: list[Tensor] = []

    def add(self, loss_G: Tensor, count_G: Tensor) -> None:
        """Of the groups of a batch."""
        self._sums.append(loss_G.double().cpu())
        self._counts.append(count_G.double().cpu())

    def means(self) -> dict[str, float]:
        """loss_se; nothing for fewer than two groups."""
        if sum(map(len, self._sums)) < 2:
            return {}
        loss, count = torch.cat(self._sums), torch.cat(self._counts)
        total = float(count.sum())
        if not total:
            return {}
        mean = float(loss.sum()) / total
        return {"loss_se": float((loss - mean * count).square().sum().sqrt()) / total}


class Calibration:
    """How far sigmoid(margin), a model's probability that the better response is better, can be believed.

    calibration/ece     expected calibration error: over ten bins of the probability that the model gives to the
                        response it prefers, the mean of |share that is right - mean probability|, by number
    calibration/brier   mean squared difference of the model's probability and the label

    Sources: Guo et al. 2017, arXiv:1706.04599; Brier 1950.
    """

    BINS = 10

    def __init__(self) -> None:
        self._margins: list[Tensor] = []
        self._labels: list[Tensor] = []

    def add(self, margin_P: Tensor, label_P: Tensor) -> None:
        """Margins of judgements, and the probability that each of them is right."""
        self._margins.append(margin_P.double().cpu())
        self._labels.append(label_P.double().cpu())

    def table(self) -> list[tuple[float, float, int]]:
        """(mean probability, share that is right, number) of each bin that has any."""
        margin, label = torch.cat(self._margins), torch.cat(self._labels)
        sure = torch.sigmoid(margin.abs())
        right = torch.where(margin >= 0, label, 1 - label)
        right = torch.where(margin == 0, torch.full_like(right, 0.5), right)  # a tie is right half of the time
        at = ((sure - 0.5) * 2 * self.BINS).long().clamp(max=self.BINS - 1)
        groups = [(sure[at == b], right[at == b]) for b in range(self.BINS)]
        return [(float(s.mean()), float(r.mean()), len(s)) for s, r in groups if len(s)]

    def means(self) -> dict[str, float]:
        """Nothing for data without judgements."""
        if not self._margins:
            return {}
        margin, label = torch.cat(self._margins), torch.cat(self._labels)
        error = sum(abs(sure - right) * n for sure, right, n in self.table()) / len(margin)
        brier = float((torch.sigmoid(margin) - label).square().mean())
        return {"calibration/ece": error, "calibration/brier": brier}


def margins(policy: Logps, reference: Logps | None, judged: Judged, beta: float) -> tuple[Tensor, Tensor]:
    """(P,) margins of rewards, and the probabilities that the data give their judgements."""
    reward_S = _reward(policy, reference, beta)
    return reward_S[judged.better_P] - reward_S[judged.worse_P], judged.probability_P


def _reward(policy: Logps, reference: Logps | None, beta: float) -> Tensor:
    return implicit_reward(policy.sum_S, reference.sum_S, beta) if reference else beta * policy.sum_S


@torch.no_grad()
def preference_metrics(
    policy: Logps, reference: Logps | None, judged: Judged, beta: float
) -> dict[str, tuple[Tensor, Tensor]]:
    """The metrics that preference training is watched by, under the field's names.

    rewards/chosen, rewards/rejected   beta (log pi - log ref), over judgements, or over labelled responses where
                                       there are none; without reference, log ref is 0
    rewards/margins                    their difference
    rewards/accuracies                 share of judgements with a positive margin; a tie counts one half
    logps/chosen, logps/rejected       summed log-probs of the policy
    drift/chosen, drift/rejected       mean over their tokens of log pi - log ref, in nats; only with a reference
    drift/displaced                    share of judgements whose responses are both less likely than under the reference
    """
    reward_S = _reward(policy, reference, beta)
    if len(judged.better_P):
        good, bad = judged.better_P, judged.worse_P
        margin = reward_S[good] - reward_S[bad]
        found = {
            "rewards/chosen": reward_S[good],
            "rewards/rejected": reward_S[bad],
            "rewards/margins": margin,
            "rewards/accuracies": win(margin),
            "logps/chosen": policy.sum_S[good],
            "logps/rejected": policy.sum_S[bad],
        }
    else:
        good, bad = judged.label_S > 0, judged.label_S < 0
        found = {
            "rewards/chosen": reward_S[good],
            "rewards/rejected": reward_S[bad],
            "logps/chosen": policy.sum_S[good],
            "logps/rejected": policy.sum_S[bad],
        }
    means = {name: (v.sum(), v.new_full((), float(len(v)))) for name, v in found.items()}
    return {**means, **_drift(policy, reference, good, bad, bool(len(judged.better_P)))} if reference else means


def _drift(
    policy: Logps, reference: Logps, good: Tensor, bad: Tensor, paired: bool
) -> dict[str, tuple[Tensor, Tensor]]:
    """How far the policy has left its reference on the responses that `good` and `bad` index."""
    change_S, length_S = policy.sum_S - reference.sum_S, policy.length_S.to(policy.sum_S.dtype)
    found = {
        "drift/chosen": (change_S[good].sum(), length_S[good].sum()),
        "drift/rejected": (change_S[bad].sum(), length_S[bad].sum()),
    }
    if paired:
        both = ((change_S[good] < 0) & (change_S[bad] < 0)).to(change_S.dtype)
        found["drift/displaced"] = (both.sum(), both.new_full((), float(len(both))))
    return found
