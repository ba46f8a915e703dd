"""The loss of supervised fine-tuning."""

from __future__ import annotations

from torch import Tensor

from preftune.types import Logps


def sft(policy: Logps) -> Tensor:
    """Negative log-likelihood of each response; the loop divides by the scored tokens of the whole step.

    loss      -log pi(y|x),   one value a response, counted by its tokens
    source    Rafailov et al. 2023, arXiv:2305.18290 section 3
    """
    return -policy.sum_S
