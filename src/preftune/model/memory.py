"""Memory: how much there is, what a model and a batch take of it, and what happens when it runs out."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from preftune.model.logprobs import Scorer, hidden_states
from preftune.types import Batch, TokenGroup

Result = TypeVar("Result")


def out_of_memory(error: BaseException) -> bool:
    """Whether torch could not get the memory it asked for."""
    said = ("can't allocate memory", "out of memory", "ALLOC_FAILED")  # torch's CPU; CUDA, MPS; cuBLAS
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in said)


def free_memory() -> None:
    """Give back what failed computations still hold."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def available(device: torch.device) -> int:
    """Bytes that this process can still get on `device`."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    limits = [_free_on_machine()]
    for allowed, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):  # a container's limits, version 2 and 1
        values = [_number(Path("/sys/fs/cgroup") / name) for name in (allowed, used)]
        if values[0] is not None and values[1] is not None:
            limits.append(max(0, values[0] - values[1] + _reclaimable(used)))
    return min(limits)


def _reclaimable(used: str) -> int:
    """Bytes of a container's use that are only cached files."""
    path = (Path("/sys/fs/cgroup") / used).with_name("memory.stat")
    if not path.is_file():
        return 0
    found = dict(line.split() for line in path.read_text().splitlines())
    return int(found.get("total_inactive_file", found.get("inactive_file", 0)))


def in_use(device: torch.device) -> int:
    """Bytes that this process has on `device`."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.is_file() else 0


def _free_on_machine() -> int:
    information = Path("/proc/meminfo")
    if information.is_file():
        found = dict(line.split(":", 1) for line in information.read_text().splitlines())
        return int(found["MemAvailable"].split()[0]) * 1024
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if sys.platform != "win32" else 8 << 30
    return total // 2  # elsewhere nobody says what is free


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def activation_bytes(scorer: Scorer, batch: Batch) -> int:
    """Bytes of activations that a forward pass of the body keeps for its backward pass; weights do not count.

    Gradient checkpointing is off meanwhile: it works in training mode only.
    """
    training = scorer.model.training
    scorer.model.eval()
    seen: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in scorer.model.parameters()}
    held = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)  # as long as it lives, its address is not given to another
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden_states(scorer.model, batch.to(scorer.device))
    scorer.model.train(training)
    return sum(seen.values())


def compute_in_parts(
    compute: Callable[[Batch], Result], batch: Batch, layout: Callable[[Sequence[TokenGroup]], list[Batch]]
) -> Iterator[tuple[Batch, Result]]:
    """compute(batch); where it does not fit in memory, its groups in two halves, and so on. Not for gradients."""
    try:
        result: Any = compute(batch)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error) or len(batch.groups) == 1:
            raise
        result = None
    if result is not None:
        yield batch, result
        return
    free_memory()  # after the handler: the error holds what the computation had allocated
    middle = len(batch.groups) // 2
    for half in (batch.groups[:middle], batch.groups[middle:]):
        for part in layout(half):
            yield from compute_in_parts(compute, part, layout)


def by_group(
    says: Callable[[Batch], tuple[Tensor, ...]],
    groups: Sequence[TokenGroup],
    layout: Callable[[Sequence[TokenGroup]], list[Batch]],
    done: Callable[[int], None] = lambda number: None,
) -> list[tuple[Tensor, ...]]:
    """For each group its part of what `says` gives for a batch: one value a response, (S,), or a token, (N,)."""
    found: dict[int, tuple[Tensor, ...]] = {}
    for whole in layout(groups):
        for batch, values in compute_in_parts(says, whole, layout):
            responses = [len(group.response_ids) for group in batch.groups]
            tokens = [sum(map(len, group.response_ids)) for group in batch.groups]
            cut = [torch.split(v, responses if len(v) == sum(responses) else tokens) for v in values]
            found |= {id(group): parts for group, *parts in zip(batch.groups, *cut, strict=True)}  # type: ignore[misc]
            done(len(found))
    return [found[id(group)] for group in groups]
