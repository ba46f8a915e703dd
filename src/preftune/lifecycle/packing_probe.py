"""Test whether a model computes the same results on packed batches as on padded rows.

A model may use packed batches if transformers can replace its attention, if every layer uses full or sliding-window
attention, if each layer calls the attention function once, and if shared prompts do not change its results. Without
this test, models with a different attention interface, recurrent or convolutional layers or chunked attention would
give wrong results without an error. Results are hidden states in front of the output layer, which treats every token
alone, and gradients at the token embeddings. They are compared

    in fp32            a few of the model's own layers, copied, with short windows: equal up to rounding of fp32
    whole, in fp32     all layers of a model in fp32: equal up to rounding
    in bf16 or fp16    the same few layers in the model's precision, and all its layers: packed batches must be as close
                       to the results of fp32 as padded rows are, whose error is the measured noise of the precision
    kernels            attention alone (lifecycle.kernel_probe), in the same way: its errors do not grow through layers

The output layer is not run, so its vocabulary costs neither time nor memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from preftune import stop
from preftune.data.layout import LayoutName, batch_of
from preftune.errors import ModelError
from preftune.lifecycle.kernel_probe import kernel_difference
from preftune.lifecycle.probe_errors import noisier, relative_errors, summary
from preftune.lifecycle.probe_groups import LONGEST, short_groups, text_like_groups
from preftune.model.attention import (
    AttentionCall,
    base_of,
    record_attention_calls,
    restore_attention,
    use_segments,
    uses_segments,
    without_fp32_kernels,
)
from preftune.model.excerpt import HALF, choose_layers, excerpt, in_fp32
from preftune.model.load import id_list, max_positions
from preftune.model.logprobs import Scorer, hidden_states
from preftune.model.memory import out_of_memory
from preftune.types import Batch, TokenGroup

LAYERS = {"full_attention", "sliding_attention"}
LIMITS = (2e-5, 1e-4)
"""Largest difference in fp32 of a few layers: hidden states and gradients, relative to their rms size."""
WHOLE_LIMITS = (2e-4, 2e-4)
"""The same for all layers of a model."""
ROUNDING = 4.0
"""In fp32, results may also differ by this multiple of the difference that the same rows have in other batches."""


@dataclass(frozen=True, slots=True)
class Results:
    """What a model computes for a batch.

    hidden_NH    hidden states in front of the output layer, at the slots that predict a token
    gradient_KH  gradients at the token embeddings, by token id and position; None without gradients
    """

    hidden_NH: Tensor
    gradient_KH: Tensor | None = None


def choose_layout(scorer: Scorer, layout: LayoutName | str) -> tuple[LayoutName, str]:
    """Return the layout to use for the setting `layout` (rows, packed, shared or auto), and why `auto` became rows.

    For packed and shared, switch the model to attention by segments. Raises ModelError if `layout` is packed or shared
    and the model fails the test.
    """
    if layout == "rows":
        return "rows", ""
    reason = why_rows(scorer)
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


def why_rows(scorer: Scorer) -> str:
    """Return why the model must use padded rows. If it need not, switch it to attention by segments and return "".

    Parameters, training mode, hooks and the random state do not change.
    """
    model = scorer.model
    kinds = set(getattr(_config(model), "layer_types", None) or ["full_attention"])
    if kinds - LAYERS:
        return f"the model has layers of kind {', '.join(sorted(kinds - LAYERS))}"
    before, reason = uses_segments(model), "the test was interrupted"
    try:
        with _undisturbed(model, scorer.device):
            # attention in fp32 is only the reference for a model in bf16: compiling it would take longer than the test
            half_on_gpu = scorer.device.type == "cuda" and _dtype(model) in HALF
            with without_fp32_kernels() if half_on_gpu else nullcontext():
                reason = few_layers_difference(model) or whole_difference(model)
    finally:
        if reason and not before:
            restore_attention(model)
    return reason


def few_layers_difference(model: Any) -> str:
    """Compare layouts on a copy of a few layers in fp32 and, if the model is in bf16 or fp16, in its precision."""
    config = _config(model)
    limit = max_positions(config)
    if limit is None or limit > LONGEST:
        special = [i for name in ("bos", "eos", "pad") for i in id_list(getattr(config, f"{name}_token_id", None))]
        groups = text_like_groups(config.vocab_size, special)
    else:
        groups = short_groups(config.vocab_size)
    try:
        layers = choose_layers(model)
    except ModelError:
        return "the model's layers are not in one list, so that packed batches cannot be tested"
    dtype = _dtype(model)
    wide = torch.float32 if dtype in HALF else dtype
    copied = excerpt(model, layers, wide)
    exact = measure(copied, batch_of(groups, "rows"), wide)
    few = "a few layers" if len(layers) < config.num_hidden_layers else "all layers"
    try:
        actual, _ = _shared(copied, groups, wide)
        reason = _fp32_difference(
            exact, actual, LIMITS, few, lambda: in_other_batches(excerpt(model, layers, wide), groups, wide)
        )
        if reason or dtype not in HALF:
            return reason
        same = excerpt(model, layers, dtype)
        plain = measure(same, batch_of(groups, "rows"), dtype)
        actual, calls = _shared(same, groups, dtype)
    except _NotPackedError as error:
        return str(error)
    return kernel_difference(calls) or _noise_difference(exact, plain, actual, config, f"{few} in {_name(dtype)}")


def whole_difference(model: Any) -> str:
    """Switch the model to attention by segments and compare layouts on all its layers, in its precision."""
    config, dtype = _config(model), _dtype(model)
    groups = short_groups(config.vocab_size)
    rows, is_half = batch_of(groups, "rows"), dtype in HALF
    plain = measure(model, rows, dtype, gradient=not is_half)
    if is_half:
        with in_fp32(model):
            exact = measure(model, rows, torch.float32, gradient=False)
    try:
        actual, _ = _shared(model, groups, dtype, gradient=not is_half)
    except _NotPackedError as error:
        return str(error)
    if is_half:
        return _noise_difference(exact, plain, actual, config, f"all layers in {_name(dtype)}")

    def rounding() -> Results:
        restore_attention(model)
        results = in_other_batches(model, groups, dtype)
        use_segments(model)
        return results

    return _fp32_difference(plain, actual, WHOLE_LIMITS, "all layers", rounding)


class _NotPackedError(Exception):
    """A model cannot compute a packed batch. The message is a reason for padded rows."""


def _shared(
    model: Any, groups: Sequence[TokenGroup], dtype: torch.dtype, gradient: bool = True
) -> tuple[Results, list[AttentionCall]]:
    """Switch a model to attention by segments, and return its results with shared prompts and its attention calls."""
    if not use_segments(model):
        raise _NotPackedError("the model's attention cannot be replaced through transformers' attention interface")
    batch, layers = batch_of(groups, "shared"), _config(model).num_hidden_layers
    try:
        with record_attention_calls() as calls:
            actual = measure(model, batch, dtype, gradient)
    except Exception as error:
        if out_of_memory(error) or stop.caused(error):
            raise
        first = str(error).splitlines()[0] if str(error) else ""
        raise _NotPackedError(f"a packed batch fails: {type(error).__name__}: {first}") from error
    if _number_of_calls(calls, len(batch.ids_T)) != layers:
        raise _NotPackedError(f"the model's {layers} layers made {len(calls)} calls to the attention interface")
    return actual, calls


def _number_of_calls(calls: Sequence[AttentionCall], slots: int) -> int:
    """Return the number of calls, or -1 if one of them did not have all slots of the batch."""
    return len(calls) if all(call.query.shape[2] == slots for call in calls) else -1


def measure(model: Any, batch: Batch, dtype: torch.dtype, gradient: bool = True) -> Results:
    """Return the hidden states that predict the batch's tokens, and the gradient of their sum with random signs.

    dtype: precision of the token embeddings, and so of the layers. The gradient at the embeddings passes through every
    layer, but no memory is needed for gradients of the weights.
    """
    return _measure(model, [batch], [slice(None)], dtype, gradient)


def in_other_batches(model: Any, groups: Sequence[TokenGroup], dtype: torch.dtype) -> Results:
    """Return the results of padded rows in two batches, one with the odd and one with the even responses."""
    rows = [
        group.with_only([i], judgements=(), labels=(), ranks=())
        for group in groups
        for i in range(len(group.response_ids))
    ]
    lengths = torch.tensor([len(row.scored_ids[0]) for row in rows])
    odd_N = torch.repeat_interleave(torch.arange(len(rows)) % 2, lengths)
    batches = [batch_of(rows[half::2], "rows") for half in (0, 1)]
    return _measure(model, batches, [odd_N == 0, odd_N == 1], dtype, True)


def _measure(
    model: Any, batches: Sequence[Batch], tokens: Sequence[slice | Tensor], dtype: torch.dtype, gradient: bool
) -> Results:
    """Measure several batches together. `tokens` are the places of each batch's tokens in the result."""
    base = base_of(model)
    device = next(iter(base.parameters())).device
    count = sum(len(batch.read_N) for batch in batches)
    hidden_NH = signs_NH = torch.empty(0)
    keys, gradients = [], []
    for batch, chosen in zip(batches, tokens, strict=True):
        batch = batch.to(device)
        with _embeddings(base, dtype, gradient) as inputs, torch.set_grad_enabled(gradient):
            states = hidden_states(model, batch)
            if not len(hidden_NH):
                hidden_NH = states.new_empty(count, states.shape[-1], dtype=torch.float32)
                signs_NH = _random_signs(hidden_NH.shape)
            hidden_NH[chosen] = states.detach().float()
            if gradient:
                (at_input,) = torch.autograd.grad(states, inputs[-1], signs_NH[chosen].to(states))
                keys.append(batch.ids_T * 10_000 + batch.positions_T)
                gradients.append(at_input.flatten(0, 1).float())
    if not gradient:
        return Results(hidden_NH)
    # the gradient of a shared prompt is the sum over the rows that repeat it; padding (token 0) is excluded
    unique, at_T = torch.cat(keys).unique(return_inverse=True)
    at_slot = torch.cat(gradients)
    total = at_slot.new_zeros(len(unique), at_slot.shape[-1]).index_add_(0, at_T, at_slot)
    return Results(hidden_NH, total[unique >= 10_000])


