"""The loss of supervised fine-tuning."""

from __future__ import annotations

from torch import Tensor

from preftune.types import Logps


def sft(policy: Logps) -> Tensor:
    """Negative log-likelihood of each response. The step's loss is the mean over all its scored tokens.

    loss        -log pi(y|x),   one value per response, divided by the number of scored tokens of the optimizer step
    source      Rafailov et al. 2023, arXiv:2305.18290 section 3
    """
    return -policy.sum_S
