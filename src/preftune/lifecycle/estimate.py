"""Estimate the memory and the time of a run before it starts.

memory   what the process uses now (libraries, weights) + gradients, fp32 masters, optimizer state, a second model
         + activations of the largest micro-batch + the buffers of the output layer
time     multiply-adds of the layers per token slot and of the output layer per scored token, at the speed measured on
         a few micro-batches of the run; the monitor's samples from their first tokens; reading and loading as long as
         they took in the dry run
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
from preftune.data.shapes import Shapes
from preftune.data.steps import Step
from preftune.lifecycle.drawn_pairs import draw_pairs
from preftune.lifecycle.monitor import Monitor
from preftune.lifecycle.task import ResponseTask
from preftune.model import memory
from preftune.model.compile import blocks, is_compiled
from preftune.model.generate import sample
from preftune.model.head import output_layer
from preftune.model.logit_chunks import chunk_tokens
from preftune.model.logprobs import Scorer, logps
from preftune.model.quantised import largest_layer_bytes, quantised_weights, stored_tensors
from preftune.model.scalar import reward_logps
from preftune.model.token_logprobs import max_stored_bytes
from preftune.ranks.environment import place
from preftune.train.optim import Weights, build_optimizer, clip, moment_bytes
from preftune.types import Batch, Logps, TokenGroup

PROBE_SLOTS = 128
CALIBRATION_S = 12.0
MONITOR_PROBE_TOKENS = 8  # tokens that are sampled to measure the speed of the monitor
DAY_S = 86400.0
MEMORY_SHARE = 0.8  # of the free memory that a run plans to use
HEAP_SHARE = 1.3  # on a CPU, memory of the process per byte of activations: the C library's heap has gaps


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of a run at its peak: fixed parts by name, and what the largest micro-batch adds.

    Each token slot adds `per_slot`, and each scored token `per_scored`, up to `max_scored` in total.
    """

    fixed: dict[str, int]
    per_slot: int
    max_scored: int
    per_scored: int

    def scored_bytes(self, scored: int) -> int:
        """Bytes of stored logits for `scored` tokens."""
        return min(self.max_scored, scored * self.per_scored)

    def peak(self, slots: int, scored: int) -> int:
        return sum(self.fixed.values()) + slots * self.per_slot + self.scored_bytes(scored)


