"""The command `preftune doctor`: facts about this machine, and advice on settings."""

from __future__ import annotations

import os
import time
from typing import Any

import torch

from preftune.files import cache_folder
from preftune.lifecycle.compute import AMX_WIDTH, has_amx, has_compiler
from preftune.train.machine import machine

CACHES = {"reference": "reference cache", "data": "data cache", "grades": "grades of judges"}


def facts() -> dict[str, Any]:
    """Return versions, the machine, the speed in GFLOP/s, caches with their bytes, and advice."""
    gpu: dict[str, Any] = {}
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        gpu = {"gpu_memory": {"free": free, "total": total}}
    caches = {}
    for folder in CACHES:
        path = cache_folder() / folder
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        caches[folder] = {"path": str(path), "bytes": size}
    return {
        **machine(),
        **gpu,
        "gflops": {"fp32": speed(torch.float32), "bf16": speed(torch.bfloat16)},
        "caches": caches,
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "not set"),
        "advice": advice(),
    }


def lines_of(values: dict[str, Any]) -> list[str]:
    """Return the facts and the advice as lines of text."""
    lines = [f"{name} {version}" for name, version in values["versions"].items()]
    lines += [f"{name}: {value}" for name, value in values["machine"].items()]
    if "gpu_memory" in values:
        free, total = (values["gpu_memory"][name] / 2**30 for name in ("free", "total"))
        lines.append(f"GPU memory: {free:.1f} of {total:.1f} GiB free")
    fp32, bf16 = values["gflops"]["fp32"], values["gflops"]["bf16"]
    lines.append(f"matrix multiplication: {fp32:.0f} GFLOP/s in fp32, {bf16:.0f} in bf16")
    caches = values["caches"].items()
    lines += [f"{CACHES[name]}: {cache['path']} ({cache['bytes'] / 1e6:.0f} MB)" for name, cache in caches]
    return [*lines, f"offline: HF_HUB_OFFLINE={values['HF_HUB_OFFLINE']}", "", *values["advice"]]


def speed(dtype: torch.dtype) -> float:
    """Return the GFLOP/s of a square matrix product, measured for 0.1 seconds."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    n = 4096 if device == "cuda" else 512
    a = torch.randn(n, n, device=device).to(dtype)
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < 0.1:
        a @ a
        count += 1
        if device == "cuda":
            torch.cuda.synchronize()
    return count * 2 * n**3 / (time.perf_counter() - begin) / 1e9


def advice() -> list[str]:
    """Return the recommended settings for this machine."""
    if torch.cuda.is_available():
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return ["model.dtype=auto uses bf16 here" if bf16 else "this GPU has no bf16: model.dtype=auto uses fp32"]
    faster = speed(torch.bfloat16) / speed(torch.float32)
    if has_amx():
        return [
            f"bf16 is {faster:.1f} times as fast as fp32 on this CPU, which has AMX: training with model.dtype=auto "
            f"uses bf16 with fp32 master weights for models with a hidden size of {AMX_WIDTH} or more",
            *([] if has_compiler() else ["there is no C++ compiler (g++), so model.compile=auto does not compile"]),
        ]
    if faster > 1.2:
        return [f"bf16 is {faster:.1f} times as fast as fp32 on this CPU: set model.dtype=bf16 (auto uses fp32)"]
    return [f"this CPU has no fast bf16 ({faster:.2f} times the fp32 speed): keep model.dtype=auto, which uses fp32"]
