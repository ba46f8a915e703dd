"""Losses on preference pairs: pure functions of log-probs that return one value for each of P judgements.

Notation, for a judgement that response y_w to prompt x is better than response y_l:

    lr_y   = log pi(y|x) - log ref(y|x)          log-ratio; beta * lr_y is the implicit reward
    h      = lr_w - lr_l                         margin
    |y|    = number of scored tokens of y
    sg     = stop-gradient

Arguments before the `*` are inputs, which `losses.objective` passes by name. A loss that needs no reference does not
list one. Arguments after the `*` are parameters, which the config can set.
`probability` is the soft label p = P(y_w is better). A loss with this input returns the expected loss
p * loss(y_w, y_l) + (1 - p) * loss(y_l, y_w).
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Gt, Le, Lt
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from preftune.losses.objective import joint
from preftune.types import BelowHalf, NonNegative, Pair, PairLogps, Positive


def log_ratios(policy: PairLogps, reference: PairLogps) -> Pair:
    """Return lr_w and lr_l."""
    return Pair(policy.chosen - reference.chosen, policy.rejected - reference.rejected)


def margin_of(policy: PairLogps, reference: PairLogps) -> Tensor:
    """Return h = lr_w - lr_l: how much more strongly than the reference the policy prefers y_w to y_l."""
    chosen, rejected = log_ratios(policy, reference)
    return chosen - rejected


def cross_entropy(z: Tensor, probability: Tensor | float) -> Tensor:
    """Return the Bradley-Terry negative log-likelihood: -p log sigmoid(z) - (1 - p) log sigmoid(-z)."""
    return -probability * logsigmoid(z) - (1 - probability) * logsigmoid(-z)


def sigmoid(
    policy: PairLogps,
    reference: PairLogps,
    probability: Tensor,
    *,
    beta: Positive = 0.1,
    label_smoothing: BelowHalf = 0.0,
) -> Tensor:
    """DPO: raise the margin between chosen and rejected. The standard loss for preference pairs.

    loss        -q log sigmoid(beta h) - (1 - q) log sigmoid(-beta h),   q = p (1 - e) + (1 - p) e,  e = label_smoothing
    parameters  beta (0.1): strength of the pull to the reference; smaller values allow larger changes
                label_smoothing (0.0): assumed share of flipped labels; above 0, this is conservative DPO
    gradient    (sigmoid(beta h) - q) beta dh/dpi: pairs in the wrong order have the largest weight
    usage       with reference.kind: none, log ref is 0: reference-free DPO
    source      Rafailov et al. 2023, arXiv:2305.18290 eq. 7; smoothing: Mitchell 2023, "A note on DPO with noisy
                preferences" eq. 3
    """
    target = probability * (1 - label_smoothing) + (1 - probability) * label_smoothing
    return cross_entropy(beta * margin_of(policy, reference), target)


def sigmoid_norm(policy: PairLogps, reference: PairLogps, probability: Tensor, *, beta: Positive = 5.0) -> Tensor:
    """Length-normalised DPO: DPO on the mean log-ratio per token, so that long responses have no larger margins.

    loss        -p log sigmoid(beta h') - (1 - p) log sigmoid(-beta h'),   h' = lr_w/|y_w| - lr_l/|y_l|
    parameters  beta (5.0): as in `sigmoid`; larger than there, because h' is a difference per token
    source      Lambert et al. 2024 (Tulu 3), arXiv:2411.15124 (length-normalised DPO)
    """
    chosen, rejected = log_ratios(policy, reference)
    h = chosen / policy.chosen_length - rejected / policy.rejected_length
    return cross_entropy(beta * h, probability)


def robust(
    policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1, label_smoothing: BelowHalf = 0.1
) -> Tensor:
    """Robust DPO: for noisy labels. Its expectation is the DPO loss of the clean labels.

    loss        [-(1 - e) log sigmoid(beta h) + e log sigmoid(-beta h)] / (1 - 2e),   e = label_smoothing
    parameters  beta (0.1): as in `sigmoid`;  label_smoothing (0.1): share of the labels that are flipped
    note        the loss has no lower bound: it is negative for pairs with a large positive margin
    source      Chowdhury et al. 2024, arXiv:2403.00409
    """
    z = beta * margin_of(policy, reference)
    e = label_smoothing
    return (-(1 - e) * logsigmoid(z) + e * logsigmoid(-z)) / (1 - 2 * e)


def ipo(
    policy: PairLogps, reference: PairLogps, probability: Tensor, *, beta: Positive = 0.1, average: bool = True
) -> Tensor:
    """IPO: regress the margin on 1/(2 beta), so that it stays finite even if all labels agree.

    loss        p (h' - 1/(2 beta))^2 + (1 - p) (h' + 1/(2 beta))^2
    parameters  beta (0.1): strength of the pull to the reference; the paper's tau
                average (true): h' = lr_w/|y_w| - lr_l/|y_l|, per token, as the authors confirmed to implementers;
                false: h' = h, summed, as in the paper. With sums, the same beta regularises about |y| times as much
    source      Azar et al. 2023, arXiv:2310.12036 eq. 17
    """
    chosen, rejected = log_ratios(policy, reference)
    if average:
        chosen, rejected = chosen / policy.chosen_length, rejected / policy.rejected_length
    h, target = chosen - rejected, 1 / (2 * beta)
    return probability * (h - target) ** 2 + (1 - probability) * (h + target) ** 2


def hinge(policy: PairLogps, reference: PairLogps, probability: Tensor, *, beta: Positive = 0.1) -> Tensor:
    """Hinge loss on the margin: a pair has no gradient once its margin exceeds 1/beta.

    loss        p max(0, 1 - beta h) + (1 - p) max(0, 1 + beta h)
    parameters  beta (0.1): inverse of the margin to reach
    source      Zhao et al. 2023 (SLiC-HF), arXiv:2305.10425; Liu et al. 2023 (RSO), arXiv:2309.06657
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
    """EXO: KL(policy's preference || smoothed label), where DPO uses the KL in the other direction.

    loss        sigmoid(beta h) [log sigmoid(beta h) - log(1 - e)] + sigmoid(-beta h) [log sigmoid(-beta h) - log e]
    parameters  beta (0.1): as in `sigmoid`;  label_smoothing (0.001): e, smoothing of the label
    source      Ji et al. 2024, arXiv:2402.00856 eq. 16
    """
    z, e = beta * margin_of(policy, reference), label_smoothing
    chosen = torch.sigmoid(z) * (logsigmoid(z) - math.log1p(-e))
    rejected = torch.sigmoid(-z) * (logsigmoid(-z) - math.log(e))
    return chosen + rejected


