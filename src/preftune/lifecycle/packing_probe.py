"""May a model be given packed batches? Asked of the model itself, by numbers, before a run depends on the answer.

An architecture is admitted if transformers lets its attention be replaced, every kind of layer is attention over the
whole past or a window of it, each layer calls the attention function once, and three small groups, packed with shared
prompts, have the log-probs and the input gradients of plain rows. Without the probe, architectures outside the
interface, with recurrent or convolutional layers or with chunked attention would give wrong numbers without an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from preftune.data.layout import LayoutName, batch_of
from preftune.errors import ModelError
from preftune.model.attention import base_of, record_attention_calls, restore_attention, use_segments
from preftune.model.logprobs import Scorer, hidden_states, logps
from preftune.types import Batch, TokenGroup

LAYERS = {"full_attention", "sliding_attention"}
TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
"""Largest error of a token's log-prob in nats, and of the gradient relative to its largest entry."""


def token_values(scorer: Scorer, batch: Batch) -> Tensor:
    """What the probe compares for a language model: (N,) log-probs."""
    return logps(scorer, batch).token_N


def state_values(scorer: Scorer, batch: Batch) -> Tensor:
    """For a model with a scalar head, which may still be 0: (N,) a fixed combination of its last hidden states."""
    hidden_NH = hidden_states(scorer.model, batch).float()
    width = hidden_NH.shape[-1]
    weights_H = torch.linspace(-1, 1, width, device=hidden_NH.device) / width**0.5
    return torch.mv(hidden_NH, weights_H)


Values = Callable[[Scorer, Batch], Tensor]


def admit(scorer: Scorer, wanted: LayoutName | str, values: Values = token_values) -> tuple[LayoutName, str]:
    """The layout that `wanted` (rows, packed, shared or auto) comes to for this model, and a sentence if it is rows.

    The model is switched to attention by segments where that is what comes out. Raises ModelError if a layout was named
    that the model cannot have.
    """
    if wanted == "rows":
        return "rows", ""
    reason = refusal(scorer, values)
    if not reason:
        return ("packed" if wanted == "packed" else "shared"), ""
    if wanted == "auto":
        return "rows", f"attention: rows, because {reason}"
    raise ModelError(
        f"model.attention={wanted} is not exact for {type(base_of(scorer.model)).__name__}",
        why=reason,
        fix="use model.attention=auto or rows",
    )


def refusal(scorer: Scorer, values: Values = token_values) -> str:
    """Why the model must keep rows; empty if it may attend by segments, and then it is switched to them."""
    model = scorer.model
    config = base_of(model).config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds - LAYERS:
        return f"it has layers of kind {', '.join(sorted(kinds - LAYERS))}"
    groups = probe_groups(config.vocab_size)
    expected = measure(scorer, batch_of(groups, "rows"), values)
    if not use_segments(model):
        return "its attention cannot be replaced through transformers' interface"
    reason = ""
    try:
        batch = batch_of(groups, "shared")
        with record_attention_calls() as calls:
            found = measure(scorer, batch, values)
        layers = config.num_hidden_layers
        if calls != [len(batch.ids_T)] * layers:
            reason = f"its {layers} layers made {len(calls)} calls of the attention interface"
        else:
            reason = difference(expected, found)
    except Exception as error:
        reason = f"a packed batch fails: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if reason:
        restore_attention(model)
    return reason


def difference(expected: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor]) -> str:
    """In words, if the numbers differ by more than rounding."""
    tolerance = TOLERANCE[found[1].dtype]
    value = float((expected[0] - found[0]).abs().max())
    scale = float(expected[1].float().abs().max())
    gradient = float((expected[1].float() - found[1].float()).abs().max()) / max(scale, 1e-30)
    if value <= tolerance and gradient <= tolerance:
        return ""
    return f"packed batches change its numbers (a log-prob by {value:.2g} nats, gradients by {gradient:.1%})"


def probe_groups(vocabulary: int) -> list[TokenGroup]:
    """Three small groups of different shapes, always the same."""
    generator = np.random.default_rng(0)

    def ids(n: int) -> Any:
        return generator.integers(vocabulary // 8, vocabulary, n, dtype=np.int32)

    shapes: list[tuple[int, Sequence[int]]] = [(9, (5, 7)), (4, (1, 6, 3)), (13, (8, 2))]
    return [TokenGroup(ids(prompt), tuple(ids(n) for n in lengths)) for prompt, lengths in shapes]


def measure(scorer: Scorer, batch: Batch, values: Values = token_values) -> tuple[Tensor, Tensor]:
    """`values` of the tokens, and the gradient of a weighted sum of them at the model's input.

    The gradient is added up by token and position. It has gone through every layer, but needs no memory for those of
    the weights, the head's aside.
    """
    batch = batch.to(scorer.device)
    seen: list[Tensor] = []

    def watch(_module: Any, _args: Any, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    handle = base_of(scorer.model).get_input_embeddings().register_forward_hook(watch)
    try:
        with torch.enable_grad():
            token_N = values(scorer, batch)
            weights = torch.linspace(-1, 1, len(token_N), device=token_N.device)
            (gradient,) = torch.autograd.grad((weights * token_N).sum(), seen[-1])
    finally:
        handle.remove()
    flat = gradient.reshape(-1, gradient.shape[-1])
    # a shared prompt's gradient is the sum over the rows that repeat it; padding (token 0) is left out
    key_T = batch.ids_T * 10_000 + batch.positions_T
    keys, at_T = key_T.unique(return_inverse=True)
    total = torch.zeros(len(keys), flat.shape[-1], device=flat.device).index_add_(0, at_T, flat.float())
    return token_N.detach(), total[keys >= 10_000].to(gradient.dtype)
