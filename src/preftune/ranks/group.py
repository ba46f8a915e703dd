"""Communication between ranks. With one process, each function returns its input and nothing of torch is set up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from preftune.errors import ConfigError, RunError

T = TypeVar("T")
LONGEST = timedelta(hours=2)  # a collective may wait for the slowest rank, for example while it saves a model


def joined() -> bool:
    """Return whether this process has joined others."""
    return dist.is_available() and dist.is_initialized()


def world() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if joined() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if joined() else 0


def first() -> bool:
    """Return whether this is rank 0, the only one that prints and that writes the run folder."""
    return rank() == 0


def connect(store: Any, own_rank: int, size: int, device: torch.device | None) -> None:
    """Create the process group: gloo, and NCCL for tensors on GPUs."""
    backend = "gloo" if device is None else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=store, rank=own_rank, world_size=size, timeout=LONGEST, device_id=device)


def all_sum(value: Tensor) -> Tensor:
    """Return the sum over all ranks."""
    if world() == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total


def all_max(number: float) -> float:
    """Return the largest of the ranks' numbers."""
    return max(gather(number)) if world() > 1 else number


def all_min(number: float) -> float:
    """Return the smallest of the ranks' numbers."""
    return min(gather(number)) if world() > 1 else number


def any_rank(condition: bool) -> bool:
    """Return whether the condition is true on at least one rank."""
    return bool(all_max(float(condition))) if world() > 1 else condition


def gather(value: T) -> list[T]:
    """Return the value of every rank, in the order of ranks. Tensors in it must be on the CPU."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def from_first(make: Callable[[], T]) -> T:
    """Call `make` on rank 0 and return its result on every rank. If it fails, every rank raises the exception."""
    if world() == 1:
        return make()
    box: list[Any] = [None, None]
    if first():
        try:
            box[0] = make()
        except Exception as error:
            box[1] = error
    dist.broadcast_object_list(box)
    if box[1] is not None:
        raise box[1]
    return box[0]  # type: ignore[no-any-return]


def share(target: Any, names: Sequence[str]) -> None:
    """Set the attributes of `target` on every rank to their values on rank 0."""
    for name, value in from_first(lambda: [(name, getattr(target, name)) for name in names]):
        setattr(target, name, value)


def on_first(make: Callable[[], T], everywhere: bool) -> T:
    """Call `make` on rank 0 and return its result on every rank. `everywhere`: all ranks take part in its passes."""
    return make() if everywhere else from_first(make)


def require_one(what: str, fix: str) -> None:
    """Raise ConfigError if there are several ranks."""
    if world() > 1:
        raise ConfigError(f"{what} cannot run on several ranks", where="launch", fix=fix)


def barrier() -> None:
    """Wait until all ranks are here."""
    gather(None)


def require_equal(value: Any, what: str, fix: str) -> None:
    """Raise RunError if `value` differs between ranks."""
    values = gather(value)
    odd = next((number for number, other in enumerate(values) if other != values[0]), None)
    if odd is not None:
        raise RunError(f"{what} of rank {odd} differs from that of rank 0", where=f"{world()} ranks", fix=fix)
