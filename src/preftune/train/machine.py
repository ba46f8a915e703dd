"""The command, versions and hardware of a run, for its manifest."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from preftune.model.cpu_memory import core_count

PACKAGES = ("preftune", "torch", "transformers", "tokenizers", "peft", "datasets", "safetensors", "numpy")


def machine() -> dict[str, Any]:
    """Return the command, versions and hardware, for the manifest."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": {"python": platform.python_version(), **versions},
        "machine": {
            "platform": platform.platform(),
            "processor": processor(),
            "instructions": instructions(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        },
    }


def use_threads_of(manifest: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Compute with as many threads as the run that is resumed, since sums are rounded differently with another number.

    A machine with fewer cores keeps its own number of threads. Both are said.
    """
    threads, own = (manifest.get("machine") or {}).get("threads"), torch.get_num_threads()
    if not isinstance(threads, int) or threads == own:
        return
    cores = core_count()
    if 0 < threads <= cores:
        torch.set_num_threads(threads)
        say(
            f"the run continues with {threads} threads instead of {own}, as it began, so the results have the same bits"
        )
    else:
        say(
            f"the run began with {threads} threads, but this machine has fewer cores ({cores}), so it continues with "
            f"{own}: the results agree with those of an uninterrupted run to rounding, not bit for bit"
        )


def processor() -> str:
    """Return the name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def instructions() -> str:
    """Return the fastest instructions of the CPU for matrix products: AMX, AVX512_BF16, AVX512, AVX2 or none."""
    capabilities = torch.cpu.get_capabilities()
    names = {"amx_bf16": "AMX", "avx512_bf16": "AVX512_BF16", "avx512_f": "AVX512", "avx2": "AVX2"}
    return next((name for flag, name in names.items() if capabilities.get(flag)), "none")
