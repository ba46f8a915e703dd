"""Compute the log-probs of a batch: one forward pass, with the head at scored positions only.

Log-softmax and sums are in fp32 for all model dtypes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from preftune.model.attention import segmented, uses_segments
from preftune.model.compile import training_graph
from preftune.model.head import Head, find_head, intercept, output_layer
from preftune.model.quantised import quantised_weights
from preftune.model.token_logprobs import token_logprobs
from preftune.model.vocabulary_statistics import HeadInput, statistics
from preftune.types import Batch, Logps, Rows


@dataclass(frozen=True, slots=True)
class Scorer:
    """A causal language model and its head. If `head` is None, the model's code computes the logits."""

    model: Any
    head: Head | None

    @staticmethod
    def of(model: Any) -> Scorer:
        return Scorer(model, find_head(model))

    @property
    def device(self) -> torch.device:
        device: torch.device = next(iter(self.model.parameters())).device
        return device


def logps(scorer: Scorer, batch: Batch, names: Collection[str] = (), reference: HeadInput | None = None) -> Logps:
    """Return the log-probs of the batch's responses, and the sums of `names` (see model.vocabulary_statistics)."""
    if scorer.head is None:
        assert not names  # methods.dpo reports this as an error before training
        logits_NV = _own_logits(scorer.model, batch)
        chosen_N = logits_NV.gather(-1, batch.target_N[:, None]).squeeze(-1)
        token_N = chosen_N.float() - torch.logsumexp(logits_NV.float(), dim=-1)
        return Logps(token_N, sum_responses(token_N, batch.length_S), batch.length_S)
    states = head_input(scorer, batch)
    result = logps_from_states(states, batch)
    if not names:
        return result
    extra = {n: sum_responses(values_N, batch.length_S) for n, values_N in statistics(names, states, reference).items()}
    return replace(result, extra=extra)


def logps_from_states(states: HeadInput, batch: Batch) -> Logps:
    """Return the log-probs of the batch's responses from hidden states that are already computed."""
    token_N = token_logprobs(*states, batch.target_N)
    return Logps(token_N, sum_responses(token_N, batch.length_S), batch.length_S)


def head_input(scorer: Scorer, batch: Batch) -> HeadInput:
    """Run the model once and return its hidden states at scored positions, with its head."""
    states = hidden_states(scorer.model, batch)
    return states, current_head(scorer)


def current_head(scorer: Scorer) -> Head:
    """Return the head after a forward pass. A model that is split among ranks then has the weight in a new tensor."""
    assert scorer.head is not None
    if not hasattr(scorer.head.weight, "to_local"):
        return scorer.head
    layer: Any = output_layer(scorer.model)
    return replace(scorer.head, weight=layer.weight, bias=getattr(layer, "bias", None))


def hidden_states(model: Any, batch: Batch) -> Tensor:
    """Return the (N, H) last hidden states at the slots that predict scored tokens. The model's head is skipped."""
    captured: list[Tensor] = []
    layer = output_layer(model)
    scalar = getattr(layer, "out_features", 0) == 1  # classifiers need the output of their head, which is cheap

    def capture(hidden: Tensor) -> Tensor:
        captured.append(hidden)
        weight = next(layer.parameters(), None)
        needed = hidden if scalar else hidden[..., :0, :]
        return needed if weight is None else needed.to(weight.dtype)  # another one inside `excerpt.in_fp32`

    with intercept(layer, capture):
        _forward(model, batch)
    return read_slots(captured[0], batch.read_N)


def read_slots(hidden: Tensor, read_N: Tensor) -> Tensor:
    """Return the (N, H) rows `read_N` of the slots of `hidden`, which has the size H last.

    Several responses read the last slot of a shared prompt, so the gradient adds up rows. On a CPU, the gradient of
    indexing adds them with atomic operations, whose order changes from time to time if there are several threads. That
    of index_select adds them in order. On a GPU, indexing sorts the rows and index_select is atomic.
    """
    rows = hidden.reshape(-1, hidden.shape[-1])
    return rows.index_select(0, read_N) if rows.device.type == "cpu" else rows[read_N]


def _own_logits(model: Any, batch: Batch) -> Tensor:
    """Return the (N, V) logits that the model's code computes at the scored positions."""

    def scored(hidden: Tensor) -> Tensor:
        return read_slots(hidden, batch.read_N)[None]

    with intercept(output_layer(model), scored):
        return _forward(model, batch)[0]


def _forward(model: Any, batch: Batch) -> Tensor:
    if torch.is_grad_enabled():
        return _run(model, batch)
    with training_graph(model):
        return _run(model, batch)


def _run(model: Any, batch: Batch) -> Tensor:
    if isinstance(batch.layout, Rows):
        ids = batch.ids_T.view(batch.layout.rows, batch.layout.width)
        return model(input_ids=ids, use_cache=False).logits  # type: ignore[no-any-return]
    if not uses_segments(model):
        raise RuntimeError("a packed batch needs segment attention: call use_segments(model) first")
    ids, positions = batch.ids_T[None], batch.positions_T[None]
    # Without a mask, transformers treats every jump in the positions as the start of a new document.
    mask = torch.ones_like(ids, dtype=torch.bool)
    with segmented(batch.layout):
        out = model(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False)
    return out.logits  # type: ignore[no-any-return]


def sum_responses(values_N: Tensor, length_S: Tensor) -> Tensor:
    """Sum the values of each response. The tokens of a response are adjacent."""
    index_S = torch.arange(len(length_S), device=values_N.device)
    owner_N = torch.repeat_interleave(index_S, length_S, output_size=len(values_N))  # output_size avoids a GPU sync
    # The order of additions on a GPU varies. In fp64, it does not affect the result after rounding to fp32.
    dtype = torch.float64 if values_N.device.type == "cuda" else values_N.dtype
    return values_N.new_zeros(len(length_S), dtype=dtype).index_add(0, owner_N, values_N.to(dtype)).to(values_N.dtype)


def model_size(model: nn.Module) -> tuple[int, int]:
    """Return the number of all parameters, quantised ones included, and of trainable parameters."""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, _ in counts) + quantised_weights(model), sum(n for n, trains in counts if trains)
