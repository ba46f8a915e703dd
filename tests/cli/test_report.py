"""preftune report: the page of a run again, and a page that compares runs."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.conftest import write_jsonl

from preftune.cli.main import run


def make_run(folder: Path, beta: float, loss: float, **manifest: Any) -> Path:
    """A run folder as training writes it, with two steps and the samples of two evaluations."""
    folder.mkdir(parents=True)
    config = {"model": {"path": "m"}, "loss": {"name": "sigmoid", "beta": beta}, "out": str(folder)}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "manifest.json").write_text(json.dumps({"identity": {}, "finished": True, **manifest}))
    lines = [{"step": step, "split": "train", "loss": loss / step, "lr": 0.1} for step in (1, 2)]
    write_jsonl(folder / "metrics.jsonl", [*lines, {"step": 2, "split": "eval", "loss": loss, "rewards/margins": beta}])
    for step in (0, 2):
        row = {"prompt": "Why <b>?", "responses": [f"because {beta} {step}"], "tokens": [3], "ended": [True]}
        (folder / "samples").mkdir(exist_ok=True)
        write_jsonl(folder / "samples" / f"step-{step:08d}.jsonl", [row, {**row, "prompt": f"only {beta}"}])
    return folder


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def text_of(page: Path) -> str:
    """The page without scripts and without the random names of its figures."""
    return re.sub(r"<script.*?</script>|id=\"[^\"]*\"", "", page.read_text(), flags=re.S)


def test_the_page_of_one_run_is_written_again(capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(Path("a"), 0.1, 0.6)
    assert run(["report", "a"]) == 0
    assert "wrote a/report.html" in capsys.readouterr().out
    first = text_of(folder / "report.html")
    assert "because 0.1 2" in first
    (folder / "final").mkdir()
    assert run(["report", "a/final", "--out", "pages/a.html"]) == 0
    assert text_of(Path("pages/a.html")) == first


def test_several_runs_are_compared_on_one_page() -> None:
    make_run(Path("a"), 0.1, 0.6, advice={"gap": {"step": 2, "text": "lower the rate"}})
    make_run(Path("b"), 0.5, 0.4, finished=False)
    assert run(["report", "a", "b", "a", "--out", "page.html"]) == 0
    text = text_of(Path("page.html"))
    rows = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in re.findall(r"<tr>(.*?)</tr>", text, re.S)]
    assert ["", "a", "b"] in rows
    assert ["loss.beta", "0.1", "0.5"] in rows
    assert ["state", "finished", "not finished"] in rows
    assert ["rewards/margins", "0.1", "0.5"] in rows
    assert re.search(r"^loss +0.3 +0.2$", text, re.M)  # of the last training step
    assert ["a", "2", "lower the rate"] in rows
    assert not any(row[:1] in (["model.path"], ["out"]) for row in rows)  # the same, or a name
    assert "Why &lt;b&gt;?" in text
    assert text.index("because 0.1 2") < text.index("because 0.5 2")
    assert "because 0.1 0" not in text  # the last samples only
    assert "only 0.1" not in text  # a prompt of one run
    data = json.loads(re.findall(r"data-figures>(.*?)</script>", Path("page.html").read_text(), re.S)[0])["curves"]
    assert data["runs"] == ["a", "b"]
    series = {(c["title"], s["run"], s["split"]): s["points"] for c in data["charts"] for s in c["series"]}
    assert series["Loss", "b", "train"] == [[1, 0.4], [2, 0.2]]
    assert series["Loss", "a", "eval"] == [[2, 0.6]]
    assert ("Learning rate", "a", "train") in series


def test_a_comparison_names_damaged_metrics() -> None:
    folder = make_run(Path("a"), 0.1, 0.6)
    make_run(Path("b"), 0.5, 0.4)
    data = (folder / "metrics.jsonl").read_bytes()
    end = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "metrics": end}))
    assert run(["report", "a", "b", "--out", "page.html"]) == 0
    assert "Damaged files" not in text_of(Path("page.html"))
    (folder / "metrics.jsonl").write_bytes(data.replace(b"0.6", b"0.7"))
    assert run(["report", "a", "b", "--out", "page.html"]) == 0
    assert "a: metrics.jsonl was changed or damaged after the end of the run" in text_of(Path("page.html"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "no such run folder"),
        (["."], "this is not a run folder"),
        (["a", "--out", "a"], "this is a folder"),
        (["a", "empty"], "the run has no metrics yet"),
        (["damaged"], "the file is damaged"),
        (["edited"], "edited/config.yaml:2: the config of the run is not valid YAML: expected <block end>"),
        (["nested"], "nested/config.yaml: the config of the run is not valid YAML"),
        (["binary"], "binary/config.yaml: the config of the run is not valid YAML"),
    ],
)
def test_a_folder_without_a_report_is_an_error(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(Path("a"), 0.1, 0.6)
    Path("empty").mkdir()
    Path("empty/manifest.json").write_text("{}")
    (make_run(Path("damaged"), 0.1, 0.6) / "manifest.json").write_text("{not json\n")
    (make_run(Path("edited"), 0.1, 0.6) / "config.yaml").write_text("model: {}\n late: {}\n")
    (make_run(Path("nested"), 0.1, 0.6) / "config.yaml").write_text("[" * 5000)
    (make_run(Path("binary"), 0.1, 0.6) / "config.yaml").write_bytes(b"\xff\xfe\xfd")
    assert run(["report", *arguments]) == 5
    assert message in capsys.readouterr().err