def _random_signs(shape: torch.Size) -> Tensor:
    """Return the same random signs for every call. They are exact in every precision."""
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@contextmanager
def _embeddings(base: Any, dtype: torch.dtype, gradient: bool) -> Iterator[list[Tensor]]:
    """Inside the block, detach and cast the token embeddings of each forward pass, and append them to the list."""
    inputs: list[Tensor] = []

    def capture(_module: Any, _args: Any, output: Tensor) -> Tensor:
        inputs.append(output.detach().to(dtype).requires_grad_(gradient))
        return inputs[-1]

    handle = base.get_input_embeddings().register_forward_hook(capture)
    try:
        yield inputs
    finally:
        handle.remove()


def _fp32_difference(
    expected: Results,
    actual: Results,
    limits: tuple[float, float],
    layers: str,
    in_other_batches: Callable[[], Results],
) -> str:
    """Return how the results of a packed batch differ from those of padded rows in fp32, or "" if only by rounding."""
    differences = _errors(actual, expected)
    if all(_largest(d) <= limit for d, limit in zip(differences, limits, strict=True)):
        return ""
    rounding = _errors(in_other_batches(), expected)
    pairs = zip(differences, rounding, limits, strict=True)
    if all(_largest(d) <= max(limit, ROUNDING * _largest(r)) for d, r, limit in pairs):
        return ""
    return (
        f"packed batches change the model's results: with {layers} in fp32, hidden states of a packed batch and of "
        f"padded rows have a relative difference of {summary(differences[0])}, gradients of {summary(differences[1])}; "
        f"by rounding alone, the same padded rows differ by {summary(rounding[0])} and {summary(rounding[1])}"
    )


