"""Whole runs on two and three ranks: equal to one process, and resumed after a rank has failed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import PAIRS, make_model, make_tokenizer, write_jsonl
from tests.ranks import run_command, run_commands

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
    monitor = ["monitor=null"] if method == "dpo" and not any("monitor" in setting for setting in more) else []
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
    names = [path.name for path in (one / "final").glob("*model.safetensors")]
    first, second = (load_file(folder / "final" / names[0]) for folder in (one, other))
    assert first.keys() == second.keys()
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=0, atol=5e-5)


#: Method, settings, and how two ranks hold the weights.
RUNS = {
    "dpo": ("dpo", ["loss=sigmoid", "monitor.prompts=2", "monitor.max_new_tokens=4"], ["whole", "sharded"]),
    "joint": ("dpo", ["loss=kto"], ["sharded"]),
    "frozen": ("dpo", ["reference.kind=frozen", "model.attention=rows"], ["sharded"]),
    "lora": ("dpo", ["lora.rank=4", "model.gradient_checkpointing=true"], ["whole", "sharded"]),
    "reward": ("reward", [], ["whole", "sharded"]),
    "sft": ("sft", ["samples=2"], ["sharded"]),
}


@pytest.fixture(scope="module")
def trained(inputs: Path) -> tuple[Path, str]:
    """Train all runs on one process and on two ranks. Return the folder of the runs, and what the ranks printed."""
    folder = inputs.parent / f"{inputs.name}-runs"
    one, two = [], []
    for name, (method, settings, ways) in RUNS.items():
        one.append((arguments(method, inputs, folder / name / "one", *settings), "auto"))
        two += [(arguments(method, inputs, folder / name / way, *settings), way) for way in ways]
    for world, series in ((1, one), (2, two)):
        codes, log = run_commands(world, series)
        assert codes == [0] * world, log
    return folder, log


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_train_as_one_process(name: str, trained: tuple[Path, str]) -> None:
    for way in RUNS[name][2]:
        require_equal_runs(trained[0] / name / "one", trained[0] / name / way)


def test_only_rank_0_prints(trained: tuple[Path, str]) -> None:
    ways = [way for _, _, ways in RUNS.values() for way in ways]
    assert trained[1].count("done: model in") == len(ways)
    for way, share in (("whole", "all"), ("sharded", "1/2 of the")):
        assert trained[1].count(f"ranks: 2, each with {share} weights") == ways.count(way)


@pytest.mark.parametrize(
    ("fault", "way", "codes", "ranks"),
    [("raise", "whole", [2, 2], 1), ("kill", "sharded", [8, -9], 3), ("term", "sharded", [75, 75], 1)],
)
def test_a_run_resumes_after_a_rank_has_failed(
    fault: str, way: str, codes: list[int], ranks: int, inputs: Path, tmp_path: Path
) -> None:
    settings = [f"loss={inputs / 'loss.py'}:loss", "train.save_every=1", "batch.tokens=4096"]
    command = arguments("dpo", inputs, tmp_path / "run", *settings)
    threads = {"IN_THREADS": "1"} if fault == "term" else {}
    ended, log = run_command(2, command, PREFTUNE_WEIGHTS=way, FAULT=fault, **threads)
    assert ended == codes, log
    cause = {"raise": "a fault of rank 1", "kill": "the process of rank 1 is gone", "term": "stopped after step 3 of 4"}
    assert log.count(cause[fault]) == 1, log
    assert log.count("saved checkpoint") == (3 if fault == "term" else 2), log
    ended, log = run_command(ranks, command, PREFTUNE_WEIGHTS="sharded")
    assert ended == [0] * ranks, log
    assert f"resuming after step {3 if fault == 'term' else 2} of 4" in log
    ended, log = run_command(1, arguments("dpo", inputs, tmp_path / "one", *settings))
    assert ended == [0], log
    require_equal_runs(tmp_path / "one", tmp_path / "run")
