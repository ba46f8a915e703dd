"""Losses of preference pairs that need more than two sums: margins from the data, tokens, whole distributions.

Notation as in losses.pairwise. Each asks for what it needs by the name of an argument (see losses.objective).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.losses.pairwise import cross_entropy, margin_of
from preftune.types import NonNegative, Pair, PairLogps, Positive, Share


def odpo(
    policy: PairLogps,
    reference: PairLogps,
    margin: Tensor,
    *,
    beta: Positive = 0.1,
    alpha: Positive = 1.0,
    log: bool = False,
) -> Tensor:
    """ODPO: DPO with an offset; a pair that is better by more must be told apart by more.

    loss      -log sigmoid(beta h - alpha f(margin)),   f(m) = m, or log m with `log` (then m must be above 0)
    input     margin: by how much the judge prefers y_w, from the data
    note      the authors' code (rycolab/odpo) always takes the log, of r_w - r_l or of r_w / r_l, and has alpha = 1;
              its runs use beta 0.7 with alpha 0.5 (sentiment) and beta 0.05 with alpha 1 (toxicity). Here log = false
              is the default, which takes margins of 0 and below too: set log = true for the authors' form
    source    Amini et al. 2024, arXiv:2402.10571
    """
    offset = torch.log(margin) if log else margin
    return -logsigmoid(beta * margin_of(policy, reference) - alpha * offset)


def ld_dpo(
    policy_tokens: Pair,
    reference_tokens: Pair,
    policy: PairLogps,
    probability: Tensor,
    *,
    beta: Positive = 0.1,
    alpha: Share = 0.5,
) -> Tensor:
    """LD-DPO: tokens beyond the length of the shorter response count only alpha.

    loss      DPO with  log pi(y) -> sum_{t <= m} log pi_t + alpha sum_{t > m} log pi_t,   m = min(|y_w|, |y_l|),
              in the policy and in the reference alike
    source    Liu et al. 2024, arXiv:2409.06411
    """
    shared = torch.minimum(policy.chosen_length, policy.rejected_length)

    def weighted(log_ratio_PL: Tensor) -> Tensor:
        beyond = torch.arange(log_ratio_PL.shape[1], device=log_ratio_PL.device) >= shared[:, None]
        return torch.where(beyond, alpha * log_ratio_PL, log_ratio_PL).sum(dim=1)

    chosen = weighted(policy_tokens.chosen - reference_tokens.chosen)
    rejected = weighted(policy_tokens.rejected - reference_tokens.rejected)
    return cross_entropy(beta * (chosen - rejected), probability)


def wpo(
    policy: PairLogps,
    reference: PairLogps,
    probability: Tensor,
    collision: Pair,
    *,
    beta: Positive = 0.1,
    clamp: bool = False,
) -> Tensor:
    """WPO: DPO weighted by how likely the policy would have written the two responses itself.

    loss      sg(w_w w_l) * DPO loss,   w = exp( (1/|y|) sum_t [log pi_t - log sum_v pi_v^2] );
              with `clamp`, sg min(1, w_w w_l) * DPO loss
    input     collision: sum_t log sum_v pi_v^2 of each response
    note      the authors' code (wzhouad/WPO) has clamp = true; TRL's use_weighting does not clamp
    source    Zhou et al. 2024, arXiv:2406.11827 (sampled alignment)
    """
    chosen = (policy.chosen - collision.chosen) / policy.chosen_length
    rejected = (policy.rejected - collision.rejected) / policy.rejected_length
    # exp(20) a side is far beyond what calibrated text reaches; the bound only keeps broken rows finite
    weight = torch.exp((chosen + rejected).clamp(max=0.0 if clamp else 40.0)).detach()
    return weight * cross_entropy(beta * margin_of(policy, reference), probability)


def tdpo1(policy: PairLogps, reference: PairLogps, kl: Pair, *, beta: Positive = 0.1) -> Tensor:
    """TDPO1: DPO with the difference of the responses' sequential KL as a token-level regulariser.

    loss      -log sigmoid(beta h - beta (D_l - D_w)),   D_y = sum_t KL(ref(.|x, y_<t) || pi(.|x, y_<t))
    source    Zeng et al. 2024, arXiv:2404.11999
    """
    return -logsigmoid(beta * margin_of(policy, reference) - beta * (kl.rejected - kl.chosen))


def tdpo2(
    policy: PairLogps, reference: PairLogps, kl: Pair, *, beta: Positive = 0.1, alpha: NonNegative = 0.5
) -> Tensor:
    """TDPO2: TDPO1 without the gradient through the chosen response's KL, and with its own strength.

    loss      -log sigmoid(beta h - alpha (beta D_l - sg(beta D_w)))
    source    Zeng et al. 2024, arXiv:2404.11999
    """
    difference = beta * kl.rejected - (beta * kl.chosen).detach()
    return -logsigmoid(beta * margin_of(policy, reference) - alpha * difference)


TABLE = {f.__name__: f for f in (odpo, ld_dpo, wpo, tdpo1, tdpo2)}
