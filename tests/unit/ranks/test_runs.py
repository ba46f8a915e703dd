"""Whole runs on two and three ranks: equal to one process, and resumed after a rank has failed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import PAIRS, make_model, make_tokenizer, write_jsonl
from tests.ranks import run_command

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the ranks of these tests are forked")

#: A loss that ends, stops or fails one rank in its third step, if FAULT is set.
LOSS = """
import os, signal
from torch.nn.functional import logsigmoid

calls = 0


def loss(policy, reference, *, beta=0.1):
    global calls
    calls += policy.chosen.requires_grad
    if calls == 3 and os.environ.get("RANK") == "1":
        match os.environ.get("FAULT"):
            case "raise":
                raise ValueError("a fault of rank 1")
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "term":
                os.kill(os.getpid(), signal.SIGTERM)
    return -logsigmoid(beta * (policy.chosen - policy.rejected - reference.chosen + reference.rejected))
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_model().save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    write_jsonl(folder / "pairs.jsonl", PAIRS)
    (folder / "loss.py").write_text(LOSS)
    return folder


def arguments(method: str, inputs: Path, out: Path, *more: str) -> list[str]:
    model, data = f"model.path={inputs / 'model'}", f"data.train={inputs / 'pairs.jsonl'}"
    settings = ["batch.pairs=4", "train.epochs=2", "optim.lr=1e-3", "data.eval=0.25", "batch.tokens=60"]
    monitor = ["monitor=null"] if method == "dpo" else []
    return [method, model, data, *settings, *monitor, *more, f"out={out}"]


def lines_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def require_equal_runs(one: Path, other: Path) -> None:
    """Compare the metrics and the final weights of two runs."""
    expected, actual = lines_of(one), lines_of(other)
    assert [line.keys() for line in actual] == [line.keys() for line in expected]
    for before, now in zip(expected, actual, strict=True):
        for name, value in before.items():
            if name == "loss":
                assert now[name] == pytest.approx(value, abs=2e-6)
            elif not isinstance(value, str) and not name.endswith("per_s"):
                assert now[name] == pytest.approx(value, rel=2e-4, abs=2e-5), name
    first, second = (load_file(folder / "final" / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    ("method", "settings", "ways"),
    [
        ("dpo", ["loss=sigmoid"], ["whole", "sharded"]),
        ("dpo", ["loss=kto"], ["sharded"]),
        ("reward", [], ["whole"]),
        ("sft", ["samples=2"], ["sharded"]),
    ],
    ids=["dpo", "kto", "reward", "sft"],
)
def test_two_ranks_train_as_one_process(
    method: str, settings: list[str], ways: list[str], inputs: Path, tmp_path: Path
) -> None:
    codes, log = run_command(1, arguments(method, inputs, tmp_path / "one", *settings))
    assert codes == [0], log
    for way in ways:
        command = arguments(method, inputs, tmp_path / way, *settings)
        codes, log = run_command(2, command, PREFTUNE_WEIGHTS=way)
        assert codes == [0, 0], log
        assert log.count("done: model in") == 1
        assert f"ranks: 2, each with {'all' if way == 'whole' else '1/2 of the'} weights" in log
        require_equal_runs(tmp_path / "one", tmp_path / way)


@pytest.mark.parametrize(
    ("fault", "way", "codes", "ranks"),
    [("raise", "whole", [2, 2], 1), ("kill", "sharded", [8, -9], 3), ("term", "sharded", [75, 75], 1)],
)
def test_a_run_resumes_after_a_rank_has_failed(
    fault: str, way: str, codes: list[int], ranks: int, inputs: Path, tmp_path: Path
) -> None:
    settings = [f"loss={inputs / 'loss.py'}:loss", "train.save_every=1", "batch.tokens=4096"]
    command = arguments("dpo", inputs, tmp_path / "run", *settings)
    ended, log = run_command(2, command, PREFTUNE_WEIGHTS=way, FAULT=fault)
    assert ended == codes, log
    cause = {"raise": "a fault of rank 1", "kill": "the process of rank 1 is gone", "term": "stopped after step 3 of 4"}
    assert log.count(cause[fault]) == 1, log
    ended, log = run_command(ranks, command, PREFTUNE_WEIGHTS="sharded")
    assert ended == [0] * ranks, log
    assert f"resuming after step {3 if fault == 'term' else 2} of 4" in log
    ended, log = run_command(1, arguments("dpo", inputs, tmp_path / "one", *settings))
    assert ended == [0], log
    require_equal_runs(tmp_path / "one", tmp_path / "run")
