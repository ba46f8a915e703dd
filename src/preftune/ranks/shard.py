"""Split a model's weights among ranks with FSDP2 (torch's `fully_shard`), for models that do not fit on one device.

Each rank holds the same rows of every weight, and of its gradient and optimizer state. A transformer block is gathered
while it computes. Trained weights are fp32 and their own masters; blocks compute in the run's precision, and gradients
are added up in fp32.

Embeddings, last norm and output layer belong to the root. It stays whole from the forward to the end of the backward
pass: the log-probs are computed outside of the model's forward, so torch would not notice that its backward pass needs
them again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from preftune.errors import ConfigError, ModelError
from preftune.model.attention import base_of
from preftune.model.compile import blocks
from preftune.model.precision import note_compute_dtype
from preftune.ranks import group
from preftune.ranks.environment import WEIGHTS, place

CHOICES = ("auto", "whole", "node", "sharded")
ACTIVATIONS = 0.6  # share of the free memory that weights, gradients and optimizer state may take


def choose_shards(needed: float, free: float) -> tuple[int, str]:
    """Return the number of ranks that share one copy of the weights, and a line with the reason.

    1: every rank has all weights. `needed` and `free` are the bytes of weights, gradients and optimizer state, and the
    memory of this rank. Raises ConfigError for an unknown setting.
    """
    setting = os.environ.get(WEIGHTS, "auto")
    if setting not in CHOICES:
        fix = "pass --weights with one of them, or unset the variable"
        raise ConfigError(f"{setting!r} is not one of {', '.join(CHOICES)}", where=WEIGHTS, fix=fix)
    world, local = group.world(), place().local_world
    free = group.all_min(free)
    fits = needed <= ACTIVATIONS * free
    gib = f"{needed / 2**30:.1f} GiB of weights, gradients and optimizer state"
    match setting:
        case "whole":
            return 1, f"ranks: {world}, each with all weights"
        case "sharded":
            return world, f"ranks: {world}, each with 1/{world} of the weights"
        case "node":
            return local, f"ranks: {world}, each with 1/{local} of the weights; one copy per machine"
    if fits:
        return 1, f"ranks: {world}, each with all weights, because {gib} fit on each"
    if world > local and needed / local <= ACTIVATIONS * free:
        return local, f"ranks: {world}, each with 1/{local} of the weights, because {gib} do not fit on one"
    return world, f"ranks: {world}, each with 1/{world} of the weights, because {gib} do not fit on one"


def shard(model: Any, dtype: torch.dtype, shards: int, device: torch.device, precise: Mapping[str, Tensor]) -> None:
    """Split `model` among `shards` ranks and move its parts to `device`, block after block.

    dtype     precision of the computation; trained weights become fp32
    precise   more exact values of weights, by name
    Raises ModelError if the blocks are not in one list.
    """
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    base, mesh = base_of(model), _mesh(device.type, shards, group.world())
    half = dtype != torch.float32
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32) if half else MixedPrecisionPolicy()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for block in [*blocks(base), base]:
        for parameter in block.parameters():
            if id(parameter) in names and parameter.requires_grad:
                parameter.data = precise.get(names[id(parameter)], parameter.data).float()
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=block is not base)
        names = {id(p): name for name, p in model.named_parameters() if not is_dtensor(p)}
    for module in base.modules():
        if isinstance(module, FSDPModule):
            # plain sums: the loop has divided by the item count of the whole step
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    note_compute_dtype(model, dtype)


@lru_cache
def _mesh(device: str, shards: int, world: int) -> Any:
    """Return the groups of ranks that share one copy of the weights, and of those that hold the same part."""
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(device, (world // shards, shards), mesh_dim_names=("replicate", "shard"))
    return mesh["shard"] if shards == world else mesh


def is_dtensor(tensor: Tensor) -> bool:
    """Return whether this rank holds only a part of the tensor."""
    return hasattr(tensor, "to_local")


def is_sharded(model: nn.Module) -> bool:
    """Return whether the weights of a model are split among ranks."""
    return group.world() > 1 and hasattr(base_of(model), "unshard")


def any_sharded(tensors: list[Tensor]) -> bool:
    """Return whether some of the tensors are split among ranks."""
    return any(is_dtensor(tensor) for tensor in tensors)


def reshard(model: nn.Module) -> None:
    """Free the root's gathered weights, which a forward pass without backward pass leaves whole."""
    if is_sharded(model):
        base_of(model).reshard()


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor. Changes to it change the tensor."""
    part: Tensor = tensor.to_local() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]
    return part


def whole(tensor: Tensor) -> Tensor:
    """Return all parts of a tensor together, on the CPU. All ranks must call it."""
    full: Tensor = tensor.full_tensor() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]
    return full.detach().cpu()


def first_row(tensor: Tensor) -> int:
    """Return the row of the whole tensor at which this rank's part begins; all but the last are ceil(rows / shards)."""
    if not is_dtensor(tensor):
        return 0
    mesh: Any = tensor.device_mesh  # type: ignore[attr-defined]
    index, shards = int(mesh.get_local_rank(mesh.ndim - 1)), int(mesh.size(mesh.ndim - 1))
    return min(tensor.shape[0], index * -(-tensor.shape[0] // shards))


def is_first_copy(tensor: Tensor) -> bool:
    """Return whether this rank saves its part: the first copy of a split tensor, and rank 0 for all others."""
    if not is_dtensor(tensor):
        return group.first()
    mesh: Any = tensor.device_mesh  # type: ignore[attr-defined]
    return bool(mesh.ndim == 1 or mesh.get_local_rank(0) == 0)


def square_sum(tensors: list[Tensor]) -> Tensor:
    """Return the sum of the squares of all elements, of which each rank may hold a part."""
    norm = torch.nn.utils.get_total_norm
    plain = norm([t for t in tensors if not is_dtensor(t)]).square()
    parts = norm([local(t) for t in tensors if is_dtensor(t)]).square()
    split = next((t for t in tensors if is_dtensor(t)), None)
    if split is not None:
        mesh: Any = split.device_mesh  # type: ignore[attr-defined]
        torch.distributed.all_reduce(parts, group=mesh.get_group(mesh.ndim - 1))
        plain = plain.to(parts.device)
    return plain + parts


def require_blocks(model: Any) -> None:
    """Raise ModelError if a model's blocks cannot be found."""
    try:
        blocks(base_of(model))
    except ModelError as error:
        fix = "launch with --weights whole if the model fits on each rank"
        raise ModelError(error.what, where="model", why="its weights cannot be split among ranks", fix=fix) from None