def _noise_difference(exact: Results, plain: Results, actual: Results, config: Any, what: str) -> str:
    """Return how much further from fp32 a packed batch is than padded rows, or "" if it is only noise."""
    outliers = any("expert" in name and isinstance(n, int) and n > 1 for name, n in vars(config).items())
    names = ("hidden states", "gradients")
    for name, noise, errors in zip(names, _errors(plain, exact), _errors(actual, exact), strict=False):
        if noisier(errors, noise, outliers):
            return (
                f"packed batches change the model's results: with {what}, the relative error of {name}, compared with "
                f"fp32, is {summary(errors)} in a packed batch and {summary(noise)} in padded rows"
            )
    return ""


def _errors(actual: Results, expected: Results) -> list[Tensor]:
    """Return the relative errors of the hidden states and, if both have them, of the gradients."""
    errors = [relative_errors(actual.hidden_NH, expected.hidden_NH)]
    if actual.gradient_KH is not None and expected.gradient_KH is not None:
        errors.append(relative_errors(actual.gradient_KH, expected.gradient_KH))
    return errors


def _largest(errors_N: Tensor) -> float:
    return float(errors_N.nan_to_num(nan=torch.inf).max())


def _config(model: Any) -> Any:
    return base_of(model).config.get_text_config()


def _dtype(model: Any) -> torch.dtype:
    """Return the precision of the token embeddings, in which a model computes."""
    dtype: torch.dtype = next(base_of(model).get_input_embeddings().parameters()).dtype
    return dtype


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def _undisturbed(model: Any, device: torch.device) -> Iterator[None]:
    """Inside the block, the model is in evaluation mode. Then restore its modes and the random state."""
    training = [module for module in model.modules() if module.training]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True
