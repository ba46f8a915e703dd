"""Losses of single responses that are labelled desirable (+1) or undesirable (-1); one value a response.

lr_y = log pi(y|x) - log ref(y|x)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from preftune.losses.joint import joint
from preftune.types import Logps, NonNegative, Positive


@joint
def kto(
    policy: Logps,
    reference: Logps,
    label: Tensor,
    mismatched: Tensor,
    *,
    beta: Positive = 0.1,
    desirable: NonNegative = 1.0,
    undesirable: NonNegative = 1.0,
) -> Tensor:
    """KTO: a prospect-theory value of each response against what the policy's average response is worth.

    loss      desirable (1 - sigmoid(beta (lr - z)))  or  undesirable (1 - sigmoid(beta (z - lr)))
              z = sg max(0, mean lr of mismatched responses over the step), an estimate of KL(pi || ref)
    input     mismatched (S,): true for answers to another prompt; they estimate z and have no loss of their own
    source    Ethayarajh et al. 2024, arXiv:2402.01306
    """
    lr = policy.sum_S - reference.sum_S
    z = relu(lr[mismatched].mean()).detach() if bool(mismatched.any()) else lr.new_zeros(())
    value = torch.where(
        label > 0,
        desirable * torch.sigmoid(beta * (z - lr)),
        undesirable * torch.sigmoid(beta * (lr - z)),
    )
    return torch.where(mismatched, torch.zeros_like(value), value)


@joint
def bco(policy: Logps, reference: Logps, label: Tensor, *, beta: Positive = 0.1) -> Tensor:
    """BCO: a classifier of desirable against undesirable responses with a moving threshold.

    loss      -log sigmoid(r - d)  or  -log sigmoid(d - r),   r = beta lr
              d = sg (mean r of the desirable + mean r of the undesirable) / 2 over the step;
              where a step holds one kind only, d is that kind's mean
    note      the paper keeps a moving average of d, and TRL's BCOTrainer the mean of all rewards so far, in which the
              two kinds count by their number; here d is that of the step, so that the loss has no hidden state.
              The paper's weights for undesirable prompts (underlying distribution matching) are not here
    source    Jung et al. 2024, arXiv:2404.04656
    """
    r = beta * (policy.sum_S - reference.sum_S)
    means = [r[label == kind].mean() for kind in (1, -1) if bool((label == kind).any())]
    threshold = torch.stack(means).mean().detach()
    return -logsigmoid(label * (r - threshold))


TABLE: dict[str, Callable[..., Tensor]] = {"kto": kto, "bco": bco}
