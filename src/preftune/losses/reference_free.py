"""Losses on preference pairs without a reference: one value per judgement. Notation as in losses.pairwise."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.types import NonNegative, Pair, PairLogps, Positive, Share


def mean_logps(policy: PairLogps) -> Pair:
    """Return the mean log-prob per token, log pi(y|x) / |y|, of both responses."""
    return Pair(policy.chosen / policy.chosen_length, policy.rejected / policy.rejected_length)


def simpo(policy: PairLogps, *, beta: Positive = 2.0, gamma: NonNegative = 1.0) -> Tensor:
    """SimPO: compare the mean log-probs per token, with a target margin. Needs no reference.

    loss        -log sigmoid(beta (log pi_w/|y_w| - log pi_l/|y_l|) - gamma)
    parameters  beta (2.0): scale of the reward;  gamma (1.0): margin that the reward difference must exceed
    note        the authors' code (princeton-nlp/SimPO) has gamma_beta_ratio = gamma / beta in place of gamma. Its
                default, 0.25 with beta 2, is gamma = 0.5; its README recommends starting with 0.5, which is gamma = 1.
                Its published runs use beta 2 to 10 and ratios 0.1 to 0.8
    source      Meng et al. 2024, arXiv:2405.14734
    """
    chosen, rejected = mean_logps(policy)
    return -logsigmoid(beta * (chosen - rejected) - gamma)


def cpo(policy: PairLogps, *, beta: Positive = 0.1, alpha: NonNegative = 1.0) -> Tensor:
    """CPO: DPO without a reference, plus the negative log-likelihood of the chosen response.

    loss        -log sigmoid(beta (log pi_w - log pi_l)) - alpha log pi_w / |y_w|
    parameters  beta (0.1): scale of the margin;  alpha (1.0): weight of the likelihood term
    note        the likelihood term is a mean over the tokens of each response, then over pairs. The authors' code
                (fe1ixxu/ALMA) and TRL use the mean over all chosen tokens of a batch, which gives long responses more
                weight. The authors' newer code also scales the rejected log-prob (ARPO), which is a different loss
    source      Xu et al. 2024, arXiv:2401.08417 eq. 3 (the preference term)
    """
    return -logsigmoid(beta * (policy.chosen - policy.rejected)) - alpha * mean_logps(policy).chosen


def orpo(policy: PairLogps, *, beta: Positive = 0.1) -> Tensor:
    """ORPO: SFT on the chosen response plus an odds-ratio term. Needs neither a reference nor a separate SFT stage.

    loss        -m_w - beta log sigmoid(o_w - o_l),   m = log pi / |y|,  o = m - log(1 - exp m)   (log-odds)
    parameters  beta (0.1): weight of the odds-ratio term, the paper's lambda
    source      Hong et al. 2024, arXiv:2403.07691 eq. 7
    """
    chosen, rejected = mean_logps(policy)
    return -chosen - beta * logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def _log_odds(m: Tensor) -> Tensor:
    """Return m - log(1 - exp m) for m < 0, accurate for m close to 0 and for very negative m."""
    m = m.clamp(max=-1e-6)
    # For log(1 - e^m), expm1 is accurate near 0 and log1p far below 0. Each input is clamped to its own range,
    # because outside of it the gradient is not finite.
    near = torch.log(-torch.expm1(m.clamp(min=-math.log(2))))
    far = torch.log1p(-torch.exp(m.clamp(max=-math.log(2))))
    return m - torch.where(m > -math.log(2), near, far)


def nll(policy: PairLogps) -> Tensor:
    """Negative log-likelihood of the chosen response per token: the term that RPO adds to DPO.

    loss        -log pi_w / |y_w|
    usage       loss: [{name: sigmoid, beta: 0.1}, {name: nll, weight: 1.0}]
    source      Pang et al. 2024, arXiv:2404.19733
    """
    return -mean_logps(policy).chosen


def unlikelihood(policy: PairLogps, *, alpha: Share = 1.0) -> Tensor:
    """Unlikelihood: raise the chosen and lower the rejected log-prob. Use it only as a baseline in comparisons.

    loss        -log pi_w + alpha log pi_l
    parameters  alpha (1.0): weight of the rejected response, from 0 to 1
    note        the loss has no lower bound; the DPO paper, where it is a baseline, reports degenerate responses
    source      Rafailov et al. 2023, arXiv:2305.18290 section 6; Welleck et al. 2019, arXiv:1908.04319
    """
    return -policy.chosen + alpha * policy.rejected


TABLE = {f.__name__: f for f in (simpo, cpo, orpo, nll, unlikelihood)}
