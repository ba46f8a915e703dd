"""Losses on preference pairs with inputs other than summed log-probs: data margins, tokens, token distributions.

Notation as in losses.pairwise. `losses.objective` passes the inputs by name.
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
    """ODPO: DPO with an offset, so that pairs with a larger margin in the data get a larger margin in the policy.

    loss        -log sigmoid(beta h - alpha f(margin))
    input       margin: how much better y_w is than y_l, from the data
    parameters  beta (0.1): as in `sigmoid`;  alpha (1.0): weight of the offset
                log (false): f(m) = m, for any margin;  true: f(m) = log m, which needs margins above 0
    note        the authors' code (rycolab/odpo) always takes the log, of r_w - r_l or of r_w / r_l: log = true. Its
                default is alpha 1; its runs use beta 0.7, alpha 0.5 (sentiment) and beta 0.05, alpha 1 (toxicity)
    source      Amini et al. 2024, arXiv:2402.10571
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
    """LD-DPO: DPO that gives less weight to the tokens by which one response is longer than the other.

    loss        DPO with  log pi(y) -> sum_{t <= m} log pi_t + alpha sum_{t > m} log pi_t,   m = min(|y_w|, |y_l|),
                for the policy and the reference
    parameters  beta (0.1): as in `sigmoid`;  alpha (0.5): weight of the tokens after position m; 1 is DPO
    source      Liu et al. 2024, arXiv:2409.06411
    """
    shorter = torch.minimum(policy.chosen_length, policy.rejected_length)

    def weighted(log_ratio_PL: Tensor) -> Tensor:
        is_excess = torch.arange(log_ratio_PL.shape[1], device=log_ratio_PL.device) >= shorter[:, None]
        return torch.where(is_excess, alpha * log_ratio_PL, log_ratio_PL).sum(dim=1)

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
    """WPO: DPO that weights each pair by how likely both responses are under the current policy.

    loss        sg(w_w w_l) * DPO loss,   w = exp( (1/|y|) sum_t [log pi_t - log sum_v pi_v^2] )
    input       collision: sum_t log sum_v pi_v^2 of each response
    parameters  beta (0.1): as in `sigmoid`;  clamp (false): true limits w_w w_l to 1
    note        the authors' code (wzhouad/WPO) clamps; TRL's use_weighting does not
    source      Zhou et al. 2024, arXiv:2406.11827 (sampled alignment)
    """
    chosen = (policy.chosen - collision.chosen) / policy.chosen_length
    rejected = (policy.rejected - collision.rejected) / policy.rejected_length
    # Calibrated text never reaches exp(20) per response; the limit keeps the weight of malformed rows finite.
    weight = torch.exp((chosen + rejected).clamp(max=0.0 if clamp else 40.0)).detach()
    return weight * cross_entropy(beta * margin_of(policy, reference), probability)


def tdpo1(policy: PairLogps, reference: PairLogps, kl: Pair, *, beta: Positive = 0.1) -> Tensor:
    """TDPO1: DPO with a token-level regulariser, the difference of the responses' KL summed over tokens.

    loss        -log sigmoid(beta h - beta (D_l - D_w)),   D_y = sum_t KL(ref(.|x, y_<t) || pi(.|x, y_<t))
    parameters  beta (0.1): as in `sigmoid`
    source      Zeng et al. 2024, arXiv:2404.11999
    """
    return -logsigmoid(beta * margin_of(policy, reference) - beta * (kl.rejected - kl.chosen))


def tdpo2(
    policy: PairLogps, reference: PairLogps, kl: Pair, *, beta: Positive = 0.1, alpha: NonNegative = 0.5
) -> Tensor:
    """TDPO2: TDPO1 with a separate weight for the KL term and no gradient through the chosen response's KL.

    loss        -log sigmoid(beta h - alpha (beta D_l - sg(beta D_w)))
    parameters  beta (0.1): as in `sigmoid`;  alpha (0.5): weight of the KL term
    source      Zeng et al. 2024, arXiv:2404.11999
    """
    difference = beta * kl.rejected - (beta * kl.chosen).detach()
    return -logsigmoid(beta * margin_of(policy, reference) - alpha * difference)


TABLE = {f.__name__: f for f in (odpo, ld_dpo, wpo, tdpo1, tdpo2)}
