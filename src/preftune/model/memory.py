"""Memory: how much is available, how much a model and a batch need, and what to do when it runs out."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from preftune.model.cpu_memory import available_to_cpu
from preftune.model.logprobs import Scorer, hidden_states
from preftune.model.quantised import stored_tensors
from preftune.types import Batch, TokenGroup

Result = TypeVar("Result")
_together = False


def out_of_memory(error: BaseException) -> bool:
    """Return whether `error` means that memory ran out."""
    messages = ("can't allocate memory", "out of memory", "ALLOC_FAILED")  # torch on a CPU; CUDA and MPS; cuBLAS
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in messages)


def passes_need_all_ranks() -> None:
    """Note that the models of this process are split among ranks, so that no rank may repeat a pass alone."""
    global _together
    _together = True


def can_repeat(error: BaseException) -> bool:
    """Return whether memory ran out in a pass that this process may repeat in smaller parts."""
    return out_of_memory(error) and not _together


def free_memory() -> None:
    """Return cached memory, such as that of a failed computation, to the system."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def keep_freed_memory() -> bool:
    """Let the C library keep freed tensors of up to 32 MB for the next ones. Returns False if it is not glibc.

    By default it returns them to the system, and every new tensor then costs a page fault per 4 KB. In bf16 on a CPU,
    these faults take a quarter of a step. The peak memory stays the same (docs/develop/log.md).
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    m_trim_threshold, m_mmap_threshold = -1, -3  # from malloc.h
    return bool(library.mallopt(m_mmap_threshold, 32 << 20) and library.mallopt(m_trim_threshold, (1 << 31) - 1))


def available(device: torch.device) -> int:
    """Return the bytes that this process can still allocate on `device`."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    return available_to_cpu()


def in_use(device: torch.device) -> int:
    """Return the bytes that this process uses on `device`."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.is_file() else 0


def activation_bytes(scorer: Scorer, batch: Batch) -> int:
    """Measure the bytes of activations that a forward pass of the body saves for the backward pass, without weights.

    Gradient checkpointing is off during the measurement, because it works in training mode only.
    """
    training = scorer.model.training
    scorer.model.eval()
    sizes: dict[int, int] = {}
    tensors = [*scorer.model.parameters(), *stored_tensors(scorer.model)]
    weights = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    saved = []

    def record(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
            saved.append(tensor)  # while the tensor exists, no other tensor can have its address
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        hidden_states(scorer.model, batch.to(scorer.device))
    scorer.model.train(training)
    return sum(sizes.values())


def compute_in_parts(
    compute: Callable[[Batch], Result], batch: Batch, make_batches: Callable[[Sequence[TokenGroup]], list[Batch]]
) -> Iterator[tuple[Batch, Result]]:
    """Yield (batch, compute(batch)). If memory runs out, split the groups in halves, repeatedly. Not for gradients."""
    try:
        result: Any = compute(batch)
    except (RuntimeError, MemoryError) as error:
        if not can_repeat(error) or len(batch.groups) == 1:
            raise
        result = None
    if result is not None:
        yield batch, result
        return
    free_memory()  # outside of the handler, because the exception references the tensors of the computation
    middle = len(batch.groups) // 2
    for half in (batch.groups[:middle], batch.groups[middle:]):
        for part in make_batches(half):
            yield from compute_in_parts(compute, part, make_batches)


def by_group(
    compute: Callable[[Batch], tuple[Tensor, ...]],
    groups: Sequence[TokenGroup],
    make_batches: Callable[[Sequence[TokenGroup]], list[Batch]],
    progress: Callable[[int], None] = lambda number: None,
) -> list[tuple[Tensor, ...]]:
    """Compute values per response, (S,), or per token, (N,), and return those of each group, in order.

    compute    returns a tuple of such tensors for a batch;  progress   is called with the number of finished groups
    """
    groups = list(groups)  # the groups of a file are new objects each time they are read
    values_of: dict[int, tuple[Tensor, ...]] = {}
    for whole in make_batches(groups):
        for batch, values in compute_in_parts(compute, whole, make_batches):
            responses = [len(group.response_ids) for group in batch.groups]
            tokens = [sum(map(len, group.scored_ids)) for group in batch.groups]
            split = [torch.split(v, responses if len(v) == sum(responses) else tokens) for v in values]
            values_of |= {id(g): parts for g, *parts in zip(batch.groups, *split, strict=True)}  # type: ignore[misc]
            progress(len(values_of))
    return [values_of[id(group)] for group in groups]
