"""Which precision a run uses, and whether its blocks are compiled, by model, machine and config."""

from __future__ import annotations

import pytest
import torch
from tests.conftest import random_groups

from preftune.config.schema import DPOConfig, ModelConfig
from preftune.lifecycle import compute
from preftune.lifecycle.compute import choose_compile, choose_dtype, training_flops

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("setting", "width", "amx", "recorded", "expected", "reason"),
    [
        ("auto", 576, True, None, torch.bfloat16, "AMX"),
        ("auto", 64, True, None, torch.float32, "hidden size of 64"),
        ("auto", 576, False, None, torch.float32, "no AMX"),
        ("auto", 576, True, "fp32", torch.float32, "as at the start"),
        ("auto", 64, False, "bf16", torch.bfloat16, "as at the start"),
        ("fp32", 576, True, "bf16", torch.float32, ""),
        ("bf16", 64, False, None, torch.bfloat16, ""),
    ],
)
def test_the_precision_and_its_reason(
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    width: int,
    amx: bool,
    recorded: str | None,
    expected: torch.dtype,
    reason: str,
) -> None:
    monkeypatch.setattr(compute, "has_amx", lambda: amx)
    dtype, note = choose_dtype(setting, width, CPU, recorded)
    assert dtype == expected
    assert reason in note
    assert bool(note) == bool(reason)


def test_auto_compiles_long_bf16_runs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "has_amx", lambda: True)
    monkeypatch.setattr(compute.shutil, "which", lambda _name: "/usr/bin/g++")
    config = ModelConfig(path="model")
    long, short = 2 * compute.COMPILE_FLOPS, compute.COMPILE_FLOPS / 2
    compiled, note = choose_compile(config, torch.bfloat16, CPU, long, in_memory=False)
    assert compiled
    assert "compiled" in note
    assert choose_compile(config, torch.bfloat16, CPU, short, in_memory=False) == (False, "")
    assert choose_compile(config, torch.float32, CPU, long, in_memory=False) == (False, "")
    assert choose_compile(config, torch.bfloat16, CPU, long, in_memory=True) == (False, "")
    assert choose_compile(config.model_copy(update={"compile": True}), torch.float32, CPU, 0, True) == (True, "")
    assert choose_compile(config.model_copy(update={"compile": False}), torch.bfloat16, CPU, long, False) == (False, "")
    monkeypatch.setattr(compute.shutil, "which", lambda _name: None)
    compiled, note = choose_compile(config, torch.bfloat16, CPU, long, in_memory=False)
    assert not compiled
    assert "C++ compiler" in note


def test_the_work_of_a_run_counts_epochs_and_the_limit_of_steps() -> None:
    groups = random_groups(8)
    tokens = sum(group.tokens for group in groups)
    pairs = sum(len(group.judgements) for group in groups)
    config = DPOConfig.model_validate(
        {"model": {"path": "m"}, "data": {"train": "d"}, "batch": {"pairs": 1}, "train": {"epochs": 3}}
    )
    assert training_flops(groups, config, 10) == pytest.approx(6 * 10 * 3 * tokens)
    limited = config.model_copy(update={"train": config.train.model_copy(update={"max_steps": 3 * pairs // 2})})
    assert training_flops(groups, limited, 10) == pytest.approx(6 * 10 * 1.5 * tokens, rel=0.1)
