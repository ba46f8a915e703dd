"""Some cases of each campaign of scripts/torture, and the judgement of a campaign."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODES = ("kill", "corrupt", "storage", "signals", "servers", "input")
COUNT = 2  # cases of each mode


@pytest.fixture
def torturing(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from torturing import corrupt, forks, results

    return corrupt, forks, results


@pytest.mark.skipif(sys.platform != "linux", reason="forks a process with torch")
def test_some_cases_of_each_campaign_pass(tmp_path: Path) -> None:
    command = [str(ROOT / "scripts" / "torture"), "all", "--count", str(COUNT), "--folder", str(tmp_path)]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    for mode in MODES:
        assert any(line.startswith(f"{mode}: ") for line in lines), done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "output", "files", "outcome", "failed"),
    [
        (0, "done", {"run/a": b"1"}, "harmless", False),
        (0, "a is damaged", {"run/a": b"1"}, "repaired", False),
        (0, "done", {"run/a": b"2"}, "accepted", True),
        (0, "done", {}, "accepted", True),
        (5, "run/state.json: damaged", {}, "refused", False),
        (5, "something", {}, "refused", True),
        (1, "internal error: x", {"run/a": b"1"}, "crashed", True),
        (-11, "", {"run/a": b"1"}, "crashed", True),
    ],
)
def test_a_wrong_result_is_a_failure(
    torturing: Any, tmp_path: Path, code: int, output: str, files: dict[str, bytes], outcome: str, failed: bool
) -> None:
    corrupt, forks, _ = torturing
    done = forks.Ended(code, output, 1.0, 1.0, tmp_path)
    result, failure = corrupt.judged(done, "run/checkpoints/step-1/state.json", {"run/a": b"1"}, files, {})
    assert (result, bool(failure)) == (outcome, failed)


def test_the_table_counts_cases_and_failures(torturing: Any) -> None:
    results = torturing[2]
    rows = [results.Result("dpo", "killed"), results.Result("dpo", "killed", "differs"), results.Result("sft", "done")]
    assert results.by_row(rows)["dpo"] == {"cases": 2, "passed": 1, "outcomes": {"killed": 2}}
    assert results.table(rows).splitlines()[-1].split() == ["all", "3", "2", "2", "killed,", "1", "done"]
