"""Test whether a model computes the same results on packed batches as on plain rows.

A model may use packed batches if transformers can replace its attention, if every layer uses full or sliding-window
attention, if each layer calls the attention function once, and if three small groups, packed with shared prompts, have
the same log-probs and input gradients as in plain rows. Without this test, models with a different attention interface,
recurrent or convolutional layers or chunked attention would give wrong results without an error.
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
    """Return what the probe compares for a language model: (N,) log-probs."""
    return logps(scorer, batch).token_N


def state_values(scorer: Scorer, batch: Batch) -> Tensor:
    """Return (N,) a fixed combination of the last hidden states of a scalar model, whose new head may still be 0."""
    hidden_NH = hidden_states(scorer.model, batch).float()
    width = hidden_NH.shape[-1]
    weights_H = torch.linspace(-1, 1, width, device=hidden_NH.device) / width**0.5
    return torch.mv(hidden_NH, weights_H)


Values = Callable[[Scorer, Batch], Tensor]


def choose_layout(scorer: Scorer, layout: LayoutName | str, values: Values = token_values) -> tuple[LayoutName, str]:
    """Return the layout to use for the setting `layout` (rows, packed, shared or auto), and why `auto` became rows.

    For packed and shared, switch the model to attention by segments. Raises ModelError if `layout` is packed or shared
    and the model fails the test.
    """
    if layout == "rows":
        return "rows", ""
    reason = why_rows(scorer, values)
    if not reason:
        return ("packed" if layout == "packed" else "shared"), ""
    if layout == "auto":
        return "rows", f"attention: rows, because {reason}"
    raise ModelError(
        f"{layout} gives wrong results for {type(base_of(scorer.model)).__name__}",
        where="model.attention",
        why=reason,
        fix="use model.attention=auto or rows",
    )


def why_rows(scorer: Scorer, values: Values = token_values) -> str:
    """Return why the model must use plain rows. If it need not, switch it to attention by segments and return ""."""
    model = scorer.model
    config = base_of(model).config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds - LAYERS:
        return f"the model has layers of kind {', '.join(sorted(kinds - LAYERS))}"
    groups = probe_groups(config.vocab_size)
    expected = measure(scorer, batch_of(groups, "rows"), values)
    if not use_segments(model):
        return "the model's attention cannot be replaced through transformers' attention interface"
    reason = ""
    try:
        batch = batch_of(groups, "shared")
        with record_attention_calls() as calls:
            packed = measure(scorer, batch, values)
        layers = config.num_hidden_layers
        if calls != [len(batch.ids_T)] * layers:
            reason = f"the model's {layers} layers made {len(calls)} calls to the attention interface"
        else:
            reason = difference(expected, packed)
    except Exception as error:
        reason = f"a packed batch fails: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if reason:
        restore_attention(model)
    return reason


def difference(expected: tuple[Tensor, Tensor], packed: tuple[Tensor, Tensor]) -> str:
    """Return a description of the difference if it is larger than rounding, else ""."""
    tolerance = TOLERANCE[packed[1].dtype]
    value = float((expected[0] - packed[0]).abs().max())
    scale = float(expected[1].float().abs().max())
    gradient = float((expected[1].float() - packed[1].float()).abs().max()) / max(scale, 1e-30)
    if value <= tolerance and gradient <= tolerance:
        return ""
    return (
        f"packed batches change the model's results (log-probs by up to {value:.2g} nats, gradients by {gradient:.1%})"
    )


def probe_groups(vocabulary: int) -> list[TokenGroup]:
    """Return three small groups of different shapes, the same for every call."""
    generator = np.random.default_rng(0)

    def ids(n: int) -> Any:
        return generator.integers(vocabulary // 8, vocabulary, n, dtype=np.int32)

    shapes: list[tuple[int, Sequence[int]]] = [(9, (5, 7)), (4, (1, 6, 3)), (13, (8, 2))]
    return [TokenGroup(ids(prompt), tuple(ids(n) for n in lengths)) for prompt, lengths in shapes]


def measure(scorer: Scorer, batch: Batch, values: Values = token_values) -> tuple[Tensor, Tensor]:
    """Return `values` of the tokens, and the gradient of a weighted sum of them at the input embeddings.

    The gradient is summed by token and position. It passes through every layer, but no memory is needed for gradients
    of the weights, except the output layer's.
    """
    batch = batch.to(scorer.device)
    inputs: list[Tensor] = []

    def capture(_module: Any, _args: Any, output: Tensor) -> Tensor:
        inputs.append(output.detach().requires_grad_())
        return inputs[-1]

    handle = base_of(scorer.model).get_input_embeddings().register_forward_hook(capture)
    try:
        with torch.enable_grad():
            token_N = values(scorer, batch)
            weights = torch.linspace(-1, 1, len(token_N), device=token_N.device)
            (gradient,) = torch.autograd.grad((weights * token_N).sum(), inputs[-1])
    finally:
        handle.remove()
    flat = gradient.reshape(-1, gradient.shape[-1])
    # the gradient of a shared prompt is the sum over the rows that repeat it; padding (token 0) is excluded
    key_T = batch.ids_T * 10_000 + batch.positions_T
    keys, at_T = key_T.unique(return_inverse=True)
    total = torch.zeros(len(keys), flat.shape[-1], device=flat.device).index_add_(0, at_T, flat.float())
    return token_N.detach(), total[keys >= 10_000].to(gradient.dtype)