def measure_footprint(
    scorer: Scorer, config: TunedConfig, second_model: bool, groups: Sequence[TokenGroup], layout: LayoutName
) -> Footprint:
    """Compute the fixed parts from the weights, and measure activations on one small batch of `groups`."""
    device, parameters = scorer.device, list(scorer.model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    count = sum(p.numel() for p in trained)
    model_bytes = sum(t.numel() * t.element_size() for t in [*parameters, *stored_tensors(scorer.model)])
    head = output_layer(scorer.model).weight
    assert isinstance(head, torch.Tensor)
    wide_head = 4 * head.numel() if head.dtype != torch.float32 and device.type == "cpu" else 0  # see half_logprobs
    head_gradients = head.element_size() * head.numel() if head.requires_grad else 0
    fixed = {
        "in use now": memory.in_use(device),
        "gradients": 4 * count,
        "fp32 masters": sum(4 * p.numel() for p in trained if p.dtype != torch.float32),
        "optimizer": moment_bytes(config.optim.name, config.optim.moments) * count,
        "reference": model_bytes if second_model else 0,
        "dequantised layer": largest_layer_bytes(scorer.model, parameters[0].dtype),
        "output layer": 12 * chunk_tokens(head) * head.shape[0] + head_gradients + wide_head,
    }
    probe = groups[int(np.abs(Shapes.of(groups).slots_G(layout) - PROBE_SLOTS).argmin())]
    batch = batch_of([probe], layout)
    per_slot = memory.activation_bytes(scorer, batch) / len(batch.ids_T)  # without gradient checkpointing
    per_slot *= HEAP_SHARE if device.type == "cpu" else 1.0
    if config.model.gradient_checkpointing:  # each layer's input, and the activations of one layer at a time
        text = scorer.model.config.get_text_config()
        layers, width = text.num_hidden_layers, text.hidden_size
        per_slot = layers * width * parameters[0].element_size() + per_slot / layers
    if scorer.head is None:  # the model's own code computes and stores the logits of all scored tokens
        return Footprint(fixed, int(per_slot), 1 << 60, 12 * head.shape[0])
    vocabulary = head.shape[0] if head.requires_grad else 0  # no logits are stored for a frozen output layer
    return Footprint(fixed, int(per_slot), max_stored_bytes(device), head.element_size() * vocabulary)


def of_shards(footprint: Footprint, model: Any, shards: int, device: torch.device) -> Footprint:
    """Return the footprint of a rank with 1/`shards` of the weights: blocks are whole only while they compute."""
    every = blocks(model)
    inside = {id(p) for block in every for p in block.parameters()}
    largest = max(sum(p.numel() * p.element_size() for p in block.parameters()) for block in every)
    root = [p for p in model.parameters() if id(p) not in inside]
    split = {name: footprint.fixed[name] // shards for name in ("gradients", "optimizer", "reference", "fp32 masters")}
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) // shards
    gathered = 2 * largest + sum(p.numel() * (p.element_size() + 4 * p.requires_grad) for p in root)
    in_use = footprint.fixed["in use now"] if device.type == "cpu" else 0
    rest = {"output layer": footprint.fixed["output layer"], "in use now": in_use}
    return replace(footprint, fixed={**split, "weights": weights, "gathered weights": gathered, **rest})


def choose_tokens(footprint: Footprint, device: torch.device, width: int, dtype: torch.dtype) -> int:
    """Return the largest power of two, from 512, whose micro-batches fit in memory, up to a maximum.

    Above the maximum nothing gets faster: in fp32 on a CPU 1024 for a model 512 wide, more if narrower
    (docs/results/performance.md).
    """
    sharing = place().local_world if device.type == "cpu" else 1  # ranks that use the same memory
    available = memory.available(device) / sharing * MEMORY_SHARE + footprint.fixed["in use now"]
    if device.type == "cuda":
        tokens = 16384
    elif dtype == torch.bfloat16:
        tokens = 4096  # with fast products, the passes over all weights per micro-batch cost more than cache misses
    else:
        tokens = min(4096, max(1024, 2 ** (19 - width.bit_length() + 1)))
    while tokens > 512 and footprint.peak(tokens, tokens) > available:
        tokens //= 2
    return tokens


def memory_lines(footprint: Footprint, task: ResponseTask, steps: Sequence[Step]) -> tuple[list[str], bool]:
    """Return the lines on tokens and memory, and whether the run fits in memory."""
    lines = [token_line(task, steps), memory_line(footprint, task, steps)]
    free = memory.available(task.scorer.device)
    if footprint.peak(*largest_micro_batch(task, steps)) - footprint.fixed["in use now"] <= free:
        return lines, True
    fix = "Train with lora and model.quant=nf4, set model.gradient_checkpointing=true, or use reference.kind=cached"
    return [*lines, f"this run does not fit in memory: {gb(free)} is free on {task.scorer.device}. {fix}"], False


def memory_line(footprint: Footprint, task: ResponseTask, steps: Sequence[Step]) -> str:
    """Return a line with the peak memory and its parts."""
    slots, scored = largest_micro_batch(task, steps)
    activations, logits = slots * footprint.per_slot, footprint.scored_bytes(scored)
    parts = {**footprint.fixed, "activations": activations, "logits": logits}
    return (
        f"memory: {gb(footprint.peak(slots, scored))} at the peak "
        f"({', '.join(f'{name} {gb(n)}' for name, n in parts.items() if n)}); "
        f"micro-batches of up to {slots:,} token slots"
    )


def batches_of(task: ResponseTask, steps: Sequence[Step]) -> list[Batch]:
    """Return the micro-batches of `steps`, on the CPU."""
    return [batch for step in steps for batch in micro_batches([task.groups[i] for i in step.members], task.budget)]


def largest_micro_batch(task: ResponseTask, steps: Sequence[Step]) -> tuple[int, int]:
    """Return (token slots, scored tokens) of the largest micro-batch: of the first 100 steps, or the largest group."""
    batches = batches_of(task, steps[:100])
    largest = int(Shapes.of(task.groups).slots_G(task.budget.layout).argmax())
    batches += micro_batches([task.groups[largest]], task.budget)
    return max((len(batch.ids_T), len(batch.read_N)) for batch in batches)


def token_line(task: ResponseTask, steps: Sequence[Step]) -> str:
    """Return a line with the token slots that shared prompts and packing save, compared with padded batches."""
    padded = packed = used = filled = 0
    count = min(100, len(steps))
    for step in steps[:count]:
        groups = [task.groups[i] for i in step.members]
        padded += max(map(width_of, groups)) * sum(len(g.response_ids) for g in groups)
        packed += sum(slots_of(g, "packed") for g in groups)
        used += sum(len(batch.ids_T) for batch in micro_batches(groups, task.budget))
        filled += sum(slots_of(g, "shared" if task.budget.layout == "shared" else "packed") for g in groups)
    return (
        f"tokens: {used:,} token slots in the first {count} step{'s' * (count != 1)}, {1 - filled / used:.0%} padding; "
        f"without shared prompts {packed:,} ({packed / used:.2f}x), as padded batches {padded:,} ({padded / used:.2f}x)"
    )


def time_lines(
    task: ResponseTask, steps: Sequence[Step], config: RunConfig, reference: str, monitor: Monitor | None, began: float
) -> list[str]:
    """Return lines with the duration of the run, from timing a few of its micro-batches. No weight is changed.

    `began` is time.perf_counter() when the command started: the run will need that time again to read and load.
    """
    start = time.perf_counter() - began
    body, head = macs(task.scorer)

    def cost(groups: Sequence[TokenGroup]) -> float:
        shapes = Shapes.of(groups)
        return float(body * int(shapes.slots_G(task.budget.layout).sum()) + head * int(shapes.sum_G.sum()))

    timed_steps, batches = steps[:100], batches_of(task, steps[:8])
    # a compiled model is compiled once per shape
    warmup = list({len(batch.ids_T): batch for batch in batches}.values()) if task.budget.constant else batches[:1]
    score = reward_logps if task.is_reward_model else logps
    training, forward, update, warmup_s = calibrate(task.scorer, score, warmup, batches, config, cost)
    work = sum(cost([task.groups[i] for i in step.members]) for step in timed_steps) * len(steps) / len(timed_steps)
    held_out = cost(task.held_out)
    live = reference in ("frozen", "adapter-off")
    evaluations = 2 + (len(steps) // config.train.eval_every if config.train.eval_every else 0)
    visited = min(work, cost(task.groups)) + held_out
    drawn = draw_pairs(getattr(config, "report_pairs", 0), task, task.groups, len(steps), config.train, None)
    parts = {
        "start": start,
        "compilation": warmup_s * is_compiled(task.scorer.model),
        "training": work * training + len(steps) * update,
        "reference": visited * forward if reference == "cached" else live * work * forward,
        "evaluation": evaluations * held_out * forward * (1 + live),
        "pairs of the report": len(drawn.steps) * cost(drawn.groups) * forward * (1 + live) if drawn else 0.0,
        "monitor": evaluations * monitor_seconds(task.scorer, monitor, lambda g: forward * cost(g), live),
    }
    total = sum(parts.values())
    lines = [f"time: about {duration(total)} ({', '.join(f'{name} {duration(s)}' for name, s in parts.items() if s)})"]
    if total > DAY_S:
        lines.append("this run takes more than a day on this machine: use fewer steps, a smaller model or a GPU")
    return lines


def calibrate(
    scorer: Scorer,
    score: Callable[[Scorer, Batch], Logps],
    warmup: Sequence[Batch],
    batches: Sequence[Batch],
    config: RunConfig,
    cost: Callable[[Sequence[TokenGroup]], float],
) -> tuple[float, float, float, float]:
    """Return seconds: of a training pass and of a forward pass, both per unit of `cost`; of an update; of `warmup`.

    `score` is the forward pass.
    Padding takes time but has no cost here. The data of the run have the same share of padding.
    """

    def train(batch: Batch) -> float:
        return timed(lambda: score(scorer, batch.to(scorer.device)).sum_S.sum().backward())

    weights = Weights(scorer.model)
    warmup_s = sum(map(train, warmup))
    seconds = work = 0.0
    for batch in batches:
        seconds += train(batch)
        work += cost(batch.groups)
        if seconds > CALIBRATION_S:
            break
    trained = sum(master.numel() for master in weights.masters)
    weights.close()
    update = update_seconds(config, min(trained, 10_000_000), scorer.device) * max(1.0, trained / 10_000_000)
    with torch.no_grad():
        forward = min(timed(lambda: score(scorer, batches[0].to(scorer.device))) for _ in range(2))
    return seconds / work, forward / cost(batches[0].groups), update, warmup_s


def monitor_seconds(
    scorer: Scorer, monitor: Monitor | None, forward_seconds: Callable[[Sequence[TokenGroup]], float], live: bool
) -> float:
    """Return the seconds that the monitor adds to an evaluation: samples, extrapolated from their first tokens, and
    scores of samples and data. `forward_seconds`: of a pass over groups. `live`: the reference also needs a pass."""
    if monitor is None or len(monitor.groups) < 2:
        return 0.0
    max_tokens = monitor.sampling.max_new_tokens
    probe_tokens = min(max_tokens, MONITOR_PROBE_TOKENS)
    prompts = [group.prompt_ids.tolist() for group in monitor.groups]

    def sampling_seconds(tokens: int) -> float:
        shorter = replace(monitor.sampling, max_new_tokens=tokens)
        return timed(lambda: sample(scorer.model, monitor.tokenizer, prompts, shorter))

    first_s, probe_s = sampling_seconds(1), sampling_seconds(probe_tokens)
    per_token = max(0.0, probe_s - first_s) / max(1, probe_tokens - 1)
    response = np.zeros(max_tokens, dtype=np.int32)
    samples = [TokenGroup(group.prompt_ids, (response,) * monitor.sampling.n) for group in monitor.groups]
    sampling_s, samples_s = first_s + (max_tokens - 1) * per_token, forward_seconds(samples)
    return sampling_s + 2 * samples_s + (1 + live) * forward_seconds(monitor.groups)


def update_seconds(config: RunConfig, n: int, device: torch.device) -> float:
    """Return the seconds that clipping and an optimizer step take for n parameters, measured on a dummy tensor."""
    number = torch.nn.Parameter(torch.zeros(n, device=device))
    number.grad = torch.zeros_like(number)
    optimizer = build_optimizer([number], config.optim.name, 1e-6, 0.0, config.optim.moments)
    return min(timed(lambda: (clip([torch.zeros_like(number)], 1.0), optimizer.step())) for _ in range(3))


def macs(scorer: Scorer) -> tuple[int, int]:
    """Return the multiply-adds of all layers per token slot, and of the output layer per scored token."""
    head = output_layer(scorer.model).weight
    embeddings = {id(head), id(scorer.model.get_input_embeddings().weight)}
    body = sum(p.numel() for p in scorer.model.parameters() if id(p) not in embeddings)
    body += quantised_weights(scorer.model)
    assert isinstance(head, torch.Tensor)
    return body, head.numel()


def timed(work: Callable[[], Any]) -> float:
    """Return the seconds that `work` takes."""
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
