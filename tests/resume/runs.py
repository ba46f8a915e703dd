"""Helpers of the tests that stop and resume runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from preftune.config.schema import (
    BatchConfig,
    DataConfig,
    DPOConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from preftune.train.display import Display
from preftune.train.run import Run

TIMES = {"pairs_per_s", "tokens_per_s"}


def config(source: Path, folder: Path, out: Path, **sections: Any) -> DPOConfig:
    settings: dict[str, Any] = {
        "model": ModelConfig(path=str(folder), dtype="fp32"),
        "data": DataConfig(train=str(source), eval=0.25),
        "optim": OptimConfig(lr=1e-3),
        "batch": BatchConfig(pairs=2),
        "train": TrainConfig(epochs=4, eval_every=3, save_every=3),
        "monitor": None,
        "out": str(out),
        **sections,
    }
    return DPOConfig(**settings)


def quiet() -> Display:
    return Display(quiet=True)


def metrics(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    [path] = folder.glob("*.safetensors")
    tensors: dict[str, torch.Tensor] = load_file(path)
    return tensors


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Simulate a stop request during step `steps`."""
    calls = 0

    def requested(self: Run) -> bool:
        nonlocal calls
        calls += 1
        return calls == steps

    monkeypatch.setattr(Run, "stop_requested", requested)