def nca_pair(policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1) -> Tensor:
    """NCA (noise contrastive alignment): like DPO, but it also keeps the reward of the chosen response from falling.

    loss        -log sigmoid(r_w) - 1/2 log sigmoid(-r_w) - 1/2 log sigmoid(-r_l),   r = beta lr
    parameters  beta (0.1): scale of the rewards
    source      Chen et al. 2024, arXiv:2402.05369
    """
    chosen, rejected = log_ratios(policy, reference)
    r_w, r_l = beta * chosen, beta * rejected
    return -logsigmoid(r_w) - 0.5 * logsigmoid(-r_w) - 0.5 * logsigmoid(-r_l)


@joint
def bco_pair(policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1, threshold: bool = True) -> Tensor:
    """BCO on pairs: train the implicit reward as a binary classifier of chosen against rejected responses.

    loss        -log sigmoid(r_w - d) - log sigmoid(-(r_l - d)),   r = beta lr
    parameters  beta (0.1): scale of the rewards
                threshold (true): d = sg mean of all r_w and r_l of the optimizer step;  false: d = 0
    note        the paper uses a moving average of d over steps. The mean of one step needs no state between steps and
                does not depend on the micro-batches. TRL's bco_pair has d = 0 since version 0.29: threshold = false
    source      Jung et al. 2024, arXiv:2404.04656
    """
    chosen, rejected = log_ratios(policy, reference)
    r_w, r_l = beta * chosen, beta * rejected
    shift = torch.cat([r_w, r_l]).mean().detach() if threshold else r_w.new_zeros(())
    return -logsigmoid(r_w - shift) - logsigmoid(shift - r_l)


def sppo(policy: PairLogps, reference: PairLogps, probability: Tensor, *, beta: Positive = 1e-3) -> Tensor:
    """SPPO: regress each log-ratio on the win probability of its response. For iterative training on own samples.

    loss        (lr_w - (p - 1/2)/beta)^2 + (lr_l + (p - 1/2)/beta)^2;   p = 1 (hard labels) has targets +-1/(2 beta)
    parameters  beta (0.001): inverse scale of the targets, 1/eta in the paper
    source      Wu et al. 2024, arXiv:2405.00675 eq. 4.7
    """
    chosen, rejected = log_ratios(policy, reference)
    target = (probability - 0.5) / beta
    return (chosen - target) ** 2 + (rejected + target) ** 2


