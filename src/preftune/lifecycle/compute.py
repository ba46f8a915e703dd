"""Choose the precision of a training run, and whether its blocks are compiled, for the model and this machine.

Both choices depend only on the config, the data and the machine, never on a timing, so that a resumed run repeats them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

import torch

from preftune.config.schema import ModelConfig, RunConfig
from preftune.data.shapes import Shapes
from preftune.model import load
from preftune.types import TokenGroup

AMX_WIDTH = 256  # narrower models spend little time in matrix products, so bf16 does not make them faster
COMPILE_FLOPS = 1e14  # about five minutes of training on two cores; compilation takes up to one and saves a quarter


def choose_dtype(
    setting: str, width: int, device: torch.device, recorded: str | None = None
) -> tuple[torch.dtype, str]:
    """Return the precision of a training run, and for model.dtype=auto a line with the reason.

    width      the model's hidden size
    recorded   the precision in the manifest of a run that is resumed, which may have started on another machine
    """
    if setting != "auto":
        return load.DTYPES[setting], ""
    if recorded:
        return load.DTYPES[recorded], f"precision: {recorded}, as at the start of this run"
    dtype, reason = _auto(width, device)
    name = "bf16 with fp32 master weights" if dtype == torch.bfloat16 else "fp32"
    return dtype, f"precision: {name}, because {reason}"


def _auto(width: int, device: torch.device) -> tuple[torch.dtype, str]:
    """Return the precision for model.dtype=auto, and the reason."""
    match device.type:
        case "cuda" if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "this GPU supports it"
        case "cuda":
            return torch.float32, "this GPU does not support bf16"
        case "cpu" if has_amx() and width >= AMX_WIDTH:
            return torch.bfloat16, "this CPU multiplies bf16 matrices in hardware (AMX). model.dtype=fp32 is more exact"
        case "cpu" if has_amx():
            return torch.float32, f"a hidden size of {width} is too small to gain from bf16"
        case "cpu":
            return torch.float32, "this CPU has no AMX instructions, without which bf16 is slow"
    return torch.float32, f"bf16 is not used on {device.type}"


def has_amx() -> bool:
    """Return whether this CPU multiplies bf16 matrices in hardware, several times as fast as fp32 ones."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def has_compiler() -> bool:
    """Return whether torch.compile finds a C++ compiler, which it needs on a CPU."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def choose_compile(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, flops: float, in_memory: bool
) -> tuple[bool, str]:
    """Return whether to compile the blocks, and for model.compile=auto a line with the reason.

    auto compiles bf16 models on a CPU with AMX, if the run is long enough: `flops` is its number of operations. It does
    not compile a model of the caller (`in_memory`), who would get it back compiled.
    """
    if config.compile != "auto":
        return config.compile, ""
    suitable = dtype == torch.bfloat16 and device.type == "cpu" and has_amx()
    if not suitable or in_memory or config.quant or config.gradient_checkpointing or flops < COMPILE_FLOPS:
        return False, ""
    if not has_compiler():
        return False, "not compiled: a C++ compiler (g++, or the one in CXX) would make this run about a quarter faster"
    return True, "compiled: the transformer blocks, which takes up to a minute and saves more in a run of this length"


def training_flops(groups: Sequence[TokenGroup], config: RunConfig, parameters: int) -> float:
    """Return an estimate of the operations of a run: six per parameter and token."""
    shapes = Shapes.of(groups)
    items = int(shapes.size_G.sum())
    steps = config.train.epochs * -(-items // config.batch.pairs)
    share = min(1.0, config.train.max_steps / max(1, steps)) if config.train.max_steps else 1.0
    return 6.0 * parameters * config.train.epochs * share * float(shapes.tokens_G.sum())
