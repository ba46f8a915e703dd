"""docs/lookup/metrics.md has every metric that the code names, and every one that a run writes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import preftune
from preftune.config.schema import DPOConfig
from preftune.train.metrics_file import read_lines

ROOT = Path(__file__).resolve().parents[2]
LISTED = set(re.findall(r"`([a-z_]+(?:/[a-z_A-Z0-9]+)?)`", (ROOT / "docs" / "lookup" / "metrics.md").read_text()))
FAMILIES = "drift|rewards|logps|loss|calibration|objective|policy|value|returns|responses"


def test_every_metric_that_the_code_names_is_listed() -> None:
    names = set()
    for folder in ("train", "methods", "measures", "workflows", "losses"):
        for path in (ROOT / "src" / "preftune" / folder).rglob("*.py"):
            constants = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
            texts = (node.value for node in constants if isinstance(node.value, str))
            names |= {text for text in texts if re.fullmatch(rf"({FAMILIES})/[a-z_0-9]+", text)}
    names -= {"loss/train"}  # a name of the paper's code
    assert len(names) > 35
    assert names - LISTED == set()


def test_every_metric_that_a_run_writes_is_listed(tmp_path: Path, model_folder: Path, pairs_file: Path) -> None:
    assert DPOConfig.model_fields["monitor"].default is not None
    preftune.dpo(
        model=str(model_folder),
        data=str(pairs_file),
        eval=0.3,
        loss=[{"name": "sigmoid"}, {"name": "nll", "weight": 0.1}],
        monitor={"prompts": 2, "max_new_tokens": 4},
        train={"max_steps": 1, "log_every": 1},
        out=str(tmp_path / "run"),
        quiet=True,
    )
    lines = read_lines(tmp_path / "run")
    names = {re.sub(r"^loss/(sigmoid|nll)$", "loss/NAME", name) for line in lines for name in line}
    assert {"drift/gap", "drift/words", "calibration/ece", "loss/NAME", "grad_norm"} <= names
    assert names - LISTED - {"step", "split", "time"} == set()