@joint
def aot(policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1, label_smoothing: BelowHalf = 0.0) -> Tensor:
    """AOT, paired: make the distribution of the policy's margins stochastically dominate that of the reference.

    loss        -(1 - e) log sigmoid(beta d) - e log sigmoid(-beta d),
                d = sort(log pi_w - log pi_l) - sort(log ref_w - log ref_l), sorted over the optimizer step
    parameters  beta (0.1): scale of d;  label_smoothing (0.0): e, as in `sigmoid`
    source      Melnyk et al. 2024, arXiv:2406.05882
    """
    policy_margins = torch.sort(policy.chosen - policy.rejected).values
    reference_margins = torch.sort(reference.chosen - reference.rejected).values
    return cross_entropy(beta * (policy_margins - reference_margins), 1 - label_smoothing)


@joint
def aot_unpaired(
    policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1, label_smoothing: BelowHalf = 0.0
) -> Tensor:
    """AOT, unpaired: make the distribution of chosen rewards stochastically dominate that of rejected rewards.

    loss        -(1 - e) log sigmoid(beta d) - e log sigmoid(-beta d),   d = sort(lr_w) - sort(lr_l),
                sorted over the optimizer step
    parameters  beta (0.1): scale of d;  label_smoothing (0.0): e, as in `sigmoid`
    source      Melnyk et al. 2024, arXiv:2406.05882
    """
    chosen, rejected = log_ratios(policy, reference)
    return cross_entropy(beta * (torch.sort(chosen).values - torch.sort(rejected).values), 1 - label_smoothing)


def apo_zero(policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1) -> Tensor:
    """APO-zero: raise the chosen and lower the rejected log-ratio. For a policy worse than the chosen responses.

    loss        1 - sigmoid(beta lr_w) + sigmoid(beta lr_l)
    parameters  beta (0.1): scale of the log-ratios
    source      D'Oosterlinck et al. 2024, arXiv:2408.06266
    """
    chosen, rejected = log_ratios(policy, reference)
    return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)


def apo_down(policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1) -> Tensor:
    """APO-down: lower both log-ratios, the rejected one more. For a policy better than the chosen responses.

    loss        sigmoid(beta lr_w) + 1 - sigmoid(beta (lr_w - lr_l))
    parameters  beta (0.1): scale of the log-ratios
    source      D'Oosterlinck et al. 2024, arXiv:2408.06266
    """
    chosen, rejected = log_ratios(policy, reference)
    return torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * (chosen - rejected))


def discopop(
    policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1, tau: Annotated[float, Gt(0), Le(1)] = 0.05
) -> Tensor:
    """DiscoPOP: a mixture of the logistic and the exponential loss, discovered by an LLM-driven search.

    loss        (1 - m) (-log sigmoid(z)) + m exp(-z),   z = beta h,  m = sigmoid(z / tau)
    parameters  beta (0.1): as in `sigmoid`;  tau (0.05): width of the transition between the two losses
    gradient    not monotone: with a small tau, the loss rises with h near h = 0, as the paper notes
    note        m exp(-z) is computed as exp(log sigmoid(z/tau) - z), which cannot overflow for tau <= 1
    source      Lu et al. 2024, arXiv:2406.08414
    """
    z = beta * margin_of(policy, reference)
    return torch.sigmoid(-z / tau) * -logsigmoid(z) + torch.exp(logsigmoid(z / tau) - z)


def forward_kl(policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1) -> Tensor:
    """f-DPO with the forward KL as the regulariser, in place of the reverse KL of DPO.

    loss        -log sigmoid(beta [f'(u_w) - f'(u_l)]),   f'(u) = -1/u,  u = exp(lr)
    parameters  beta (0.1): strength of the regulariser
    note        exp(x) is replaced with its tangent above x = 40, so that the loss stays finite
    source      Wang et al. 2023, arXiv:2309.16240
    """
    chosen, rejected = log_ratios(policy, reference)
    return -logsigmoid(beta * (_exp(-rejected) - _exp(-chosen)))


