"""Plan a run on several GPUs from its config alone: memory per rank, bytes between ranks, time, and what to change.

One rank keeps the weights in the compute precision and fp32 masters. Several ranks shard with FSDP2: fp32 shards of
trained and shards of frozen weights, gradients in fp32, blocks gathered in the compute precision for each forward and
backward pass, the root (embedding, last norm, output layer) gathered once. Quantised weights are not sharded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from preftune.config.schema import DPOConfig, LoraConfig, RunConfig
from preftune.errors import ConfigError
from preftune.lifecycle.cluster_model import ModelShape, read_shape
from preftune.lifecycle.estimate import duration, gb
from preftune.losses import PREFERENCE_LOSSES
from preftune.losses.objective import is_joint
from preftune.model.quantised import BLOCK, SUPER_BLOCK
from preftune.train.optim import moment_bytes

CONTEXT = 1_000_000_000  # the CUDA context, the kernels' workspaces and the buffers of NCCL
STORED_SHARE = 0.05  # of a GPU's memory for stored logits, as in model.token_logprobs
CHUNK_BYTES = 512_000_000  # fp32 logits of one chunk, as in model.logit_chunks
MOST_SLOTS, FEWEST_SLOTS = 16384, 512
PLANNED_SHARE = 0.9  # of a GPU's memory that batch.tokens=auto may fill here
MOST_RANKS = 4096
UNITS = {"gb": 1e9, "gib": 2**30, "mb": 1e6, "mib": 2**20, "tb": 1e12, "": 1e9}


@dataclass(frozen=True, slots=True)
class Cluster:
    """`ranks` GPUs with `memory` bytes; `flops` operations per second that a rank reaches, `bandwidth` bytes per second
    that a rank receives from the others. 0: not known."""

    ranks: int
    memory: int
    flops: float = 0.0
    bandwidth: float = 0.0


@dataclass(frozen=True, slots=True)
class Work:
    """Token slots of a step, of the largest group, and scored tokens of a step; `source` says where they are from."""

    slots: int
    largest: int
    scored: int
    steps: int
    source: str


def read_bytes(text: str, where: str) -> int:
    """Return a number of bytes, e.g. 80GB (1e9), 80GiB (2^30) or 80 (GB). Raises ConfigError for other text."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*([A-Za-z]*?)(?:/s)?\s*", text)
    unit = UNITS.get(match[2].lower()) if match else None
    try:
        value = float(match[1]) * unit if match and unit else 0.0
    except ValueError:
        value = 0.0
    if not 0 < value < 1e18:
        raise ConfigError(f"{text!r} is not a size", where=where, fix="write a number with GB or GiB, such as 80GB")
    return int(value)


def has_live_reference(config: RunConfig) -> str:
    """Return "frozen" or "adapter-off" if each step runs the reference, else ""."""
    if not isinstance(config, DPOConfig):
        return ""
    kind = config.reference.kind
    if kind == "auto":
        return "adapter-off" if config.lora and not config.reference.path else ""
    return kind if kind in ("frozen", "adapter-off") else ""


def has_joint_loss(config: RunConfig) -> bool:
    """Return whether the loss couples all items of a step. Each step then runs an additional forward pass."""
    terms = config.terms if isinstance(config, DPOConfig) else []
    return any(is_joint(PREFERENCE_LOSSES[term.name]) for term in terms if term.name in PREFERENCE_LOSSES)


def memory_parts(shape: ModelShape, config: RunConfig, cluster: Cluster, slots: int, scored: int) -> dict[str, int]:
    """Return the bytes of one rank at its peak, by part, with micro-batches of `slots` token slots."""
    size, ranks = (4 if config.model.dtype == "fp32" else 2), cluster.ranks
    stored = _quantised_bytes(shape, config)
    frozen = shape.parameters - (shape.linear if stored else 0) if config.lora else 0
    trained, trained_size = shape.trained, (size if ranks == 1 else 4)
    moments = moment_bytes(config.optim.name, config.optim.moments)
    # logits, their exponentials and their gradient
    chunk = 3 * min(CHUNK_BYTES, 4 * scored * shape.vocabulary) if shape.vocabulary > 1 else 0
    per_slot = shape.per_slot
    if config.model.gradient_checkpointing:
        per_slot = shape.layers * shape.width * size + per_slot // shape.layers
    logits = min(int(STORED_SHARE * cluster.memory), scored * size * shape.vocabulary) if shape.head_trained else 0
    return {
        "weights": (frozen * size + trained * trained_size) // ranks + stored,
        "gradients": 4 * trained // ranks,
        "fp32 masters": 4 * trained if ranks == 1 and size == 2 else 0,
        "optimizer": moments * trained // ranks,
        "reference": shape.parameters * size // ranks if has_live_reference(config) == "frozen" else 0,
        "activations": slots * per_slot,
        "logits": logits,
        "buffers": chunk + _gathered(shape, ranks, size, bool(stored)),
        "CUDA and NCCL": CONTEXT,
    }


