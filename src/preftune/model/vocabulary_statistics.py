"""Statistics of token distributions over the vocabulary, for the losses that need them.

    collision   log sum_v pi_v^2, without gradient
    kl          KL(reference || pi), with gradient in the policy

Logits are computed for one chunk of tokens at a time, and again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from preftune.model.head import Head
from preftune.model.logit_chunks import chunks

HeadInput = tuple[Tensor, Head]
"""(N, H) hidden states that predict the scored tokens, and the head that turns them into logits."""


def statistics(names: Collection[str], policy: HeadInput, reference: HeadInput | None) -> dict[str, Tensor]:
    """Return (N,) fp32 values by name. "kl" needs `reference`."""
    if not names:
        return {}
    (hidden_NH, head), pieces = policy, []
    for part in chunks(len(hidden_NH), head.weight):
        other = None if reference is None else (reference[0][part], reference[1])
        if torch.is_grad_enabled():
            pieces.append(checkpoint(_chunk, names, hidden_NH[part], head, other, use_reentrant=False))
        else:
            pieces.append(_chunk(names, hidden_NH[part], head, other))
    columns = (torch.cat(column) for column in zip(*pieces, strict=True))
    return dict(zip(sorted(names), columns, strict=True))


def _chunk(names: Collection[str], hidden_CH: Tensor, head: Head, reference: HeadInput | None) -> tuple[Tensor, ...]:
    logits_CV = head.logits(hidden_CH, wide=True)
    columns = []
    for name in sorted(names):
        if name == "collision":
            with torch.no_grad():
                columns.append((2 * logits_CV).logsumexp(-1) - 2 * logits_CV.logsumexp(-1))
        else:
            assert reference is not None
            with torch.no_grad():
                log_ref_CV = reference[1].logits(reference[0], wide=True).log_softmax(-1)
            columns.append((log_ref_CV.exp() * (log_ref_CV - logits_CV.log_softmax(-1))).sum(-1))
    return tuple(columns)
