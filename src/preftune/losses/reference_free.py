"""Losses of preference pairs that need no reference; one value a judgement. Notation as in losses.pairwise."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.types import NonNegative, Pair, PairLogps, Positive, Share


def mean_logps(policy: PairLogps) -> Pair:
    """log pi(y|x) / |y|."""
    return Pair(policy.chosen / policy.chosen_length, policy.rejected / policy.rejected_length)


def simpo(policy: PairLogps, *, beta: Positive = 2.0, gamma: NonNegative = 1.0) -> Tensor:
    """SimPO: reference-free, on the mean log-prob per token, with a target margin.

    loss      -log sigmoid(beta (log pi_w/|y_w| - log pi_l/|y_l|) - gamma)
    note      the authors' code (princeton-nlp/SimPO) takes gamma / beta, gamma_beta_ratio, in place of gamma. Its
              default is 0.25 with beta 2, so gamma = 0.5; its README recommends to begin with 0.5, which is gamma = 1,
              the default here. Its published runs have beta 2 to 10 and ratios 0.1 to 0.8
    source    Meng et al. 2024, arXiv:2405.14734
    """
    chosen, rejected = mean_logps(policy)
    return -logsigmoid(beta * (chosen - rejected) - gamma)


def cpo(policy: PairLogps, *, beta: Positive = 0.1, alpha: NonNegative = 1.0) -> Tensor:
    """CPO: reference-free DPO plus the likelihood of the chosen response.

    loss      -log sigmoid(beta (log pi_w - log pi_l)) - alpha log pi_w / |y_w|
    note      the likelihood term is averaged over the tokens of each response, then over pairs. The authors' code
              (fe1ixxu/ALMA) and TRL average over all chosen tokens of a batch, so that long responses weigh more there;
              with responses of equal length the two are the same. The authors' newer code also scales the rejected
              log-prob (ARPO), which is another loss
    source    Xu et al. 2024, arXiv:2401.08417 eq. 3 (the preference term)
    """
    return -logsigmoid(beta * (policy.chosen - policy.rejected)) - alpha * mean_logps(policy).chosen


def orpo(policy: PairLogps, *, beta: Positive = 0.1) -> Tensor:
    """ORPO: SFT on the chosen response plus the odds ratio against the rejected one. Needs no SFT stage.

    loss      -m_w - beta log sigmoid(o_w - o_l),   m = log pi / |y|,  o = m - log(1 - exp m)   (log-odds)
    note      beta is the paper's lambda
    source    Hong et al. 2024, arXiv:2403.07691 eq. 7
    """
    chosen, rejected = mean_logps(policy)
    return -chosen - beta * logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def _log_odds(m: Tensor) -> Tensor:
    """m - log(1 - exp m) for m < 0, accurate near 0 and far from it."""
    m = m.clamp(max=-1e-6)
    # log(1 - e^m): expm1 keeps the digits near 0, log1p those far below it; each side is kept off the
    # other's range, where its gradient is not finite.
    near = torch.log(-torch.expm1(m.clamp(min=-math.log(2))))
    far = torch.log1p(-torch.exp(m.clamp(max=-math.log(2))))
    return m - torch.where(m > -math.log(2), near, far)


def nll(policy: PairLogps) -> Tensor:
    """Likelihood of the chosen response, per token: the term that turns DPO into RPO (DPO + NLL).

    loss      -log pi_w / |y_w|
    use       loss: [{name: sigmoid, beta: 0.1}, {name: nll, weight: 1.0}]
    source    Pang et al. 2024, arXiv:2404.19733
    """
    return -mean_logps(policy).chosen


def unlikelihood(policy: PairLogps, *, alpha: Share = 1.0) -> Tensor:
    """Unlikelihood, a baseline of the DPO paper: raise the chosen, lower the rejected, without any bound.

    loss      -log pi_w + alpha log pi_l
    note      not bounded below; the paper reports that it degenerates, which is why it is a baseline
    source    Rafailov et al. 2023, arXiv:2305.18290 section 6; Welleck et al. 2019, arXiv:1908.04319
    """
    return -policy.chosen + alpha * policy.rejected


TABLE = {f.__name__: f for f in (simpo, cpo, orpo, nll, unlikelihood)}
