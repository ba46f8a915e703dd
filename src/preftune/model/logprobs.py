"""From a batch to log-probs: one forward pass, and the head at scored positions only.

Log-softmax and sums are fp32 whatever the model's dtype.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from preftune.model.attention import segmented, uses_segments
from preftune.model.head import Head, find_head, intercept, output_layer
from preftune.model.statistics import HeadInput, statistics
from preftune.model.token_logprobs import token_logprobs
from preftune.types import Batch, Logps, Rows


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


def logps(scorer: Scorer, batch: Batch, wanted: Collection[str] = (), reference: HeadInput | None = None) -> Logps:
    """Log-probs of the batch's responses, and sums of the token statistics that a loss wants (model.statistics)."""
    if scorer.head is None:
        assert not wanted  # refused before training, see methods.dpo
        token_N = _from_logits(_own_logits(scorer.model, batch), batch.target_N)
        return Logps(token_N, sum_responses(token_N, batch.length_S), batch.length_S)
    states = head_input(scorer, batch)
    token_N = token_logprobs(*states, batch.target_N)
    found = statistics(wanted, states, reference)
    extra = {name: sum_responses(values, batch.length_S) for name, values in found.items()}
    return Logps(token_N, sum_responses(token_N, batch.length_S), batch.length_S, extra)


@torch.no_grad()
def reference_logps(states: HeadInput, batch: Batch) -> Logps:
    """Log-probs from states that were computed for a statistic anyway."""
    token_N = token_logprobs(*states, batch.target_N)
    return Logps(token_N, sum_responses(token_N, batch.length_S), batch.length_S)


def head_input(scorer: Scorer, batch: Batch) -> HeadInput:
    """Run the model once over the batch."""
    assert scorer.head is not None
    return hidden_states(scorer.model, batch), scorer.head


def hidden_states(model: Any, batch: Batch) -> Tensor:
    """(N, H) last hidden states at the positions that predict scored tokens. The model's own head gets no work."""
    seen: list[Tensor] = []
    layer = output_layer(model)
    scalar = getattr(layer, "out_features", 0) == 1  # a classifier goes on with what its head says; it is one row

    def take(hidden: Tensor) -> Tensor:
        seen.append(hidden)
        return hidden if scalar else hidden[..., :0, :]

    with intercept(layer, take):
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
    if not uses_segments(model):
        raise RuntimeError("a packed batch for a model that attends to whole rows: its numbers would be wrong")
    ids, positions = batch.ids_T[None], batch.positions_T[None]
    # without a mask, transformers would take every jump of the positions for a new document
    everything = torch.ones_like(ids, dtype=torch.bool)
    with segmented(batch.layout):
        out = model(input_ids=ids, position_ids=positions, attention_mask=everything, use_cache=False)
    return out.logits  # type: ignore[no-any-return]


def _from_logits(logits_CV: Tensor, target_C: Tensor) -> Tensor:
    chosen = logits_CV.gather(-1, target_C[:, None]).squeeze(-1)
    return chosen.float() - torch.logsumexp(logits_CV.float(), dim=-1)


def sum_responses(values_N: Tensor, length_S: Tensor) -> Tensor:
    """Sum per response; the tokens of a response are adjacent."""
    index_S = torch.arange(len(length_S), device=values_N.device)
    owner_N = torch.repeat_interleave(index_S, length_S, output_size=len(values_N))  # else a GPU is asked for it
    # a GPU adds in any order: in fp64 that does not reach the digits of fp32
    dtype = torch.float64 if values_N.device.type == "cuda" else values_N.dtype
    return values_N.new_zeros(len(length_S), dtype=dtype).index_add(0, owner_N, values_N.to(dtype)).to(values_N.dtype)


def model_size(model: nn.Module) -> tuple[int, int]:
    """(all parameters, trainable parameters)."""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, _ in counts), sum(n for n, trains in counts if trains)