def _quantised_bytes(shape: ModelShape, config: RunConfig) -> int:
    """Return the bytes of the linear layers with model.quant; 0 without."""
    if config.model.quant == "nf4":
        return int(shape.linear * (0.5 + 1 / BLOCK + 4 / (BLOCK * SUPER_BLOCK)))
    return shape.linear + 4 * shape.rows if config.model.quant else 0


def _gathered(shape: ModelShape, ranks: int, size: int, quantised: bool) -> int:
    """Return the bytes of gathered weights and of gradients on their way to other ranks, or of the head's gradient."""
    block = shape.block - shape.linear // shape.layers if quantised else shape.block
    dense = (4 + size) * shape.linear // shape.layers // 3 if quantised else 0  # a large layer while it is dequantised
    if ranks == 1:
        return (size * shape.head if shape.head_trained else 0) + dense
    # The block in use, the next one and its flat copy; a gradient in the compute precision, and two in fp32 that are
    # being reduced. The root stays gathered, and its gradient is reduced last.
    blocks = 3 * size * block + (size + 8) * shape.trained_block
    return blocks + size * shape.root + (size + 4) * shape.trained_root + dense


def traffic(shape: ModelShape, config: RunConfig, cluster: Cluster, micro_batches: int) -> dict[str, int]:
    """Return the bytes that a rank receives per step: gathered weights, and reduced gradients (as many are sent)."""
    size, share = (4 if config.model.dtype == "fp32" else 2), (cluster.ranks - 1) / cluster.ranks
    sharded = shape.parameters - (shape.linear if config.model.quant else 0)
    inside = sharded - shape.root
    reference = {"frozen": sharded, "adapter-off": inside}.get(has_live_reference(config), 0)
    passes = 2 * inside + shape.root + reference
    passes += (inside + reference) * has_joint_loss(config)
    return {
        "weights": int(share * size * passes) * micro_batches,
        "gradients": int(share * 4 * shape.trained) * micro_batches,
    }


def operations(shape: ModelShape, config: RunConfig, work: Work) -> float:
    """Return the floating-point operations of a step on all ranks.

    Two per parameter and token slot in a forward pass, two for the gradient of the inputs and two for that of trained
    weights; causal attention likewise, for half of the longest sequence on average. Checkpointing repeats the forward
    pass, and a live reference adds one. With a joint loss, forward passes run twice. The output layer runs on scored
    tokens only.
    """
    body = shape.parameters - shape.root
    seen = min(work.largest, 2 * config.data.max_length) / 2
    forward = 2.0 * (body + shape.attention * seen) * work.slots + 2.0 * shape.head * work.scored
    passes = 2.0 if config.lora else 3.0
    passes += bool(config.model.gradient_checkpointing) + bool(has_live_reference(config))
    passes += (1 + bool(has_live_reference(config))) * has_joint_loss(config)
    return passes * forward


def peak(shape: ModelShape, config: RunConfig, cluster: Cluster, slots: int, work: Work) -> int:
    """Return the bytes of a rank with micro-batches of `slots` token slots."""
    return sum(memory_parts(shape, config, cluster, slots, _scored(slots, work)).values())


