"""What this machine has, and what training a model on it needs. Nothing here imports torch."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path

from preftune.model.cpu_memory import available_to_cpu, core_count

GB = 1e9
FULL_BYTES = 18  # per parameter: weights, gradients in fp32, fp32 masters, two moments (16 in fp32)
FROZEN_BYTES = 4  # per parameter of a model that is not trained
LARGEST_HEADER = 100 << 20  # bytes, as in the safetensors library
SHARE = 0.7  # of the free memory; the rest is for activations


@dataclass(frozen=True, slots=True)
class Machine:
    """Cores, free bytes, the name of the GPU ("" without one), and why auto trains in the precision that it does."""

    cores: int
    free: int
    gpu: str = ""
    bf16: bool = False
    why: str = ""

    def describe(self) -> str:
        """Return one line, such as "2 cores, 11.3 GB of free memory, no GPU"."""
        memory = f"{self.free / GB:.1f} GB of free memory"
        return f"{self.cores} cores, {self.gpu} with {memory}" if self.gpu else f"{self.cores} cores, {memory}, no GPU"


def this_machine() -> Machine:
    """Return the facts of this machine."""
    cores = core_count()
    gpu = _nvidia()
    if gpu:
        name, free, capability = gpu
        why = "this GPU supports it" if capability >= 8 else "this GPU does not support bf16"
        return Machine(cores, free, name, capability >= 8, why)
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return Machine(cores, available_to_cpu(), "Apple GPU", False, "bf16 is not used on mps")
    amx = _has_amx()
    why = "this CPU multiplies bf16 matrices in hardware (AMX)" if amx else "this CPU has no AMX instructions"
    return Machine(cores, available_to_cpu(), "", amx, why)


def _nvidia() -> tuple[str, int, float] | None:
    """Return name, free bytes and compute capability of the first visible GPU, or None."""
    program = shutil.which("nvidia-smi")
    if not program or os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return None
    query = [program, "--query-gpu=name,memory.free,compute_cap", "--format=csv,noheader,nounits"]
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
        name, free, capability = (cell.strip() for cell in done.stdout.splitlines()[0].rsplit(",", 2))
        return name, int(free) << 20, float(capability)
    return None


def _has_amx() -> bool:
    with suppress(OSError):
        return " amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    return False


def parameters_in(files: Sequence[Path]) -> int:
    """Return the number of parameters in safetensors files. They begin with the length of a JSON header, and it."""
    total = 0
    for path in files:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, LARGEST_HEADER)))
        total += sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return total
