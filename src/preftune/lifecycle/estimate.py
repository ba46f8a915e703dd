"""What a run will take: memory from what its tensors are, time from a short calibration.

memory   what the process has now (libraries, weights) + gradients, masters, optimizer, a second model
         + activations of the largest micro-batch + the head's buffers
time     multiply-adds of the body per token slot and of the head per scored token, at the speed that a few
         micro-batches of the run itself reached; samples of the monitor by their first tokens; reading and loading
         as long as they took the dry run
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from preftune.config.schema import RunConfig, TunedConfig
from preftune.data.layout import LayoutName, batch_of, micro_batches, slots_of, width_of
from preftune.data.order import Step
from preftune.lifecycle.monitor import Watched
from preftune.lifecycle.task import ResponseTask
from preftune.model import memory
from preftune.model.generate import sample
from preftune.model.head import output_layer
from preftune.model.logprobs import Scorer, logps
from preftune.model.token_logprobs import chunk_tokens, keep_bytes
from preftune.train.optim import Weights, build_optimizer, clip
from preftune.types import Batch, TokenGroup

PROBE_SLOTS = 128
CALIBRATION_S = 12.0
FEW_TOKENS = 8  # of the monitor's samples
DAY_S = 86400.0
RESERVE = 0.8  # share of the free memory that is planned with


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of a run at its peak: a fixed part, and what each token slot of a micro-batch adds."""

    fixed: dict[str, int]
    per_slot: int
    most_kept: int
    per_scored: int

    def peak(self, slots: int, scored: int) -> int:
        return sum(self.fixed.values()) + slots * self.per_slot + min(self.most_kept, scored * self.per_scored)