def _scored(slots: int, work: Work) -> int:
    return -(-slots * work.scored // max(1, work.slots))


def choose_slots(shape: ModelShape, config: RunConfig, cluster: Cluster, work: Work) -> int:
    """Return the token slots of a micro-batch: batch.tokens, or the largest power of two that fits, at most 16384.

    Not less than the largest group, which is never split, and not more than a rank's share of a step.
    """
    most = max(work.largest, -(-work.slots // cluster.ranks))
    if config.batch.tokens != "auto":
        return min(most, max(work.largest, config.batch.tokens))
    slots = MOST_SLOTS
    limit = PLANNED_SHARE * cluster.memory
    while slots > FEWEST_SLOTS and peak(shape, config, cluster, min(most, max(slots, work.largest)), work) > limit:
        slots //= 2
    return min(most, max(slots, work.largest))


def micro_batches(cluster: Cluster, work: Work, slots: int) -> int:
    """Return the number of micro-batches of a rank in an average step."""
    return max(1, -(-work.slots // (cluster.ranks * slots)))


def cluster_lines(config: RunConfig, cluster: Cluster, work: Work, scalar: bool) -> tuple[list[str], bool]:
    """Return the plan as lines, and whether the run fits in the memory of each rank."""
    shape = read_shape(config, scalar)
    slots = choose_slots(shape, config, cluster, work)
    parts = memory_parts(shape, config, cluster, slots, _scored(slots, work))
    total, fits = sum(parts.values()), sum(parts.values()) <= cluster.memory
    count = micro_batches(cluster, work, slots)
    shown = ", ".join(f"{name} {gb(value)}" for name, value in parts.items() if value)
    lines = [
        f"plan for {cluster.ranks} rank{'s' * (cluster.ranks != 1)} with {gb(cluster.memory)}, from config.json alone",
        f"model: {shape.parameters:,} parameters, {shape.trained:,} trained; {_storage(config, cluster)}",
        f"step: {work.slots:,} token slots, {work.scored:,} of them scored ({work.source}); per rank {count} "
        f"micro-batch{'es' * (count != 1)} of up to {slots:,} token slots",
        f"memory per rank: {gb(total)} of {gb(cluster.memory)} ({shown})",
    ]
    lines += _time_lines(shape, config, cluster, work, count)
    if not fits:
        alternatives = list(_alternatives(shape, config, cluster, work, scalar))
        fix = (
            f"It fits with {'; or with '.join(alternatives)}"
            if alternatives
            else "No setting of this plan makes it fit"
        )
        lines.append(f"this run does not fit: {gb(total - cluster.memory)} are missing on each rank. {fix}")
    return lines, fits


def _storage(config: RunConfig, cluster: Cluster) -> str:
    compute = "fp32" if config.model.dtype == "fp32" else "bf16"
    base = f", base in {config.model.quant} on each rank" if config.model.quant else ""
    if cluster.ranks == 1:
        return f"{compute} weights{base}" + (", fp32 masters" if compute == "bf16" else "")
    return f"fp32 shards of what is trained, {compute} compute{base}"


def _time_lines(shape: ModelShape, config: RunConfig, cluster: Cluster, work: Work, count: int) -> list[str]:
    sent = traffic(shape, config, cluster, count)
    flops, size = operations(shape, config, work), sum(sent.values())
    lines = []
    if cluster.ranks > 1:
        lines.append(
            f"communication: each rank receives {gb(size)} per step (weights {gb(sent['weights'])}, gradients "
            f"{gb(sent['gradients'])}), in {count} micro-batch{'es' * (count != 1)}"
        )
    if not cluster.flops:
        lines.append(f"compute: {flops / cluster.ranks / 1e12:,.1f} TFLOP per rank and step; add --tflops for the time")
        return lines
    compute = flops / cluster.ranks / cluster.flops
    wire = size / cluster.bandwidth if cluster.bandwidth else 0.0
    step = max(compute, wire)
    network = f", communication {wire:.2f} s, at the same time" if cluster.ranks > 1 and cluster.bandwidth else ""
    lines.append(
        f"time: about {step:.2f} s per step (compute {compute:.2f} s{network}), "
        f"{work.slots / step / cluster.ranks:,.0f} token slots per second and rank; "
        f"{work.steps:,} steps take {duration(step * work.steps)}"
    )
    if cluster.ranks > 1 and not cluster.bandwidth:
        lines.append("note: the time of the communication is not included; add --bandwidth")
    if wire > compute:
        lines.append(
            "note: communication takes longer than compute. Raise batch.pairs and batch.tokens, so that each gathered "
            "weight serves more tokens, or use fewer ranks"
        )
    return lines


def _alternatives(shape: ModelShape, config: RunConfig, cluster: Cluster, work: Work, scalar: bool) -> Iterator[str]:
    """Return the changes after which the run fits, each with its memory: settings first, then more ranks."""
    model, settings = config.model, list[tuple[str, dict[str, Any]]]()
    checkpointed = model.model_copy(update={"gradient_checkpointing": True})
    lora = config.lora or LoraConfig()
    quantised = checkpointed.model_copy(update={"quant": "nf4"})
    if not model.gradient_checkpointing:
        settings.append(("model.gradient_checkpointing=true", {"model": checkpointed}))
    if config.optim.moments == "fp32" and config.optim.name == "adamw" and not config.lora:
        half = config.optim.model_copy(update={"moments": "bf16"})
        settings.append(("gradient checkpointing and optim.moments=bf16", {"model": checkpointed, "optim": half}))
    if not config.lora:
        settings.append(("gradient checkpointing and lora", {"model": checkpointed, "lora": lora}))
    if not model.quant:
        settings.append(("gradient checkpointing, lora and model.quant=nf4", {"model": quantised, "lora": lora}))
    for text, update in settings:
        changed = config.model_copy(update=update)
        other = read_shape(changed, scalar) if changed.lora is not config.lora else shape
        slots = choose_slots(other, changed, cluster, work)
        needed = peak(other, changed, cluster, slots, work)
        if needed <= cluster.memory:
            yield f"{text} ({gb(needed)})"
    more = cluster
    while more.ranks < MOST_RANKS:
        more = replace(more, ranks=more.ranks * 2)
        needed = peak(shape, config, more, choose_slots(shape, config, more, work), work)
        if needed <= cluster.memory:
            yield f"{more.ranks} ranks ({gb(needed)})"
            return
