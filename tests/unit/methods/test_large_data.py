"""A run whose groups are in files gives the same weights and metrics as one with its groups in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_jsonl
from tests.unit.lifecycle.test_data import rows

from preftune.config.load import build
from preftune.config.schema import DPOConfig, RewardConfig, SFTConfig
from preftune.data import spool
from preftune.files import digest
from preftune.methods import dpo, reward, sft
from preftune.train.display import Display

RUNS: dict[str, Any] = {
    "sft": (sft, SFTConfig, {}),
    "dpo": (dpo, DPOConfig, {"monitor": None}),
    "kto": (dpo, DPOConfig, {"loss": {"name": "kto"}, "monitor": None}),
    "reward": (reward, RewardConfig, {}),
}


@pytest.mark.parametrize("name", RUNS)
def test_weights_and_metrics_do_not_depend_on_where_the_groups_are(
    name: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, kind, sections = RUNS[name]
    source = str(write_jsonl(tmp_path / "rows.jsonl", rows(24)))
    results = []
    for small in (1000, 0, 0):  # in memory, the first start and the second start
        monkeypatch.setattr(spool, "SMALL", small)
        out = tmp_path / f"{len(results)}"
        settings = {
            "model": {"path": str(model_folder)},
            "data": {"train": source, "eval": 0.2, "max_length": 20},
            "batch": {"pairs": 4},
            "train": {"max_steps": 3, "log_every": 1},
            "out": str(out),
            **sections,
        }
        method.run(build(kind, settings), display=Display(quiet=True))
        manifest = json.loads((out / "manifest.json").read_text())
        metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        timeless = [
            {key: value for key, value in row.items() if not key.endswith(("_per_s", "time"))} for row in metrics
        ]
        results.append((digest(out / "final" / "model.safetensors"), timeless, manifest["ids"], manifest["data"]))
    assert results[0] == results[1] == results[2]
