"""--json: one JSON object on stdout with the result or the error, and everything else on stderr."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.conftest import PAIRS, write_jsonl

from preftune.cli.main import app, run
from preftune.cli.outcome import Outcome, plain
from preftune.measures.frontier import Point


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("prefs.jsonl"), PAIRS)


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: object) -> Any:
        code = run([*map(str, arguments), "--json"])
        printed = json.loads(capsys.readouterr().out)
        assert printed["code"] == code
        assert printed["ok"] == (code == 0)
        return printed

    return call


def commands(command: Any, names: tuple[str, ...] = ()) -> list[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        return [(" ".join(names), command)]
    return [entry for name, one in command.commands.items() for entry in commands(one, (*names, name))]


def test_every_command_with_a_result_has_the_option() -> None:
    without = {
        name
        for name, command in commands(typer.main.get_command(app))
        if not any("--json" in parameter.opts for parameter in command.params)
    }
    # `launch` passes it to its command
    assert without == {"chat", "completion", "complete-line", "config schema", "launch"}


def test_a_run_prints_its_files_and_last_metrics(answer: Any, model_folder: Path) -> None:
    arguments = ("dpo", "--model", model_folder, "--data", "prefs.jsonl", "monitor=null", "batch.pairs=4")
    assert answer(*arguments, "--dry-run") == {
        "ok": True, "code": 0, "command": "dpo", "dry_run": True, "out": "runs/dpo",
    }  # fmt: skip
    printed = answer(*arguments)
    assert {name: printed[name] for name in ("model", "report", "steps")} == {
        "model": "runs/dpo/final",
        "report": "runs/dpo/report.html",
        "steps": 2,
    }
    lines = [json.loads(line) for line in Path("runs/dpo/metrics.jsonl").read_text().splitlines()]
    assert printed["metrics"]["train"] == [line for line in lines if line["split"] == "train"][-1]
    sampled = answer("sample", "--model", "runs/dpo", "--prompts", "prefs.jsonl", "--n", 2, "--max-new-tokens", 4)
    assert Path(sampled["out"]).is_file()
    paired = answer("pairs", sampled["out"], "--reward", "length", "--out", "made.jsonl")
    assert paired["samples"]["read"] == len(PAIRS)
    scored = answer("score", "--reward", "length", "--data", "prefs.jsonl")
    assert (scored["out"], scored["command"]) == ("scores.jsonl", "score")
    assert scored["summary"] == json.loads(Path("scores.summary.json").read_text())


def test_the_report_of_the_data_comes_with_the_error_that_a_run_would_raise(answer: Any) -> None:
    write_jsonl(Path("bad.jsonl"), [PAIRS[0], {**PAIRS[1], "rejected": PAIRS[1]["chosen"]}])
    assert answer("data", "check", "prefs.jsonl")["kept"] == len(PAIRS)
    refused = answer("data", "check", "bad.jsonl")
    assert (refused["code"], refused["read"], refused["kept"]) == (3, 2, 1)
    assert refused["error"]["kind"] == "DataError"
    assert "1 of 2 rows were dropped" in refused["error"]["what"]
    shown = answer("data", "show", "prefs.jsonl", "--n", 1)
    assert [group["prompt"] for group in shown["groups"]] == [PAIRS[0]["prompt"]]
    assert answer("data", "convert", "prefs.jsonl", "--out", "c.jsonl")["lines"] == len(PAIRS)


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["dpo", "none.yaml"], 2, {"kind": "ConfigError", "where": "none.yaml", "what": "no such config file"}),
        (
            ["dpo", "--beta", "0.1"],
            2,
            {"where": "preftune dpo", "fix": "did you mean loss.beta? Config keys have no dashes: write loss.beta=0.1"},
        ),
        (["eval", "winrat"], 2, {"kind": "UsageError", "where": "preftune eval"}),
        (["data", "check", "none.jsonl"], 3, {"kind": "DataError", "why": ""}),
        (["dpo", "--model", "none", "--data", "prefs.jsonl"], 4, {"kind": "ModelError"}),
    ],
)  # fmt: skip
def test_an_error_has_its_code_and_its_parts(
    arguments: list[str], code: int, error: dict[str, str], answer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = answer(*arguments)
    assert printed["code"] == code
    assert set(printed["error"]) == {"kind", "where", "what", "why", "fix"}
    assert error.items() <= printed["error"].items()
    run(arguments)
    assert capsys.readouterr().out == ""  # without --json, errors are only on stderr


def test_a_bug_is_an_error_too(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preftune.cli.init.templates", lambda: 1 / 0)
    printed = answer("init")
    assert printed["code"] == 1
    assert printed["error"]["kind"] == "ZeroDivisionError"


def test_a_stop_request_has_its_code(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped() -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("preftune.cli.init.templates", stopped)
    printed = answer("init")
    assert (printed["code"], printed["error"]["fix"]) == (75, "rerun the same command to resume")


def test_numbers_that_json_cannot_hold_are_null() -> None:
    values = {"a": float("nan"), "b": [float("inf"), 1.5], "c": Path("x"), "d": (Point("p", 1.0, 2.0, 0.1, 0.2),)}
    printed = json.loads(Outcome(0, values).document("x"))
    assert (printed["a"], printed["b"], printed["c"]) == (None, [None, 1.5], "x")
    assert printed["d"][0]["name"] == "p"
    assert plain({1: {2}}) == {"1": [2]}
