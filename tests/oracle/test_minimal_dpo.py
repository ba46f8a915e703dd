"""The library compared with `examples/minimal_dpo.py`, an independent implementation in plain torch."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import PAIRS, make_model, write_jsonl

from preftune.chat.render import Renderer
from preftune.config.schema import BatchConfig, DataConfig, DPOConfig, ModelConfig, OptimConfig, TrainConfig
from preftune.data.read_groups import read_groups
from preftune.data.steps import size_of, training_steps
from preftune.data.tokenize_groups import Limits, tokenize
from preftune.methods import dpo
from preftune.train.display import Display

STEPS = 50


def minimal_dpo() -> Any:
    path = Path(__file__).parents[2] / "examples" / "minimal_dpo.py"
    spec = importlib.util.spec_from_file_location("minimal_dpo", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config(data: Path, out: Path, **sections: Any) -> DPOConfig:
    return DPOConfig(
        model=ModelConfig(path="toy", dtype="fp32"),
        data=DataConfig(train=str(data)),
        optim=OptimConfig(lr=1e-3, warmup=0),
        batch=BatchConfig(pairs=3, tokens=60),
        train=TrainConfig(epochs=STEPS, max_steps=STEPS),
        out=str(out),
        **sections,
    )


def flat(model: Any) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().double() for parameter in model.parameters()])


def assert_same_training(ours: Any, theirs: Any, tolerance: float = 1e-4) -> None:
    """The weights differ by less than a thousandth of what training changed, and nearly all by less than `tolerance`.

    AdamW divides by the size of the gradient. A gradient that is 0 up to rounding therefore moves its weight in a
    direction that depends on the CPU, so one weight in ten thousand may differ by more, but by less than one
    step.
    """
    difference, change = (flat(ours) - flat(theirs)).abs(), flat(theirs) - flat(make_model())
    assert difference.norm() < 1e-3 * change.norm()
    assert (difference > tolerance).double().mean() < 1e-4
    assert difference.max() < 1e-3  # the largest learning rate


@pytest.mark.parametrize("kind", ["frozen", "cached"])
def test_50_steps_equal_those_of_minimal_dpo(tmp_path: Path, tokenizer: Any, kind: str) -> None:
    """Loss, margin and gradient norm of every step, and the final weights."""
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    model = make_model()
    dpo.run(
        config(data, tmp_path / "run", reference={"kind": kind}),
        model=model,
        tokenizer=tokenizer,
        display=Display(quiet=True),
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["split"] == "train"]
    assert len(lines) == STEPS

    oracle = minimal_dpo()
    groups, account = read_groups(str(data))
    tokens = tokenize(groups, Renderer.of(tokenizer), Limits(), account)
    order = training_steps([size_of(g) for g in tokens], 3, 0, STEPS, STEPS)
    batches = [[oracle.encode(tokenizer, PAIRS[i]) for i in step.members] for step in order]
    oracle_model = make_model()
    for line, expected in zip(lines, oracle.train(oracle_model, batches, learning_rate=1e-3), strict=True):
        assert line["step"] == expected["step"]
        for name in ("loss", "rewards/margins", "grad_norm"):
            assert line[name] == pytest.approx(expected[name], abs=2e-4, rel=2e-3), (name, line["step"])
    assert_same_training(model, oracle_model)


def test_weights_after_5_steps_equal_those_of_minimal_dpo_within_1e_5(tmp_path: Path, tokenizer: Any) -> None:

    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    model, oracle_model, oracle = make_model(), make_model(), minimal_dpo()
    settings = config(data, tmp_path / "run")
    changes = {"train": TrainConfig(epochs=5, max_steps=5), "optim": OptimConfig(lr=1e-4, warmup=0)}
    settings = settings.model_copy(update=changes)
    dpo.run(settings, model=model, tokenizer=tokenizer, display=Display(quiet=True))
    order = training_steps([1] * len(PAIRS), 3, 0, 5, 5)
    batches = [[oracle.encode(tokenizer, PAIRS[i]) for i in step.members] for step in order]
    list(oracle.train(oracle_model, batches, learning_rate=1e-4))
    assert_same_training(model, oracle_model, tolerance=1e-5)


def test_minimal_dpo_runs_as_a_script(model_folder: Path, pairs_file: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    script = Path(__file__).parents[2] / "examples" / "minimal_dpo.py"
    done = subprocess.run(
        [sys.executable, str(script), str(model_folder), str(pairs_file), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
    )
    first = json.loads(done.stdout.splitlines()[0])
    assert first["loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert (tmp_path / "out" / "model.safetensors").is_file()