def jensen_shannon(policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1) -> Tensor:
    """f-DPO with the Jensen-Shannon divergence as the regulariser.

    loss        -log sigmoid(beta [f'(u_w) - f'(u_l)]),   f'(u) = log(2u / (1 + u)) = log 2 + log sigmoid(lr)
    parameters  beta (0.1): strength of the regulariser
    source      Wang et al. 2023, arXiv:2309.16240
    """
    chosen, rejected = log_ratios(policy, reference)
    return -logsigmoid(beta * (logsigmoid(chosen) - logsigmoid(rejected)))


def alpha_divergence(
    policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1, alpha: Annotated[float, Gt(0), Lt(1)] = 0.5
) -> Tensor:
    """f-DPO with an alpha-divergence as the regulariser: reverse KL (DPO) at alpha -> 0, forward KL at alpha -> 1.

    loss        -log sigmoid(beta [f'(u_w) - f'(u_l)]),   f'(u) = (1 - u^-alpha) / alpha,  u = exp(lr)
    parameters  beta (0.1): strength of the regulariser;  alpha (0.5): the divergence, 0 < alpha < 1
    source      Wang et al. 2023, arXiv:2309.16240
    """
    chosen, rejected = log_ratios(policy, reference)
    return -logsigmoid(beta * (_exp(-alpha * rejected) - _exp(-alpha * chosen)) / alpha)


def _exp(x: Tensor, limit: float = 40.0) -> Tensor:
    """Return exp(x), above `limit` its tangent: finite, monotone, and with a non-zero gradient everywhere."""
    below = torch.exp(x.clamp(max=limit))
    return below * (1 + relu(x - limit))


def dpop(policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1, penalty: NonNegative = 50.0) -> Tensor:
    """DPOP: DPO with a penalty on chosen responses that become less likely than under the reference.

    loss        -log sigmoid(beta [h - penalty max(0, log ref_w - log pi_w)])
    parameters  beta (0.1): as in `sigmoid`;  penalty (50.0): the paper's lambda
    source      Pal et al. 2024, arXiv:2402.13228
    """
    chosen, rejected = log_ratios(policy, reference)
    return -logsigmoid(beta * (chosen - rejected - penalty * relu(-chosen)))


def r_dpo(
    policy: PairLogps, reference: PairLogps, probability: Tensor, *, beta: Positive = 0.1, alpha: NonNegative = 0.01
) -> Tensor:
    """R-DPO: DPO with a reward penalty per token, against policies that learn to write longer responses.

    loss        -p log sigmoid(z) - (1 - p) log sigmoid(-z),   z = beta h + alpha (|y_w| - |y_l|)
    parameters  beta (0.1): as in `sigmoid`;  alpha (0.01): reward penalty per token
    note        the sign is +: the optimum of E[r - alpha |y|] - beta KL has r = beta lr + alpha |y| + const,
                and p = sigmoid(r_w - r_l)
    source      Park et al. 2024, arXiv:2403.19159
    """
    extra_tokens = policy.chosen_length - policy.rejected_length
    return cross_entropy(beta * margin_of(policy, reference) + alpha * extra_tokens, probability)


def cal_dpo(policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1, calibration: NonNegative = 1.0) -> Tensor:
    """Cal-DPO: DPO with a term that pulls the implicit rewards to +1/2 (chosen) and -1/2 (rejected).

    loss        -log sigmoid(h) + calibration [(lr_w - 1/(2 beta))^2 + (lr_l + 1/(2 beta))^2]
    parameters  beta (0.1): sets the targets 1/(2 beta); as in the paper, the contrastive term does not use it
                calibration (1.0): weight of the second term, 1 in the paper; for the authors' code
                (tengxiao1/Cal-DPO), set calibration = 0.5 and beta = 0.001
    source      Xiao et al. 2024, arXiv:2412.14516
    """
    chosen, rejected = log_ratios(policy, reference)
    target = 1 / (2 * beta)
    squared_error = (chosen - target) ** 2 + (rejected + target) ** 2
    return -logsigmoid(chosen - rejected) + calibration * squared_error


TABLE = {
    f.__name__: f
    for f in (
        sigmoid, sigmoid_norm, robust, ipo, hinge, exo_pair, nca_pair, bco_pair, sppo, aot, aot_unpaired, apo_zero,
        apo_down, discopop, forward_kl, jensen_shannon, alpha_divergence, dpop, r_dpo, cal_dpo,
    )
}  # fmt: skip
