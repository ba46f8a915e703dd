"""The verdict of a run page, its numbers and its next commands."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml
from tests.unit.report.cards import write_pairs

from preftune.cli.main import app
from preftune.errors import RunError
from preftune.files import write_json
from preftune.report.compare import write_comparison
from preftune.report.read import read_run
from preftune.report.run import write_run_page
from preftune.report.verdict import closing_lines, numbers, steps, verdict
from preftune.train import manifest

DPO = {"model": {"path": "base"}, "data": {"train": "my prefs.jsonl"}, "loss": {"name": "sigmoid", "beta": 0.1}}
REWARD = {"model": {"path": "base"}, "data": {"train": ["prefs.jsonl"]}, "normalise": True}
SFT = {"model": {"path": "base"}, "data": {"train": "prefs.jsonl"}}
PPO = {**SFT, "rollout": {}}
ITERATE = {**DPO, "rounds": 2, "reference": "fixed"}


def write_run(folder: Path, config: dict[str, Any], losses: list[float], **facts: Any) -> Path:
    """Write a finished run with one evaluation for each loss, at steps 0, 10, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [
        {"step": 10 * i, "split": "eval", "loss": loss, "rewards/accuracies": 0.5 + i / 10}
        for i, loss in enumerate(losses)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest.write(folder, {"finished": True, **facts})
    return folder


@pytest.mark.parametrize("config", [DPO, REWARD, SFT, PPO, ITERATE])
def test_the_next_commands_are_commands(tmp_path: Path, config: dict[str, Any]) -> None:
    run, _ = read_run(write_run(tmp_path / "a run", config, [0.7, 0.6]))
    for step in steps(run):
        words = shlex.split(step.command)
        assert words[0] == "preftune"
        command: Any = typer.main.get_command(app)
        context = click.Context(command)
        names = words[1:]
        while hasattr(command, "commands"):
            command = command.commands[names.pop(0)]
            context = click.Context(command, parent=context)
        parsed = command.make_context(command.name, names, parent=context.parent).params
        settings = [word for value in parsed.values() if isinstance(value, list | tuple) for word in value]
        assert not [word for word in settings if word.endswith((".html", ".jsonl")) and word not in names]
        assert "tokens.html" not in words


def test_the_verdict_is_about_the_weights_in_final(tmp_path: Path) -> None:
    best = {"step": 10, "metric": "loss", "value": 0.6, "final": "best"}
    run, _ = read_run(write_run(tmp_path, DPO, [0.7, 0.6, 0.9], best=best))
    assert verdict(run).startswith("60")
    assert numbers(run)[0].value.startswith("60")
    assert "did not rise" in closing_lines(tmp_path)[-1]
    run, _ = read_run(write_run(tmp_path, DPO, [0.7, 0.6, 0.9], best={**best, "final": "last"}))
    assert verdict(run).startswith("70")


def test_a_loss_that_rose_by_noise_is_not_called_unchanged(tmp_path: Path) -> None:
    assert closing_lines(write_run(tmp_path, DPO, [0.7, 0.69, 0.695]))[-1].endswith(
        "the held-out loss rose by no more than noise, from 0.69 to 0.695"
    )


@pytest.mark.parametrize("damage", ["none", "only step 0", "step files differ", "text missing", "huge margins"])
def test_the_page_of_a_run_is_written_whatever_its_scored_pairs_are(tmp_path: Path, damage: str) -> None:
    write_pairs(write_run(tmp_path, DPO, [0.7, 0.6]), 4)
    folder = tmp_path / "drawn_pairs"
    if damage == "only step 0":
        for path in sorted(folder.glob("step-*.json"))[1:]:
            path.unlink()
    elif damage == "step files differ":
        write_json(folder / "step-00000010.json", {"step": 10, "logps": [[0.0, 0.0]]})
    elif damage == "text missing":
        drawn = json.loads((folder / "pairs.json").read_text())
        write_json(folder / "pairs.json", {**drawn, "texts": drawn["texts"][:2]})
    elif damage == "huge margins":
        write_json(folder / "step-00000040.json", {"step": 40, "logps": [[0.0, -1e5]] * 4})
    write_run_page(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert ("could not be read" in page) == (damage in ("step files differ", "text missing"))
    assert ("One pair by hand" in page) == (damage in ("none", "only step 0", "huge margins"))


@pytest.mark.parametrize("content", ["{", '{"a": 1}', "[]"])
def test_damaged_samples_do_not_prevent_a_page(tmp_path: Path, content: str) -> None:
    folders = [write_run(tmp_path / name, DPO, [0.7, 0.6]) for name in "ab"]
    (folders[0] / "samples").mkdir()
    (folders[0] / "samples" / "step-00000000.jsonl").write_text(content)
    (folders[0] / "samples" / "step-copy.jsonl").write_text("")
    write_run_page(folders[0])
    write_comparison(folders, tmp_path / "report.html")
    for page in (folders[0] / "report.html", tmp_path / "report.html"):
        assert "The samples could not be read" in page.read_text()


@pytest.mark.parametrize("content", [None, "a: ["])
def test_a_damaged_config_is_named(tmp_path: Path, content: str | None) -> None:
    path = write_run(tmp_path, DPO, [0.7]) / "config.yaml"
    path.unlink()
    if content:
        path.write_text(content)
    with pytest.raises(RunError, match=r"damaged|missing"):
        read_run(tmp_path)


def test_runs_with_the_same_best_value_are_all_named(tmp_path: Path) -> None:
    losses = {"a": [0.7, 0.6, 0.5], "b": [0.7, 0.6, 0.5], "c": [0.7, 0.6]}
    folders = [write_run(tmp_path / name, DPO, values) for name, values in losses.items()]
    write_comparison(folders, tmp_path / "report.html")
    title = re.search("<h1>(.*?)</h1>", (tmp_path / "report.html").read_text())
    assert title
    assert f"{folders[0]} and {folders[1]} have the highest share" in title[1]


def test_more_than_four_runs_become_several_charts_on_the_same_axes(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"run{i}", DPO, [0.7, 0.6 - i / 100]) for i in range(6)]
    write_comparison(folders, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    data = re.search(r"data-figures>(.*?)</script>", page)
    assert data
    charts = [chart for chart in json.loads(data[1])["curves"]["charts"] if chart["title"].startswith("Loss")]
    assert [chart["title"] for chart in charts] == ["Loss (1 of 2)", "Loss (2 of 2)"]
    assert [len({series["run"] for series in chart["series"]}) for chart in charts] == [4, 3]
    assert charts[0]["range"] == charts[1]["range"] == pytest.approx([0.55, 0.7])
