"""DPO steps in plain torch over padded rows: a baseline, and what flash-pref can be put around.

The weights are trained in the dtype of the model, with a fused AdamW. The reference log-probs are computed once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid
from workloads import build_model

from preftune.types import TokenGroup

LR = 1e-5
BETA = 0.1
Sharing = Callable[..., AbstractContextManager[Any]]


def run_plain(
    options: argparse.Namespace, pairs: Sequence[TokenGroup], dtype: torch.dtype, device: str
) -> dict[str, Any]:
    """Run the loop. flash-pref needs CUDA and the package flash-attn."""
    model = build_model(options.model, dtype, device)
    if options.lora:
        from preftune.model.adapter import add_lora

        model = add_lora(model, options.lora, 2.0 * options.lora, "all-linear")
    sharing: Sharing = nullcontext
    if options.one == "flash-pref":
        from flash_pref import shared_prefix

        model.set_attn_implementation("flash_attention_2")
        sharing = shared_prefix
    rows = max(1, options.batch or options.tokens // 512)
    with torch.no_grad():
        begin = time.perf_counter()
        reference = [log_ratio(model, part, sharing).detach() for part in split(pairs, rows)]
        reference_s = time.perf_counter() - begin
    offsets = torch.cat(reference)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR, weight_decay=0, fused=True)
    losses, times = [], [time.perf_counter()]
    for first in range(0, len(pairs), options.pairs):
        step = pairs[first : first + options.pairs]
        total = 0.0
        for number, part in enumerate(split(step, rows)):
            start = first + number * rows
            offset = offsets[start : start + len(part)]
            total += backward(model, part, offset, len(step), sharing)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        losses.append(total)
        times.append(time.perf_counter())
    seconds = [after - before for before, after in pairwise(times)]
    return {"step_s": seconds, "losses": losses, "reference_s": reference_s, "batch": rows}


def split(pairs: Sequence[TokenGroup], rows: int) -> list[Sequence[TokenGroup]]:
    """Return the pairs in parts of `rows` pairs."""
    return [pairs[first : first + rows] for first in range(0, len(pairs), rows)]


def backward(model: Any, part: Sequence[TokenGroup], offset: Tensor, pairs: int, sharing: Sharing) -> float:
    """Add the gradient of the mean loss over `pairs` pairs. Return the loss of this part."""
    ids, mask, labels = padded(part, next(model.parameters()).device)
    with sharing(model, input_ids=ids, attention_mask=mask) if sharing is not nullcontext else nullcontext():
        loss = -logsigmoid(BETA * (difference(model, ids, mask, labels) - offset)).sum() / pairs
        loss.backward()
    return float(loss.detach())


def log_ratio(model: Any, part: Sequence[TokenGroup], sharing: Sharing) -> Tensor:
    """Return log pi(chosen) - log pi(rejected) of each pair."""
    ids, mask, labels = padded(part, next(model.parameters()).device)
    with sharing(model, input_ids=ids, attention_mask=mask) if sharing is not nullcontext else nullcontext():
        return difference(model, ids, mask, labels)


def difference(model: Any, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """Return the difference in log-prob between the even rows (chosen) and the odd rows (rejected)."""
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    token = -cross_entropy(logits.transpose(1, 2).float(), labels[:, 1:], reduction="none", ignore_index=-100)
    sums = token.sum(1)
    return sums[::2] - sums[1::2]


def padded(part: Sequence[TokenGroup], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, mask and labels (-100: not scored) of rows chosen, rejected, chosen, ..., padded on the right."""
    rows = [(group.prompt_ids.tolist(), response.tolist()) for group in part for response in group.response_ids]
    width = max(len(prompt) + len(response) for prompt, response in rows)
    ids, mask, labels = (torch.full((len(rows), width), value) for value in (0, 0, -100))
    for row, (prompt, response) in enumerate(rows):
        end = len(prompt) + len(response)
        ids[row, :end] = torch.tensor(prompt + response)
        mask[row, :end] = 1
        labels[row, len(prompt) : end] = torch.tensor(response)
    return ids.to(device), mask.to(device), labels.to(device)
