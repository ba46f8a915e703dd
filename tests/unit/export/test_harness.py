"""preftune eval harness: the command, its results in report and card, and a machine without lm-evaluation-harness."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from preftune.cli.main import run as preftune
from preftune.errors import ConfigError, IncompleteError
from preftune.export.harness import HarnessOptions, run
from preftune.train.display import Display

QUIET = Display(quiet=True)
TASK = """\
task: toy
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
FAKE = """\
import json, pathlib, sys
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
assert sys.argv[1] == "run" and "peft=" in options["--model_args"]
out = pathlib.Path(options["--output_path"]) / "model"
out.mkdir(parents=True, exist_ok=True)
results = {options["--tasks"]: {"acc,none": 0.75, "acc_stderr,none": 0.125}}
(out / "results_1.json").write_text(json.dumps({"results": results}))
"""


@pytest.fixture
def own_run(lora_run: Path, tmp_path: Path) -> Path:
    """A copy, because the command writes into the run folder."""
    return Path(shutil.copytree(lora_run, tmp_path / "my-run"))


def install(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a program that takes the place of lm-evaluation-harness."""
    package = folder / "site" / "lm_eval"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(code)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("PYTHONPATH", f"{package.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


def test_results_are_added_to_the_report_and_the_card(
    own_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, FAKE, monkeypatch)
    assert preftune(["eval", "harness", str(own_run), "--tasks", "toy"]) == 0
    assert "| toy | acc | 0.7500 | 0.1250 |" in (own_run / "final" / "README.md").read_text()
    assert '<td dir="auto">0.7500</td>' in (own_run / "report.html").read_text()


@pytest.mark.parametrize("code", ["raise SystemExit(3)", "pass"])
def test_a_failed_evaluation_is_incomplete(
    own_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    install(tmp_path, code, monkeypatch)
    with pytest.raises(IncompleteError, match="wrote 0 result files"):
        run(str(own_run), HarnessOptions("toy"), None, QUIET)


def test_without_the_program_the_command_is_printed(
    own_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else original(name))
    options = HarnessOptions("a,b", tasks_dir=Path("tasks"), few_shot=0, limit=5, chat=True, dtype="bf16")
    with pytest.raises(IncompleteError, match="not installed"):
        run(str(own_run), options, None, QUIET)
    words = capsys.readouterr().out.split()
    assert words[:3] == ["python", "-m", "lm_eval"]
    pairs = dict(pairwise(words))
    assert f"peft={own_run}/final" in pairs["--model_args"]
    assert pairs["--model_args"].endswith("dtype=bfloat16")
    assert pairs["--num_fewshot"] == "0"
    assert words[-1] == "--apply_chat_template"


def test_a_checkpoint_and_a_path_with_a_comma_are_errors(own_run: Path, base_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="checkpoint"):
        run(str(next((own_run / "checkpoints").iterdir())), HarnessOptions("toy"), None, QUIET)
    shutil.copytree(base_model, tmp_path / "a,b")
    with pytest.raises(ConfigError, match="comma"):
        run(str(tmp_path / "a,b"), HarnessOptions("toy"), None, QUIET)


def test_the_real_program_evaluates_a_task_of_the_user(own_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    rows = [{"question": "the cat", "choices": [" sat", " ran"], "label": 0}] * 4
    (tmp_path / "toy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "toy.yaml").write_text(TASK.replace("FILE", str(tmp_path / "toy.jsonl")))
    run(str(own_run), HarnessOptions("toy", tasks_dir=tmp_path), None, QUIET)
    assert "| toy | acc |" in (own_run / "final" / "README.md").read_text()
