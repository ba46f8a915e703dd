"""Losses on single responses that are labelled desirable (+1) or undesirable (-1): one value per response.

lr_y = log pi(y|x) - log ref(y|x)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from preftune.formulas import implicit_reward
from preftune.losses.objective import joint
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
    """KTO: raise desirable and lower undesirable responses, each compared with an estimate of KL(pi || ref).

    loss        desirable (1 - sigmoid(beta (lr - z)))  or  undesirable (1 - sigmoid(beta (z - lr))),
                z = sg max(0, mean lr of the mismatched responses of the optimizer step), the KL estimate
    input       mismatched (S,): true for responses to a different prompt, which only estimate z and have loss 0
    parameters  beta (0.1): strength of the pull to the reference
                desirable (1.0), undesirable (1.0): weights of the two labels
    source      Ethayarajh et al. 2024, arXiv:2402.01306
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
    """BCO: train the implicit reward as a binary classifier of desirable against undesirable responses.

    loss        -log sigmoid(r - d)  or  -log sigmoid(d - r),   r = beta lr,
                d = sg (mean r of the desirable + mean r of the undesirable) / 2 over the optimizer step;
                if a step has one label only, d is the mean r of that label
    parameters  beta (0.1): scale of the rewards
    note        the paper uses a moving average of d over steps, TRL's BCOTrainer the mean of all rewards so far. Here
                d needs no state between steps. The paper's weights for undesirable prompts (underlying distribution
                matching) are not implemented
    source      Jung et al. 2024, arXiv:2404.04656
    """
    r = implicit_reward(policy.sum_S, reference.sum_S, beta)
    means = [r[label == kind].mean() for kind in (1, -1) if bool((label == kind).any())]
    threshold = torch.stack(means).mean().detach()
    return -logsigmoid(label * (r - threshold))


TABLE: dict[str, Callable[..., Tensor]] = {"kto": kto, "bco": bco}
