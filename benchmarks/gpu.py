"""Everything that is measured on one GPU, in one command of less than ten minutes.

    python benchmarks/gpu.py

Models have random weights, so nothing is downloaded. Each part appends a row to results.jsonl, or to --out:

    gpu step   DPO steps of 1B and 8B models, full and with LoRA: preftune (cached and online reference, compiled or
               not), TRL (its defaults and its best settings), a loop in plain torch, and the same with flash-pref
    gpu head   the output layer and log-softmax, forward and backward, next to Liger and torch

A row has speeds, shares of the peak FLOPs, memory (allocated and reserved), losses and their largest difference from
preftune's, facts about the GPU, and under `skipped` what did not run, with the reason. Parts that do not fit into
--seconds are skipped. --smoke runs the same code with a tiny model on a CPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from dpo_step import fastest_batch, measure, parse, reset_peak, run_separately
from record import RESULTS, record
from torch import Tensor
from torch.nn import functional

from preftune.model.head import Head
from preftune.model.token_logprobs import token_logprobs

SECONDS = 570.0
START_UP_S = 25.0  # a system with less time left is skipped
PACKAGES = {"trl": "trl", "trl-best": "trl", "flash-pref": "flash_pref"}
OTHER_ORDER = ("trl-best",)  # sorts the pairs by length, so its losses cannot be compared
MS_SWIFT = "ms-swift reads texts and makes its own token ids, so no adapter has been written for it"
FACTS = ("name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "memory.total")
Runner = Callable[["Part", str, float], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Part:
    """Systems that are compared with the same options of dpo_step.py.

    batches   pairs per device that trl-best may choose from
    needs_gb  the GPU memory that the weights, gradients and optimizer need
    """

    name: str
    systems: tuple[str, ...]
    arguments: tuple[str, ...]
    batches: tuple[int, ...] = ()
    needs_gb: float = 0.0


def parts_for(memory_gb: float) -> tuple[Part, ...]:
    """Return the parts for a GPU of this size, most important first."""
    bf16, slots = ("--dtype=bf16", "--data=like-hh", "--pairs=72"), 16384 if memory_gb > 100 else 8192
    b1, b8 = (*bf16, "--model=1b", "--tokens=16384"), (*bf16, "--model=8b", f"--tokens={slots}")
    short, long = ("--steps=3", "--warm=1"), ("--steps=5", "--warm=2")
    every = ("preftune", "trl-best", "preftune-compiled-any", "preftune-online", "trl", "flash-pref", "plain")
    return (
        Part("1b full", every, (*b1, *long), (12, 36), 22),
        Part("8b lora", every[:5], (*b8, "--lora=16", *short), (6, 18), 17),
        Part("1b lora", every[:4], (*b1, "--lora=16", *short), (36,), 3),
        Part("8b full", ("preftune",), (*b8, *short), (), 147),
    )


SMOKE = (
    Part("tiny full", ("preftune", "preftune-online", "trl", "flash-pref", "plain"),
         ("--model=tiny", "--pairs=3", "--tokens=1024", "--steps=1", "--warm=1")),
    Part("too large", ("preftune",), ("--model=tiny",), (), 1e9),
)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for everything")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file that the rows are appended to")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, in this process, without a GPU")
    parser.add_argument("--head", action="store_true", help=argparse.SUPPRESS)  # only the part `gpu head`
    options = parser.parse_args(arguments)
    if options.head:
        print("RESULT " + json.dumps(head_kernels(16384, 4096, 128256, torch.bfloat16, "cuda")))
        return
    if not options.smoke and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --smoke runs without one")
    deadline = time.monotonic() + options.seconds
    facts = gpu_facts()
    print(facts)
    memory_gb = 1.0 if options.smoke else torch.cuda.get_device_properties(0).total_memory / 1e9
    for part in SMOKE if options.smoke else parts_for(memory_gb):
        figures = run_part(part, deadline, memory_gb, in_this_process if options.smoke else in_a_process)
        record("gpu step", {**figures, "gpu": facts}, {"part": part.name, "arguments": part.arguments}, options.out)
        if part.name in ("1b full", "tiny full"):
            figures = run_head(options.smoke, deadline)
            record("gpu head", {**figures, "gpu": facts}, {"smoke": options.smoke}, options.out)


def run_part(part: Part, deadline: float, memory_gb: float, run: Runner) -> dict[str, Any]:
    """Return the figures of each system of a part, and why the others were skipped."""
    figures: dict[str, Any] = {}
    skipped = {"ms-swift": MS_SWIFT}
    for system in part.systems:
        left = deadline - time.monotonic()
        reason = why_not(part, system, left, memory_gb)
        if not reason:
            try:
                figures[system] = run(part, system, left)
            except subprocess.TimeoutExpired:
                reason = f"not finished after {left:.0f} s, when the time was over"
            except (MemoryError, SystemExit) as error:
                reason = str(error)
        if reason:
            skipped[system] = reason
            print(f"{part.name}: {system} skipped: {reason}", flush=True)
        else:
            print(f"{part.name}: {system} {line(figures[system])}", flush=True)
    return {**figures, "skipped": skipped, "loss_difference": loss_differences(figures)}


def why_not(part: Part, system: str, left: float, memory_gb: float) -> str:
    """Return why a system cannot run, or an empty text."""
    package = PACKAGES.get(system)
    if part.needs_gb > memory_gb:
        return f"needs {part.needs_gb:.0f} GB without activations, and the GPU has {memory_gb:.0f} GB"
    if package and importlib.util.find_spec(package) is None:
        return f"{package} is not installed"
    if left < START_UP_S:
        return "no time left"
    return ""


def in_a_process(part: Part, system: str, left: float) -> dict[str, Any]:
    """Measure a system in a new process, so that its peak memory is its own."""
    more: list[str] = []
    if system == "trl-best":
        begin = time.monotonic()
        more = [f"--batch={fastest_batch(part.batches, part.arguments, left)}"]
        left -= time.monotonic() - begin
    return run_separately(system, *more, arguments=part.arguments, timeout=max(1.0, left))


def in_this_process(part: Part, system: str, _left: float) -> dict[str, Any]:
    """Measure a system in this process, which saves its start."""
    return measure(parse([*part.arguments, "--one", system]))


def loss_differences(figures: dict[str, Any]) -> dict[str, float]:
    """Return for each system the largest difference of a step's loss from preftune's."""
    if "preftune" not in figures:
        return {}
    expected = figures["preftune"]["losses"]
    others = [name for name in figures if name != "preftune" and name not in OTHER_ORDER]
    return {name: max(abs(a - b) for a, b in zip(figures[name]["losses"], expected, strict=True)) for name in others}


def line(run: dict[str, Any]) -> str:
    """Return the figures of one system as a line of text."""
    reserved = "" if run["reserved_gb"] is None else f" ({run['reserved_gb']:.1f} GB reserved)"
    return (
        f"{run['pairs_per_s']:.2f} pairs/s, {run['useful_mfu']:.1%} of {run['gemm_gflops'] / 1e3:.2f} TFLOP/s, "
        f"{run['peak_gb']:.1f} GB{reserved}, step {run['step_s']:.3f} s, reference {run['reference_s']:.1f} s"
    )


def run_head(smoke: bool, deadline: float) -> dict[str, Any]:
    """Return the figures of the part `gpu head`."""
    if smoke:
        return head_kernels(300, 32, 1000, torch.float32, "cpu")
    left = deadline - time.monotonic()
    if left < START_UP_S:
        return {"skipped": {"all": "no time left"}}
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--head"], capture_output=True, text=True, check=False, timeout=left
        )
    except subprocess.TimeoutExpired:
        return {"skipped": {"all": f"not finished after {left:.0f} s, when the time was over"}}
    results = [text for text in done.stdout.splitlines() if text.startswith("RESULT ")]
    if not results:
        return {"skipped": {"all": done.stderr[-2000:]}}
    figures: dict[str, Any] = json.loads(results[0].removeprefix("RESULT "))
    print(figures, flush=True)
    return figures


def head_kernels(tokens: int, width: int, vocabulary: int, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Time the mean loss of `tokens` tokens and its gradients for each kernel, with a trained and a frozen head."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator).to(device, dtype).requires_grad_()
    weight = (torch.randn(vocabulary, width, generator=generator) / width**0.5).to(device, dtype)
    target = torch.randint(vocabulary, (tokens,), generator=generator).to(device)
    kernels: dict[str, Callable[[], Tensor]] = {
        "preftune": lambda: -token_logprobs(hidden, Head(weight), target).mean(),
        "logits": lambda: functional.cross_entropy(functional.linear(hidden, weight).float(), target),
    }
    skipped = {}
    if hasattr(functional, "linear_cross_entropy"):
        kernels["torch"] = lambda: functional.linear_cross_entropy(hidden, weight, target)
    else:
        skipped["torch"] = "this version of torch has no linear_cross_entropy"
    if device == "cuda" and importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        fused = LigerFusedLinearCrossEntropyLoss()
        kernels["liger"] = lambda: fused(weight, hidden, target)
    else:
        skipped["liger"] = "it needs a GPU and the package liger-kernel"
    figures: dict[str, Any] = {"skipped": skipped, "shape": [tokens, width, vocabulary]}
    for trained in (True, False):
        weight.requires_grad_(trained)
        for name, kernel in kernels.items():
            try:
                figures[f"{name}, {'trained' if trained else 'frozen'} head"] = time_kernel(kernel, device)
            except torch.OutOfMemoryError:
                skipped[name] = "out of memory"
            hidden.grad = weight.grad = None
    return figures


def time_kernel(kernel: Callable[[], Tensor], device: str) -> dict[str, float]:
    """Return the least seconds of a forward and backward pass, the loss, and the memory that the pass adds."""
    reset_peak(device)
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    seconds, loss = [], torch.zeros(())
    for _ in range(4):
        begin = time.perf_counter()
        loss = kernel()
        loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    peak = torch.cuda.max_memory_allocated() - before if device == "cuda" else 0
    return {"seconds": min(seconds[1:]), "loss": float(loss.detach()), "added_gb": peak / 1e9}


def gpu_facts() -> dict[str, Any]:
    """Return name, driver, clocks (MHz), power limit (W) and memory (MB) of the GPU; empty without one."""
    query = ["nvidia-smi", f"--query-gpu={','.join(FACTS)}", "--format=csv,noheader,nounits"]
    try:
        text = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return {}
    facts: dict[str, Any] = dict(zip(FACTS, [part.strip() for part in text.split(",")], strict=False))
    facts["cuda"], facts["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
    for package in ("trl", "flash_pref", "liger_kernel", "flash_attn"):
        facts[package] = importlib.util.find_spec(package) is not None
    return facts


if __name__ == "__main__":
    main()
