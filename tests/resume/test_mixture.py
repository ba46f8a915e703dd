"""Runs on several sources: metrics of each, the manifest, resume, and the bits of a run on one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import PAIRS, write_jsonl
from tests.resume.runs import config, metrics, quiet, stop_after, weights

from preftune.config.schema import DataConfig, SFTConfig, TrainConfig
from preftune.errors import Stopped
from preftune.methods import dpo, sft
from preftune.report.run import write_run_page

VOTES = [
    {"question": f"what is {i}?", "left": f"it is {i}", "right": "no", "verdict": "left" if i % 3 else "right"}
    for i in range(6)
]


@pytest.fixture
def sources(tmp_path: Path) -> list[Any]:
    first = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    second = write_jsonl(tmp_path / "votes.jsonl", VOTES)
    columns = {"prompt": "question", "response_a": "left", "response_b": "right", "winner": "verdict"}
    return [str(first), {"path": str(second), "columns": columns, "name": "judged", "weight": 1.5}]


def test_a_mixture_logs_each_source_and_resumes_exactly(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, sources: list[Any]
) -> None:
    def settings(out: str) -> Any:
        data, train = DataConfig(train=sources, eval=0.25), TrainConfig(epochs=2, eval_every=3, save_every=3)
        return config(Path(), model_folder, tmp_path / out, data=data, train=train)

    whole = dpo.run(settings("whole"), display=quiet())
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Stopped):
            dpo.run(settings("parts"), display=quiet())
    parts = dpo.run(settings("parts"), display=quiet())
    lines = metrics(tmp_path / "whole")
    assert lines == metrics(tmp_path / "parts")
    one, two = weights(whole), weights(parts)
    assert all(torch.equal(one[name], two[name]) for name in one)

    manifest = json.loads((tmp_path / "whole" / "manifest.json").read_text())
    pairs, judged = manifest["mixture"]
    assert (pairs["name"], judged["name"]) == ("pairs", "judged")
    assert pairs["per_epoch"] == pairs["groups"]
    assert judged["per_epoch"] == int(1.5 * judged["groups"] + 0.5)
    assert judged["in_run"] == 2 * judged["per_epoch"]
    held = {"pairs": len(PAIRS) - pairs["groups"], "judged": len(VOTES) - judged["groups"]}
    for line in [line for line in lines if line["split"] == "eval"]:
        for metric in ("loss", "rewards/margins", "rewards/accuracies"):
            mean = sum(held[name] * line[f"source/{name}/{metric}"] for name in held if held[name])
            assert mean / sum(held.values()) == pytest.approx(line[metric], abs=1e-6)
    write_run_page(tmp_path / "whole")
    page = (tmp_path / "whole" / "report.html").read_text()
    assert "Sources" in page
    assert "judged" in page


def test_a_list_of_files_has_the_bits_of_one_file(tmp_path: Path, model_folder: Path) -> None:
    one = write_jsonl(tmp_path / "one.jsonl", PAIRS)
    parts = [str(write_jsonl(tmp_path / f"{i}.jsonl", PAIRS[i::3])) for i in range(3)]
    whole = write_jsonl(tmp_path / "whole.jsonl", [row for i in range(3) for row in PAIRS[i::3]])
    assert one != whole
    finals = [
        dpo.run(config(Path(), model_folder, tmp_path / name, data=DataConfig(train=train)), display=quiet())
        for name, train in (("a", str(whole)), ("b", parts))
    ]
    first, second = map(weights, finals)
    assert all(torch.equal(first[name], second[name]) for name in first)
    extra = [{k: v for k, v in line.items() if not k.startswith("source/")} for line in metrics(tmp_path / "b")]
    assert extra == metrics(tmp_path / "a")


def test_sft_logs_the_loss_of_each_source(tmp_path: Path, model_folder: Path, sources: list[Any]) -> None:
    data = {"train": [sources[0], {**sources[1], "weight": None, "share": 0.5}], "eval": sources}
    data["eval"] = [sources[0], {k: v for k, v in sources[1].items() if k != "weight"}]
    settings = SFTConfig(
        model={"path": str(model_folder), "dtype": "fp32"},
        data={**data, "allow_overlap": True},
        batch={"pairs": 100},
        samples=0,
        out=str(tmp_path / "sft"),
    )
    sft.run(settings, display=quiet())
    train, evaluation = metrics(tmp_path / "sft")[1], metrics(tmp_path / "sft")[0]
    names = {name for name in train if name.startswith("source/")}
    assert names == {"source/pairs/loss", "source/judged/loss"}
    assert min(train[name] for name in names) <= train["loss"] <= max(train[name] for name in names)
    assert {name for name in evaluation if name.startswith("source/")} == names
