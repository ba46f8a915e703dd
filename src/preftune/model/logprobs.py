"""From a batch to log-probs: one forward pass, and the head at scored positions only.

The head is applied to chunks of scored tokens, so no (tokens x vocabulary) tensor of the batch exists. Each
chunk's logits are recomputed in the backward pass. Log-softmax and sums are fp32 whatever the model's dtype.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from preftune.model.attention import laid_out
from preftune.model.head import Head, find_head, intercept, output_layer
from preftune.types import Batch, Logps, Rows

CHUNK_BYTES = 64_000_000
"""Size of one chunk's fp32 logits."""


@dataclass(frozen=True, slots=True)
class Scorer:
    """A causal language model and its head; `head` None means that the model's own code computes logits."""

    model: Any
    head: Head | None

    @staticmethod
    def of(model: Any) -> Scorer:
        return Scorer(model, find_head(model))

    @property
    def device(self) -> torch.device:
        device: torch.device = next(iter(self.model.parameters())).device
        return device


HeadInput = tuple[Tensor, Head]
"""(N, H) hidden states that predict the scored tokens, and the head that reads them."""


def logps(scorer: Scorer, batch: Batch, statistics: Collection[str] = (), reference: HeadInput | None = None) -> Logps:
    """Log-probs of the batch's responses, and the token statistics that a loss asked for.

    statistics   "collision": sum_t log sum_v pi_v^2, without gradient; "kl": sum_t KL(ref || pi), needs `reference`
    """
    if scorer.head is None:
        assert not statistics  # refused before training, see methods.dpo
        token_N = _from_logits(_own_logits(scorer.model, batch), batch.target_N)
        return Logps(token_N, sum_responses(token_N, batch.length_S), batch.length_S)
    token_N, extra_N = token_logprobs(*head_input(scorer, batch), batch.target_N, statistics, reference)
    extra = {name: sum_responses(values, batch.length_S) for name, values in extra_N.items()}
    return Logps(token_N, sum_responses(token_N, batch.length_S), batch.length_S, extra)


@torch.no_grad()
def reference_logps(states: HeadInput, batch: Batch) -> Logps:
    """Log-probs from states that were computed for a statistic anyway."""
    token_N, _ = token_logprobs(*states, batch.target_N)
    return Logps(token_N, sum_responses(token_N, batch.length_S), batch.length_S)


def head_input(scorer: Scorer, batch: Batch) -> HeadInput:
    """Run the model once over the batch."""
    assert scorer.head is not None
    return hidden_states(scorer.model, batch), scorer.head


def hidden_states(model: Any, batch: Batch) -> Tensor:
    """(N, H) last hidden states at the positions that predict scored tokens. The model's own head gets no work."""
    seen: list[Tensor] = []

    def take(hidden: Tensor) -> Tensor:
        seen.append(hidden)
        return hidden[..., :0, :]

    with intercept(output_layer(model), take):
        _forward(model, batch)
    return seen[0].reshape(-1, seen[0].shape[-1])[batch.read_N]


def _own_logits(model: Any, batch: Batch) -> Tensor:
    """(N, V) logits from the model's own code, which is given the scored positions only."""

    def scored(hidden: Tensor) -> Tensor:
        return hidden.reshape(-1, hidden.shape[-1])[batch.read_N][None]

    with intercept(output_layer(model), scored):
        return _forward(model, batch)[0]


def _forward(model: Any, batch: Batch) -> Tensor:
    if isinstance(batch.layout, Rows):
        ids = batch.ids_T.view(batch.layout.rows, batch.layout.width)
        return model(input_ids=ids, use_cache=False).logits  # type: ignore[no-any-return]
    ids, positions = batch.ids_T[None], batch.positions_T[None]
    # without a mask, transformers would take every jump of the positions for a new document
    everything = torch.ones_like(ids, dtype=torch.bool)
    with laid_out(batch.layout):
        out = model(input_ids=ids, position_ids=positions, attention_mask=everything, use_cache=False)
    return out.logits  # type: ignore[no-any-return]


def token_logprobs(
    hidden_NH: Tensor,
    head: Head,
    target_N: Tensor,
    statistics: Collection[str] = (),
    reference: HeadInput | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """log pi(target | context) for N tokens in fp32, chunk by chunk, and further statistics by name."""
    size = max(1, CHUNK_BYTES // (4 * head.weight.shape[0]))
    pieces = []
    for begin in range(0, len(target_N), size):
        part = slice(begin, begin + size)
        other = None if reference is None else (reference[0][part], reference[1])
        if torch.is_grad_enabled() and len(target_N) > size:
            piece = checkpoint(_chunk, hidden_NH[part], head, target_N[part], statistics, other, use_reentrant=False)
        else:
            piece = _chunk(hidden_NH[part], head, target_N[part], statistics, other)
        pieces.append(piece)
    names = sorted(statistics)
    token_N, *extra = (torch.cat(column) for column in zip(*pieces, strict=True))
    return token_N, dict(zip(names, extra, strict=True))


def _chunk(
    hidden_CH: Tensor,
    head: Head,
    target_C: Tensor,
    statistics: Collection[str],
    reference: HeadInput | None,
) -> tuple[Tensor, ...]:
    logits_CV = head.logits(hidden_CH)
    columns = [_from_logits(logits_CV, target_C)]
    for name in sorted(statistics):
        if name == "collision":
            with torch.no_grad():
                columns.append((2 * logits_CV).logsumexp(-1) - 2 * logits_CV.logsumexp(-1))
        else:
            assert reference is not None
            with torch.no_grad():
                log_ref_CV = reference[1].logits(reference[0]).log_softmax(-1)
            log_pi_CV = logits_CV.log_softmax(-1)
            columns.append((log_ref_CV.exp() * (log_ref_CV - log_pi_CV)).sum(-1))
    return tuple(columns)


def _from_logits(logits_CV: Tensor, target_C: Tensor) -> Tensor:
    chosen = logits_CV.gather(-1, target_C[:, None]).squeeze(-1)
    return chosen.float() - torch.logsumexp(logits_CV.float(), dim=-1)


def sum_responses(values_N: Tensor, length_S: Tensor) -> Tensor:
    """Sum per response; the tokens of a response are adjacent."""
    owner_N = torch.repeat_interleave(torch.arange(len(length_S), device=values_N.device), length_S)
    return values_N.new_zeros(len(length_S)).index_add(0, owner_N, values_N)


def model_size(model: nn.Module) -> tuple[int, int]:
    """(all parameters, trainable parameters)."""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, _ in counts), sum(n for n, trains in counts if trains)
