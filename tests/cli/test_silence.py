"""With --quiet, a successful run writes nothing to stderr, not even warnings of other libraries."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.conftest import PAIRS, write_jsonl

from preftune.errors import ModelError


def preftune(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, with Python's default warning filters."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"}
    command = [sys.executable, "-m", "preftune", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        ("dpo", ["lora.rank=2", "model.gradient_checkpointing=true"]),
        ("dpo", ["lora.rank=2", "lora.targets=[lm_head, embed_tokens, q_proj]", "model.dtype=bf16"]),
        ("reward", ["lora.rank=2"]),
        ("sft", []),
    ],
)
def test_a_quiet_run_is_silent(tmp_path: Path, model_folder: Path, method: str, overrides: list[str]) -> None:
    config = {
        "model": {"path": str(model_folder)},
        "data": {"train": str(write_jsonl(tmp_path / "d.jsonl", PAIRS))},
        "train": {"max_steps": 2},
        "batch": {"pairs": 2},
        "out": "run",
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    done = preftune(method, "c.yaml", "--quiet", *overrides, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    if method == "dpo":  # score loads and merges the adapter
        rest = ["--reference", str(model_folder), "--data", "d.jsonl", "--out", "s.jsonl", "--quiet"]
        done = preftune("score", "--policy", "run/final", *rest, folder=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")


def test_a_model_with_a_missing_tensor_is_refused_with_its_name(tmp_path: Path, model_folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    (tmp_path / "m").mkdir()
    for file in model_folder.iterdir():
        (tmp_path / "m" / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    write_jsonl(tmp_path / "d.jsonl", PAIRS)
    done = preftune("score", "--policy", "m", "--reference", "m", "--data", "d.jsonl", "-q", folder=tmp_path)
    assert done.returncode == ModelError.exit_code
    assert done.stderr.splitlines()[0] == "m: 1 of 21 tensors of the model is missing: model.norm.weight"
    assert "Traceback" not in done.stderr
    assert "LOAD REPORT" not in done.stderr
