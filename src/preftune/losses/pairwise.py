"""Losses of preference pairs: pure functions of log-probabilities, one value for each of P judgements.

Notation, for a judgement that y_w is better than y_l as an answer to x:

    lr_y   = log pi(y|x) - log ref(y|x)          the log-ratio; beta * lr_y is the implicit reward
    h      = lr_w - lr_l                         the margin
    |y|    = number of scored tokens of y
    sg     = stop-gradient

Arguments before the `*` are inputs and are provided by name (see losses.objective.INPUTS): a loss that needs
no reference does not ask for one. Arguments after it are parameters: the config may set exactly these.
`probability` is the soft label p(y_w is better); where a loss takes it, the value is the expected loss
p * loss(y_w, y_l) + (1 - p) * loss(y_l, y_w).
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Gt, Le, Lt
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from preftune.losses.joint import joint
from preftune.types import BelowHalf, NonNegative, Pair, PairLogps, Positive


def log_ratios(policy: PairLogps, reference: PairLogps) -> Pair:
    """lr_w and lr_l."""
    return Pair(policy.chosen - reference.chosen, policy.rejected - reference.rejected)


def margin_of(policy: PairLogps, reference: PairLogps) -> Tensor:
    """h: how much more than the reference the policy prefers y_w to y_l."""
    chosen, rejected = log_ratios(policy, reference)
    return chosen - rejected


def cross_entropy(z: Tensor, probability: Tensor | float) -> Tensor:
    """-p log sigmoid(z) - (1 - p) log sigmoid(-z)."""
    return -probability * logsigmoid(z) - (1 - probability) * logsigmoid(-z)


def sigmoid(
    policy: PairLogps,
    reference: PairLogps,
    probability: Tensor,
    *,
    beta: Positive = 0.1,
    label_smoothing: BelowHalf = 0.0,
) -> Tensor:
    """DPO; with label_smoothing > 0, conservative DPO; with `reference.kind: none`, reference-free DPO.

    loss      -q log sigmoid(beta h) - (1 - q) log sigmoid(-beta h),   q = p (1 - e) + (1 - p) e,  e = label_smoothing
    gradient  (sigmoid(beta h) - q) beta dh/dpi: pairs ranked wrongly weigh most
    source    Rafailov et al. 2023, arXiv:2305.18290 eq. 7; Mitchell 2023, "A note on DPO with noisy preferences" eq. 3
    """
    target = probability * (1 - label_smoothing) + (1 - probability) * label_smoothing
    return cross_entropy(beta * margin_of(policy, reference), target)


def robust(
    policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1, label_smoothing: BelowHalf = 0.1
) -> Tensor:
    """Robust DPO: unbiased under labels that are flipped with probability e.

    loss      [-(1 - e) log sigmoid(beta h) + e log sigmoid(-beta h)] / (1 - 2e),   e = label_smoothing
    note      not bounded below: a pair that is confidently right has negative loss
    source    Chowdhury et al. 2024, arXiv:2403.00409
    """
    z = beta * margin_of(policy, reference)
    e = label_smoothing
    return (-(1 - e) * logsigmoid(z) + e * logsigmoid(-z)) / (1 - 2 * e)


def ipo(
    policy: PairLogps,
    reference: PairLogps,
    probability: Tensor,
    *,
    beta: Positive = 0.1,
    average: bool = True,
) -> Tensor:
    """IPO: pulls the margin to 1/(2 beta) instead of to infinity.

    loss      p (h' - 1/(2 beta))^2 + (1 - p) (h' + 1/(2 beta))^2
              average = true: h' = lr_w/|y_w| - lr_l/|y_l|  (per token, as the authors confirmed to later
              implementers);  average = false: h' = h  (summed, as the paper is written)
    note      the same beta regularises about |y| times more strongly when summed
    source    Azar et al. 2023, arXiv:2310.12036 eq. 17 (tau there is beta here)
    """
    chosen, rejected = log_ratios(policy, reference)
    if average:
        chosen, rejected = chosen / policy.chosen_length, rejected / policy.rejected_length
    h, target = chosen - rejected, 1 / (2 * beta)
    return probability * (h - target) ** 2 + (1 - probability) * (h + target) ** 2


def hinge(policy: PairLogps, reference: PairLogps, probability: Tensor, *, beta: Positive = 0.1) -> Tensor:
    """Hinge on the margin: no gradient once the pair is right by 1/beta.

    loss      p max(0, 1 - beta h) + (1 - p) max(0, 1 + beta h)
    source    Zhao et al. 2023 (SLiC-HF), arXiv:2305.10425; Liu et al. 2023 (RSO), arXiv:2309.06657
    """
    z = beta * margin_of(policy, reference)
    return probability * relu(1 - z) + (1 - probability) * relu(1 + z)


def exo_pair(
    policy: PairLogps,
    reference: PairLogps,
    *,
    beta: Positive = 0.1,
    label_smoothing: Annotated[float, Gt(0), Lt(0.5)] = 1e-3,
) -> Tensor:
    """EXO: the reverse KL from the policy's preference to the smoothed label.

    loss      sigmoid(beta h) [log sigmoid(beta h) - log(1 - e)] + sigmoid(-beta h) [log sigmoid(-beta h) - log e],
              e = label_smoothing
    source    Ji et al. 2024, arXiv:2402.00856 eq. 16
    """
    z, e = beta * margin_of(policy, reference), label_smoothing
    right = torch.sigmoid(z) * (logsigmoid(z) - math.log1p(-e))
    wrong = torch.sigmoid(-z) * (logsigmoid(-z) - math.log(e))
    return right + wrong


def nca_pair(policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1) -> Tensor:
    """NCA: noise contrastive alignment; holds the chosen reward up by an absolute term.

    loss      -log sigmoid(r_w) - 1/2 log sigmoid(-r_w) - 1/2 log sigmoid(-r_l),   r = beta lr
    source    Chen et al. 2024, arXiv:2402.05369
    """
    chosen, rejected = log_ratios(policy, reference)
    r_w, r_l = beta * chosen, beta * rejected
    return -logsigmoid(r_w) - 0.5 * logsigmoid(-r_w) - 0.5 * logsigmoid(-r_l)


@joint
def bco_pair(policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1, threshold: bool = True) -> Tensor:
    """BCO on pairs: a classifier of good against bad whose threshold is the mean reward of the step.

    loss      -log sigmoid(r_w - d) - log sigmoid(-(r_l - d)),   r = beta lr,
              threshold = true: d = sg mean of r_w and r_l over the step;  threshold = false: d = 0
    note      the paper keeps a moving average of d over steps; here it is the mean over the whole optimizer step,
              so that the loss has no hidden state and does not depend on the split into micro-batches.
              TRL's bco_pair has d = 0 since version 0.29: set threshold = false for its loss
    source    Jung et al. 2024, arXiv:2404.04656
    """
    chosen, rejected = log_ratios(policy, reference)
    r_w, r_l = beta * chosen, beta * rejected
    shift = torch.cat([r_w, r_l]).mean().detach() if threshold else r_w.new_zeros(())
    return -logsigmoid(r_w - shift) - logsigmoid(shift - r_l)


def sppo(policy: PairLogps, reference: PairLogps, probability: Tensor, *, beta: Positive = 1e-3) -> Tensor:
    """SPPO: each log-ratio is regressed on how often its response wins.

    loss      (lr_w - (p - 1/2)/beta)^2 + (lr_l + (p - 1/2)/beta)^2;   p = 1 is the hard form
    source    Wu et al. 2024, arXiv:2405.00675 eq. 4.7 (eta there is 1/beta here)
    """
    chosen, rejected = log_ratios(policy, reference)
    target = (probability - 0.5) / beta
    return (chosen - target) ** 2 + (rejected + target) ** 2


@joint
def aot(policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1, label_smoothing: BelowHalf = 0.0) -> Tensor:
    """AOT, paired: the policy's margins should dominate the reference's margins as distributions.

    loss      -(1 - e) log sigmoid(beta d) - e log sigmoid(-beta d),   e = label_smoothing,
              d = sort(log pi_w - log pi_l) - sort(log ref_w - log ref_l), sorted over the whole step
    source    Melnyk et al. 2024, arXiv:2406.05882
    """
    of_policy = torch.sort(policy.chosen - policy.rejected).values
    of_reference = torch.sort(reference.chosen - reference.rejected).values
    return cross_entropy(beta * (of_policy - of_reference), 1 - label_smoothing)


@joint
def aot_unpaired(
    policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1, label_smoothing: BelowHalf = 0.0
) -> Tensor:
    """AOT, unpaired: the chosen rewards should dominate the rejected rewards as distributions.

    loss      -(1 - e) log sigmoid(beta d) - e log sigmoid(-beta d),   e = label_smoothing,
              d = sort(lr_w) - sort(lr_l), sorted over the whole step
    source    Melnyk et al. 2024, arXiv:2406.05882
    """
    chosen, rejected = log_ratios(policy, reference)
    return cross_entropy(beta * (torch.sort(chosen).values - torch.sort(rejected).values), 1 - label_smoothing)


def apo_zero(policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1) -> Tensor:
    """APO-zero: raise the chosen and lower the rejected, each on its own. For a policy worse than the chosen data.

    loss      1 - sigmoid(beta lr_w) + sigmoid(beta lr_l)
    source    D'Oosterlinck et al. 2024, arXiv:2408.06266
    """
    chosen, rejected = log_ratios(policy, reference)
    return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)


def apo_down(policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1) -> Tensor:
    """APO-down: lower both, the rejected more. For a policy better than the chosen data.

    loss      sigmoid(beta lr_w) + 1 - sigmoid(beta (lr_w - lr_l))
    source    D'Oosterlinck et al. 2024, arXiv:2408.06266
    """
    chosen, rejected = log_ratios(policy, reference)
    return torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * (chosen - rejected))


def discopop(
    policy: PairLogps,
    reference: PairLogps,
    *,
    beta: Positive = 0.1,
    tau: Annotated[float, Gt(0), Le(1)] = 0.05,
) -> Tensor:
    """DiscoPOP: a blend of logistic and exponential loss that an LLM-driven search found.

    loss      (1 - m) (-log sigmoid(z)) + m exp(-z),   z = beta h,  m = sigmoid(z / tau)
    gradient  not monotone: with a small tau it pushes a pair at h = 0 the wrong way first, as the paper observes
    note      m exp(-z) is computed as exp(log sigmoid(z/tau) - z), which cannot overflow for tau <= 1
    source    Lu et al. 2024, arXiv:2406.08414
    """
    z = beta * margin_of(policy, reference)
    return torch.sigmoid(-z / tau) * -logsigmoid(z) + torch.exp(logsigmoid(z / tau) - z)


def forward_kl(policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1) -> Tensor:
    """f-DPO with the forward KL as regulariser.

    loss      -log sigmoid(beta [f'(u_w) - f'(u_l)]),   f'(u) = -1/u,  u = exp(lr)
    note      exp is continued by its tangent above 40, see `_exp`; the reverse KL is the loss `sigmoid`
    source    Wang et al. 2023, arXiv:2309.16240
    """
    chosen, rejected = log_ratios(policy, reference)
    return -logsigmoid(beta * (_exp(-rejected) - _exp(-chosen)))


def jensen_shannon(policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1) -> Tensor:
    """f-DPO with the Jensen-Shannon divergence as regulariser.

    loss      -log sigmoid(beta [f'(u_w) - f'(u_l)]),   f'(u) = log(2u / (1 + u)) = log 2 + log sigmoid(lr)
    source    Wang et al. 2023, arXiv:2309.16240
    """
    chosen, rejected = log_ratios(policy, reference)
    return -logsigmoid(beta * (logsigmoid(chosen) - logsigmoid(rejected)))


def alpha_divergence(
    policy: PairLogps,
    reference: PairLogps,
    *,
    beta: Positive = 0.1,
    alpha: Annotated[float, Gt(0), Lt(1)] = 0.5,
) -> Tensor:
    """f-DPO with an alpha-divergence: between reverse KL (alpha -> 0) and forward KL (alpha -> 1).

    loss      -log sigmoid(beta [f'(u_w) - f'(u_l)]),   f'(u) = (1 - u^-alpha) / alpha,  u = exp(lr)
    source    Wang et al. 2023, arXiv:2309.16240
    """
    chosen, rejected = log_ratios(policy, reference)
    return -logsigmoid(beta * (_exp(-alpha * rejected) - _exp(-alpha * chosen)) / alpha)


def _exp(x: Tensor, limit: float = 40.0) -> Tensor:
    """exp(x), continued by its tangent above `limit`: finite, monotone and with a gradient everywhere."""
    below = torch.exp(x.clamp(max=limit))
    return below * (1 + relu(x - limit))


def dpop(policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1, penalty: NonNegative = 50.0) -> Tensor:
    """DPOP: DPO that pays for any chosen response which becomes less likely than under the reference.

    loss      -log sigmoid(beta [h - penalty max(0, log ref_w - log pi_w)])
    source    Pal et al. 2024, arXiv:2402.13228 (penalty is the paper's lambda)
    """
    chosen, rejected = log_ratios(policy, reference)
    return -logsigmoid(beta * (chosen - rejected - penalty * relu(-chosen)))


def r_dpo(
    policy: PairLogps,
    reference: PairLogps,
    probability: Tensor,
    *,
    beta: Positive = 0.1,
    alpha: NonNegative = 0.01,
) -> Tensor:
    """R-DPO: DPO whose reward is charged alpha a token, so that length alone is worth nothing.

    loss      cross-entropy of p and sigmoid(z),   z = beta h + alpha (|y_w| - |y_l|)
    why +     the optimum of E[r - alpha |y|] - beta KL has r = beta lr + alpha |y| + const, and p = sigmoid(r_w - r_l)
    source    Park et al. 2024, arXiv:2403.19159
    """
    longer = policy.chosen_length - policy.rejected_length
    return cross_entropy(beta * margin_of(policy, reference) + alpha * longer, probability)


def cal_dpo(policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1, calibration: NonNegative = 1.0) -> Tensor:
    """Cal-DPO: DPO plus a pull of the implicit rewards to +1/2 and -1/2.

    loss      -log sigmoid(h) + calibration [(lr_w - 1/(2 beta))^2 + (lr_l + 1/(2 beta))^2]
    note      the contrastive term has no beta in the paper: beta enters by the calibration target alone.
              The authors' code (tengxiao1/Cal-DPO) weighs the calibration term with one half: set calibration = 0.5,
              and beta = 0.001 as in its script. The default 1 is the sum as the paper writes it
    source    Xiao et al. 2024, arXiv:2412.14516
    """
    chosen, rejected = log_ratios(policy, reference)
    target = 1 / (2 * beta)
    pull = (chosen - target) ** 2 + (rejected + target) ** 2
    return -logsigmoid(chosen - rejected) + calibration * pull


TABLE = {
    f.__name__: f
    for f in (
        sigmoid,
        robust,
        ipo,
        hinge,
        exo_pair,
        nca_pair,
        bco_pair,
        sppo,
        aot,
        aot_unpaired,
        apo_zero,
        apo_down,
        discopop,
        forward_kl,
        jensen_shannon,
        alpha_divergence,
        dpop,
        r_dpo,
        cal_dpo,
    )
}
