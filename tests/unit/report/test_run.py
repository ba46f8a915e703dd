"""The report reads the lines of metrics that are intact, and says what is wrong with the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from preftune.report.read import read_metrics
from preftune.train.metrics_file import MetricsFile


@pytest.mark.parametrize(
    ("damage", "steps", "problem"),
    [
        (lambda data: data, [1, 2, 3], ""),
        (lambda data: data + b'{"step": 4, "split": "train"}\n', [1, 2, 3, 4], ""),  # an extension has begun
        (lambda data: data.replace(b"0.2", b"0.9"), [1, 2, 3], "metrics.jsonl was changed or damaged"),
        (lambda data: data[data.index(b"\n") + 1 :], [2, 3], "metrics.jsonl was changed or damaged"),
        (lambda data: data.replace(b"split", b"sp\xff", 1), [2, 3], "1 damaged lines are not shown."),
        (lambda data: b"", [], "metrics.jsonl was changed or damaged after the end of the run."),
    ],
)
def test_damaged_metrics_are_reported(tmp_path: Path, damage: object, steps: list[int], problem: str) -> None:
    file = MetricsFile(tmp_path, print)
    for step in (1, 2, 3):
        file.add({"step": step, "split": "train", "loss": step / 10})
    end = file.position()
    file.path.write_bytes(damage(file.path.read_bytes()))  # type: ignore[operator]
    lines, text = read_metrics(file.path, end)
    assert [line["step"] for line in lines] == steps
    assert problem in text
    assert bool(text) == bool(problem)
    assert read_metrics(tmp_path / "none") == ([], "")
