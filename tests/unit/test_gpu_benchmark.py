"""The GPU benchmark on a CPU: a tiny model, and what it does when a system cannot run."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield importlib.import_module("gpu")
    for name in ("gpu", "dpo_step", "plain_step", "record", "workloads"):
        if name not in before:
            sys.modules.pop(name, None)


def test_a_smoke_run_writes_a_row_per_part(gpu: Any, tmp_path: Path) -> None:
    """All systems train on the same pairs, so their losses are the same."""
    out = tmp_path / "rows.jsonl"
    gpu.main(["--smoke", "--out", str(out)])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["claim"] for row in rows] == ["gpu step", "gpu head", "gpu step"]
    step, head, large = (row["figures"] for row in rows)
    for system in ("preftune", "preftune-online", "plain"):
        assert step[system]["pairs_per_s"] > 0
        assert step[system]["losses"][0] == pytest.approx(0.693147, abs=1e-5)
    assert set(step["loss_difference"]) >= {"preftune-online", "plain"}
    assert max(step["loss_difference"].values()) < 1e-4
    assert "flash-pref" in step["skipped"]
    losses = [figures["loss"] for figures in head.values() if isinstance(figures, dict) and "loss" in figures]
    assert len(losses) >= 4
    assert losses == pytest.approx([losses[0]] * len(losses), abs=1e-5)
    assert large["skipped"]["preftune"] == "needs 1000000000 GB without activations, and the GPU has 1 GB"


RUN = {"pairs_per_s": 1.0, "useful_mfu": 0.5, "gemm_gflops": 100.0, "peak_gb": 1.0, "reserved_gb": 2.0, "step_s": 1.0,
       "reference_s": 0.0, "losses": [0.7, 0.6]}  # fmt: skip


def test_a_system_that_fails_or_has_no_time_is_skipped_with_the_reason(gpu: Any) -> None:
    def run(_part: Any, system: str, left: float) -> dict[str, Any]:
        if system == "plain":
            raise subprocess.TimeoutExpired("dpo_step.py", left)
        if system == "preftune-rows":
            raise MemoryError("preftune-rows ran out of memory")
        if system == "preftune-pairs":
            raise SystemExit("preftune-pairs failed")
        return RUN

    systems = ("preftune", "plain", "preftune-rows", "preftune-pairs", "preftune-online")
    figures = gpu.run_part(gpu.Part("part", systems, ()), time.monotonic() + 100, 80.0, run)
    assert figures["preftune"] == figures["preftune-online"] == RUN
    assert figures["loss_difference"] == {"preftune-online": 0.0}
    skipped = figures["skipped"]
    assert "when the time was over" in skipped["plain"]
    assert skipped["preftune-rows"] == "preftune-rows ran out of memory"
    assert skipped["preftune-pairs"] == "preftune-pairs failed"
    late = gpu.run_part(gpu.Part("part", ("preftune",), ()), time.monotonic(), 80.0, run)
    assert late["skipped"]["preftune"] == "no time left"
    assert gpu.run_head(False, time.monotonic()) == {"skipped": {"all": "no time left"}}


def test_each_system_runs_in_a_process_with_the_options_of_its_part(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(gpu, "fastest_batch", lambda batches, arguments, timeout: batches[-1])
    monkeypatch.setattr(gpu, "run_separately", lambda *names, **more: calls.append((names, more)) or RUN)
    for part in gpu.parts_for(80.0):
        for system in part.systems:
            gpu.in_a_process(part, system, 100.0)
            names, more = calls.pop()
            options = importlib.import_module("dpo_step").parse([*more["arguments"], "--one", *names])
            assert options.one == system
            assert options.dtype == "bf16"
            assert 1 <= more["timeout"] <= 100
            assert options.batch == (part.batches[-1] if system == "trl-best" else None)
            assert all(options.pairs % batch == 0 for batch in part.batches)


def test_the_facts_of_a_gpu_come_from_nvidia_smi(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu.gpu_facts() == {}
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100, 580.1, 1980, 1980, 2619, 700.00, 81559'\n")
    program.chmod(0o755)
    facts = gpu.gpu_facts()
    assert facts["name"] == "NVIDIA H100"
    assert facts["clocks.sm"] == "1980"
    assert facts["trl"] in (True, False)