def footprint(
    scorer: Scorer,
    config: TunedConfig,
    second_model: bool,
    groups: Sequence[TokenGroup],
    layout: LayoutName,
) -> Footprint:
    """Measured on one small batch of the run's own groups, and counted from the weights."""
    device, parameters = scorer.device, list(scorer.model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    count = sum(p.numel() for p in trained)
    moments = 2 if config.optim.name == "adamw" else 1
    bodies = sum(p.numel() * p.element_size() for p in parameters)
    head = output_layer(scorer.model).weight
    assert isinstance(head, torch.Tensor)
    head_gradients = 4 * head.numel() if head.requires_grad else 0  # dense, and once more for a tied embedding
    fixed = {
        "now": memory.in_use(device),
        "gradients": 4 * count,
        "fp32 masters": sum(4 * p.numel() for p in trained if p.dtype != torch.float32),
        "optimizer": 4 * moments * count,
        "reference": bodies if second_model else 0,
        "head": 12 * chunk_tokens(head.shape[0], device) * head.shape[0] + head_gradients,
    }
    probe = sorted(groups, key=lambda g: abs(slots_of(g, layout) - PROBE_SLOTS))[0]
    batch = batch_of([probe], layout)
    kept = memory.kept_for_backward(scorer, batch) / len(batch.ids_T)  # without gradient checkpointing
    if config.model.gradient_checkpointing:  # each layer's input, and one layer at a time
        text = scorer.model.config.get_text_config()
        kept = text.num_hidden_layers * text.hidden_size * parameters[0].element_size() + kept / text.num_hidden_layers
    if scorer.head is None:  # the model's own code makes the logits of all scored tokens, and they are kept
        return Footprint(fixed, int(kept), 1 << 60, 12 * head.shape[0])
    vocabulary = head.shape[0] if head.requires_grad else 0  # a frozen head keeps no logits
    return Footprint(fixed, int(kept), keep_bytes(device), 4 * vocabulary)


def choose_tokens(found: Footprint, device: torch.device, width: int) -> int:
    """The largest power of two from 512 on whose micro-batches fit, but no more than makes anything faster.

    On a CPU that is 1024 for a model 512 wide (measured, docs/performance.md) and more for narrower ones.
    """
    room = memory.available(device) * RESERVE + found.fixed["now"]
    tokens = 16384 if device.type == "cuda" else min(4096, max(1024, 2 ** (19 - width.bit_length() + 1)))
    while tokens > 512 and found.peak(tokens, tokens) > room:
        tokens //= 2
    return tokens


def memory_plan(found: Footprint, task: ResponseTask, steps: Sequence[Step]) -> tuple[list[str], bool]:
    """Return the lines on tokens and memory, and whether the run fits in memory."""
    lines = [token_line(task, steps), memory_line(found, task, steps)]
    free = memory.available(task.scorer.device)
    if found.peak(*largest_micro_batch(task, steps)) - found.fixed["now"] <= free:
        return lines, True
    fix = "train with lora, set model.gradient_checkpointing=true, or use reference.kind=cached"
    return [*lines, f"this run does not fit: {gb(free)} are free on {task.scorer.device}; {fix}"], False


def memory_line(found: Footprint, task: ResponseTask, steps: Sequence[Step]) -> str:
    """The peak in words."""
    slots, scored = largest_micro_batch(task, steps)
    peak = found.peak(slots, scored)
    kept = min(found.most_kept, scored * found.per_scored)
    parts = {**found.fixed, "activations": slots * found.per_slot, "logits": kept}
    return (
        f"memory: {gb(peak)} at the peak ({', '.join(f'{name} {gb(n)}' for name, n in parts.items() if n)}); "
        f"micro-batches of up to {slots:,} token slots"
    )


def _batches(task: ResponseTask, steps: Sequence[Step]) -> list[Batch]:
    """The micro-batches of the steps, on the CPU."""
    members = [[task.groups[i] for i in step.members] for step in steps]
    return [batch for groups in members for batch in micro_batches(groups, task.budget)]


def largest_micro_batch(task: ResponseTask, steps: Sequence[Step]) -> tuple[int, int]:
    """(token slots, scored tokens) of the largest micro-batch: of the first hundred steps, or the largest group."""
    batches = [
        batch for step in steps[:100] for batch in micro_batches([task.groups[i] for i in step.members], task.budget)
    ]
    batches += micro_batches([max(task.groups, key=lambda g: slots_of(g, task.budget.layout))], task.budget)
    return max((len(batch.ids_T), len(batch.read_N)) for batch in batches)


def token_line(task: ResponseTask, steps: Sequence[Step]) -> str:
    """What sharing and packing save on these data, against padded pairs in batches of one step."""
    padded = real = ours = filled = 0
    for step in steps[:100]:
        groups = [task.groups[i] for i in step.members]
        padded += max(map(width_of, groups)) * sum(len(g.response_ids) for g in groups)
        real += sum(slots_of(g, "packed") for g in groups)
        ours += sum(len(batch.ids_T) for batch in micro_batches(groups, task.budget))
        filled += sum(slots_of(g, "shared" if task.budget.layout == "shared" else "packed") for g in groups)
    return (
        f"tokens: {ours:,} slots in the first {min(100, len(steps))} steps, {1 - filled / ours:.0%} of them padding; "
        f"without sharing {real:,} ({real / ours:.2f}x), as padded batches {padded:,} ({padded / ours:.2f}x)"
    )


def time_lines(
    task: ResponseTask,
    steps: Sequence[Step],
    config: RunConfig,
    reference: str,
    watched: Watched | None,
    since: float,
) -> list[str]:
    """How long the run takes, by doing a few of its micro-batches; no weight is changed.

    `since` is when the command began: reading, tokenising and loading come again.
    """
    start = time.perf_counter() - since
    body, head = macs(task.scorer)

    def cost(groups: Sequence[TokenGroup]) -> float:
        layout = task.budget.layout
        return float(sum(body * slots_of(g, layout) + head * sum(map(len, g.response_ids)) for g in groups))

    def of_steps(some: Sequence[Step]) -> float:
        return sum(cost([task.groups[i] for i in step.members]) for step in some)

    sample = [
        batch for step in steps[:8] for batch in micro_batches([task.groups[i] for i in step.members], task.budget)
    ]
    first = list({len(batch.ids_T): batch for batch in sample}.values()) if task.budget.constant else sample[:1]
    training, forward, update, warm = calibrate(task.scorer, first, sample, config, cost)
    work = of_steps(steps[:100]) * len(steps) / min(100, len(steps))
    held_out = cost(task.held_out)
    live = reference in ("frozen", "adapter-off")
    evaluations = 2 + (len(steps) // config.train.eval_every if config.train.eval_every else 0)
    visited = min(work, cost(task.groups)) + held_out
    parts = {
        "start": start,
        "compilation": warm * config.model.compile,
        "training": work * training + len(steps) * update,
        "reference": visited * forward if reference == "cached" else live * work * forward,
        "evaluation": evaluations * held_out * forward * (1 + live),
        "monitor": evaluations * monitoring(task.scorer, watched, lambda g: forward * cost(g), live),
    }
    total = sum(parts.values())
    lines = [f"time: about {duration(total)} ({', '.join(f'{name} {duration(s)}' for name, s in parts.items() if s)})"]
    if total > DAY_S:
        lines.append("this run takes days on this machine: fewer steps, a smaller model, or a GPU")
    return lines


def calibrate(
    scorer: Scorer,
    first: Sequence[Batch],
    sample: Sequence[Batch],
    config: RunConfig,
    cost: Callable[[Sequence[TokenGroup]], float],
) -> tuple[float, float, float, float]:
    """Seconds per unit of `cost` of a training pass and of a forward pass, of an update, and of warming up on `first`.

    Padding has its time and no cost: the data of the run are padded as much.
    """

    def train(batch: Batch) -> float:
        return timed(lambda: logps(scorer, batch.to(scorer.device)).sum_S.sum().backward())

    weights = Weights(scorer.model)
    warm = sum(map(train, first))
    spent = done = 0.0
    for batch in sample:
        spent += train(batch)
        done += cost(batch.groups)
        if spent > CALIBRATION_S:
            break
    trained = sum(master.numel() for master in weights.masters)
    weights.close()
    update = update_seconds(config, min(trained, 10_000_000), scorer.device) * max(1.0, trained / 10_000_000)
    with torch.no_grad():
        forward = min(timed(lambda: logps(scorer, sample[0].to(scorer.device))) for _ in range(2))
    return spent / done, forward / cost(sample[0].groups), update, warm


def monitoring(
    scorer: Scorer, watched: Watched | None, scoring: Callable[[Sequence[TokenGroup]], float], live: bool
) -> float:
    """Seconds that the monitor adds to an evaluation: its samples, by their first tokens, and scores of both models
    for them and the data's responses; `scoring` has the seconds of a forward pass."""
    if watched is None or len(watched.groups) < 2:
        return 0.0
    most = watched.sampling.max_new_tokens
    prompts = [group.prompt_ids.tolist() for group in watched.groups]

    def sampling(tokens: int) -> float:
        few = replace(watched.sampling, max_new_tokens=tokens)
        return timed(lambda: sample(scorer.model, watched.tokenizer, prompts, few))

    first, some = sampling(1), sampling(min(most, FEW_TOKENS))
    a_token = max(0.0, some - first) / max(1, min(most, FEW_TOKENS) - 1)
    longest = np.zeros(most, dtype=np.int32)
    own = [TokenGroup(group.prompt_ids, (longest,) * watched.sampling.n) for group in watched.groups]
    return first + (most - 1) * a_token + 2 * scoring(own) + (1 + live) * scoring(watched.groups)


def update_seconds(config: RunConfig, n: int, device: torch.device) -> float:
    """Clipping and an optimizer step on n numbers that belong to no model."""
    number = torch.nn.Parameter(torch.zeros(n, device=device))
    number.grad = torch.zeros_like(number)
    optimizer = build_optimizer([number], config.optim.name, 1e-6, 0.0)
    return min(timed(lambda: (clip([torch.zeros_like(number)], 1.0), optimizer.step())) for _ in range(3))


def macs(scorer: Scorer) -> tuple[int, int]:
    """Multiply-adds of the body for a token slot, and of the head for a scored token."""
    head = output_layer(scorer.model).weight
    embeddings = {id(head), id(scorer.model.get_input_embeddings().weight)}
    body = sum(p.numel() for p in scorer.model.parameters() if id(p) not in embeddings)
    assert isinstance(head, torch.Tensor)
    return body, head.numel()


def timed(work: Callable[[], Any]) -> float:
    """Seconds that `work` takes."""
    begin = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def gb(n: float) -> str:
    return f"{n / 1e9:.2f} GB"


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
