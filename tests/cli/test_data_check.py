"""`preftune data check` fails where a run fails, accepts its settings, and reports line numbers for its counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import PAIRS, write_jsonl

from preftune.cli.main import run

CHAT = [
    {"prompt": [{"role": "user", "content": p["prompt"]}], **{k: p[k] for k in ("chosen", "rejected")}} for p in PAIRS
]
LONG = [*PAIRS, {**PAIRS[0], "chosen": "word " * 99}]
SAME = {"prompt": "p", "chosen": "x", "rejected": "x"}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("pairs.jsonl"), PAIRS)
    write_jsonl(Path("new.jsonl"), [{"prompt": "new", "chosen": "a", "rejected": "b"}])
    Path("fmt.py").write_text(
        "from preftune import Judgement, PreferenceGroup\n"
        "def good(row):\n"
        "    return PreferenceGroup(row['prompt'], (row['chosen'], row['rejected']), (Judgement(0, 1),))\n"
        "def text(row):\n    return 'text'\ndef none(row):\n    return None\ndef key(row):\n    return row['k']\n"
    )


#: name, rows (or the text of the file), settings. A run refuses half of them.
TABLE: list[tuple[str, Any, list[str]]] = [
    ("valid pairs", PAIRS, []),
    ("a missing column", [*PAIRS, {"prompt": "x"}], []),
    ("a missing column, dropped", [*PAIRS, {"prompt": "x"}], ["data.bad_rows=drop"]),
    ("null", [*PAIRS, {**PAIRS[0], "chosen": None}], []),
    ("broken JSON", json.dumps(PAIRS[0]) + '\n{"prompt": \n', []),
    ("an empty file", "", []),
    ("an unrecognised format", [{"a": 1, "b": 2}], []),
    ("a format that does not fit", PAIRS, ["data.format=hh"]),
    ("an unknown format", PAIRS, ["data.format=alpacca"]),
    ("all rows identical responses", [SAME, SAME], []),
    ("more dropped than allowed", [*PAIRS[:2], SAME], []),
    ("more dropped, allowed", [*PAIRS[:2], SAME], ["data.max_dropped=0.5"]),
    ("fewer dropped than allowed", [*PAIRS, SAME], []),
    ("evaluation on the training data", PAIRS, ["data.eval=pairs.jsonl"]),
    ("evaluation on the training data, allowed", PAIRS, ["data.eval=pairs.jsonl", "data.allow_overlap=true"]),
    ("evaluation on other data", PAIRS, ["data.eval=new.jsonl"]),
    ("a missing evaluation file", PAIRS, ["data.eval=none.jsonl"]),
    ("a share", PAIRS, ["data.eval=0.25"]),
    ("a share of one prompt", [PAIRS[0], {**PAIRS[0], "chosen": "other"}], ["data.eval=0.5"]),
    ("a share above 1", PAIRS, ["data.eval=1.5"]),
    ("too long, truncated", LONG, ["data.max_length=64"]),
    ("too long, dropped", LONG, ["data.max_length=64", "data.overlong=drop"]),
    (
        "too long, an error",
        [*PAIRS, {**PAIRS[0], "chosen": "word " * 99}],
        ["data.max_length=64", "data.overlong=error"],
    ),
    ("all too long, dropped", PAIRS, ["data.max_length=2", "data.overlong=drop", "data.max_dropped=1"]),
    ("longer than the model", [{**PAIRS[0], "chosen": "word " * 400}, PAIRS[1]], ["data.max_length=5000"]),
    ("the same after truncation", [{"prompt": "p", "chosen": "x" * 90, "rejected": "x" * 91}], ["data.max_length=8"]),
    ("chat without a template", CHAT, []),
    ("chat with a template", CHAT, ["data.chat_template=dialogue"]),
    ("a missing template", CHAT, ["data.chat_template=none.jinja"]),
    ("margins in some rows", [*PAIRS, {**PAIRS[0], "chosen": "w", "margin": 1}], []),
    ("a function", PAIRS, ["data.format=fmt.py:good"]),
    ("a function that returns text", PAIRS, ["data.format=fmt.py:text"]),
    ("a function that returns None", PAIRS, ["data.format=fmt.py:none"]),
    ("a function that fails", PAIRS, ["data.format=fmt.py:key"]),
    ("a missing function", PAIRS, ["data.format=fmt.py:nothing"]),
    ("an unknown key", PAIRS, ["data.max_lenght=3"]),
    ("a wrong type", PAIRS, ["data.max_length=many"]),
]


@pytest.mark.parametrize(("name", "rows", "settings"), TABLE, ids=[row[0] for row in TABLE])
def test_the_check_fails_if_and_only_if_a_run_fails(
    model_folder: Path, capsys: pytest.CaptureFixture[str], name: str, rows: Any, settings: list[str]
) -> None:
    file = Path("rows.jsonl")
    file.write_text(rows) if isinstance(rows, str) else write_jsonl(file, rows)
    Path("run.yaml").write_text(
        f"model: {{path: {model_folder}}}\ndata: {{train: rows.jsonl}}\nloss: {{name: sigmoid}}\n"
    )
    code = run(["dpo", "run.yaml", "--dry-run", *settings])
    refused = [line for line in capsys.readouterr().err.splitlines() if code and "note" not in line]
    assert run(["data", "check", "rows.jsonl", "--model", str(model_folder), *settings]) == code
    by_file = capsys.readouterr()
    assert run(["data", "check", "--config", "run.yaml", *settings]) == code
    by_config = capsys.readouterr()
    if code:
        assert by_config.err.splitlines()[-1] == refused[-1]
        if code != 2:  # the message for a wrong setting names the config file
            assert by_config.err.splitlines() == refused[-len(by_config.err.splitlines()) :]
            assert by_file.err == by_config.err
    else:
        assert by_file.out == by_config.out
        assert by_file.err == by_config.err == ""


@pytest.mark.parametrize(
    ("rows", "loss", "code", "message"),
    [
        (PAIRS, "{name: odpo}", 3, "'odpo' needs a margin for each judgement, and no row has one"),
        (PAIRS, "{name: kto}", 0, ""),
        (
            [{**p, "margin": 1.0} for p in PAIRS],
            "{name: sigmoid}",
            3,
            "the data have a margin, which 'sigmoid' does not use",
        ),
        (
            [{"prompt": "p", "completion": "c", "label": True}] * 2,
            "{name: sigmoid}",
            3,
            "the data contain labelled responses",
        ),
        ([{"prompt": "p", "completion": "c"}], "{name: sigmoid}", 3, "the data contain demonstrations"),
        (PAIRS, "{name: simgoid}", 2, "did you mean 'sigmoid'?"),
        (PAIRS, "{name: sigmoid, gamma: 1}", 2, "'sigmoid' has no parameter 'gamma'"),
    ],
)
def test_a_config_adds_the_requirements_of_its_loss(
    model_folder: Path, capsys: pytest.CaptureFixture[str], rows: Any, loss: str, code: int, message: str
) -> None:
    write_jsonl(Path("rows.jsonl"), rows)
    Path("run.yaml").write_text(f"model: {{path: {model_folder}}}\ndata: {{train: rows.jsonl}}\nloss: {loss}\n")
    assert run(["dpo", "run.yaml", "--dry-run"]) == code
    refusal = capsys.readouterr().err
    assert run(["data", "check", "--config", "run.yaml"]) == code
    printed = capsys.readouterr()
    assert message in printed.err
    assert not code or refusal.endswith(printed.err)
    assert code == 2 or "groups," in printed.out


def test_data_without_pairs_get_a_hint_which_method_uses_them(
    model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(Path("sft.jsonl"), [{"prompt": "p", "completion": "c"}])
    write_jsonl(Path("kto.jsonl"), [{"prompt": "p", "completion": "c", "label": False}])
    for file, use in (("sft.jsonl", "train with preftune sft"), ("kto.jsonl", "train with loss.name=kto or bco")):
        assert run(["data", "check", file, "--model", str(model_folder)]) == 0
        assert use in capsys.readouterr().out


def test_every_count_has_line_numbers(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = PAIRS[0], PAIRS[1]
    flipped = {"prompt": a["prompt"], "chosen": a["rejected"], "rejected": a["chosen"]}
    long = {**b, "chosen": "word " * 300}
    write_jsonl(Path("rows.jsonl"), [a, b, a, flipped, SAME, {"prompt": 1}, long, *[a] * 4])
    write_jsonl(Path("eval.jsonl"), [{"prompt": "new", "chosen": "x", "rejected": "y"}, b, SAME])
    options = ["--model", str(model_folder), "--eval", "eval.jsonl", "data.max_length=4000"]
    assert run(["data", "check", "rows.jsonl", *options]) == 3
    printed = capsys.readouterr().out
    for line in (
        "rows.jsonl: 11 rows read as 'preference', 9 kept",
        "  dropped 1 (line 5): identical responses",
        "  dropped 1 (line 6): cannot be read: column 'prompt' must be text, not a number",
        "eval.jsonl: 3 rows read as 'preference', 2 kept",
        "  dropped 1 (line 3): identical responses",
        "repeated prompts: 7 (lines 3, 4, 7, ...)",
        "repeated judgements: 5 (lines 3, 8, 9, ...)",
        "contradictions: 3 (lines 1, 3, 4, ...)",
        "evaluation groups whose prompt is in the training data: 1 (line 2)",
        "groups longer than the model's context of 256 tokens: 1 (line 7); set data.max_length=256",
    ):
        assert f"\n{line}\n" in f"\n{printed}"
    assert run(["data", "check", "rows.jsonl", *options, "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    at = {name: [origin.rpartition(":")[2] for origin in origins] for name, origins in report["origins"].items()}
    assert at == {
        "repeated_prompts": ["3", "4", "7", "8", "9", "10", "11"],
        "repeated_judgements": ["3", "8", "9", "10", "11"],
        "contradictions": ["1", "3", "4", "8", "9", "10", "11"],
        "leaks": ["2"],
    }
    assert {name: report[name] for name in ("repeated_prompts", "repeated_judgements", "leaks")} == {
        "repeated_prompts": 7,
        "repeated_judgements": 5,
        "leaks": 1,
    }
    assert report["too_long_for_the_model"] == ["rows.jsonl:7"]
    assert report["evaluation"]["eval.jsonl"]["dropped"] == {"identical responses": ["eval.jsonl:3"]}
    assert report["refused"]["exit_code"] == 3
    assert report["refused"]["message"].startswith("rows.jsonl:6: column 'prompt' must be text")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pairs.jsonl", "max_length=5"], "did you mean data.max_length?"),
        (["pairs.jsonl", "max_lenght=5"], "did you mean data.max_length?"),
        (["pairs.jsonl", "data.max_lenght=5"], "unknown key 'data.max_lenght'; did you mean data.max_length?"),
        (["pairs.jsonl", "dat.max_length=5"], "did you mean data.max_length?"),
        (["pairs.jsonl", "optim.lr=1"], "'optim.lr' is not a setting of data, model, loss"),
        (["pairs.jsonl", "data=5"], "data is a section; write data.train=5"),
        (["pairs.jsonl", "loss=ipo"], "loss is a section; write loss.name=ipo"),
        (["pairs.jsonl", "data.max_length=5", "--max-length", "6"], "data.max_length is set to both 5 and 6"),
        (["pairs.jsonl", "data.max_length=5", "data.max_length=6"], "data.max_length is set to both 5 and 6"),
        (["pairs.jsonl", "data.format=hh", "--format", "chat"], "data.format is set to both hh and chat"),
        (["pairs.jsonl", "data.train=new.jsonl"], "data.train is set to both new.jsonl and pairs.jsonl"),
        (["data.max_length=5"], "the data file is missing"),
        ([], "the data file is missing"),
        (["--config", "none.yaml"], "none.yaml: no such config file"),
        (["--config", "ppo.yaml"], "check it with preftune ppo ppo.yaml --dry-run"),
        (["--config", "wrong.yaml"], "wrong.yaml:2: unknown key 'optimizer'; did you mean optim?"),
    ],
)
def test_wrong_settings_are_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    Path("ppo.yaml").write_text("model: {path: m}\ndata: {train: pairs.jsonl}\nreward: vader\n")
    Path("wrong.yaml").write_text("data: {train: pairs.jsonl}\noptimizer: {lr: 1}\n")
    assert run(["data", "check", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_setting_may_be_repeated_with_the_same_value() -> None:
    assert run(["data", "check", "pairs.jsonl", "data.max_length=50", "--max-length", "50"]) == 0


def test_files_and_settings_override_the_config(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """FILE and settings override the config, as KEY=VALUE does in a run."""
    write_jsonl(Path("other.jsonl"), [{**p, "prompt": f"{p['prompt']} {i}"} for i, p in enumerate(PAIRS[:3])])
    Path("run.yaml").write_text(
        f"model: {{path: {model_folder}}}\ndata:\n  train: pairs.jsonl\n  eval: 0.25\n  ignore: []\n  max_length: 9\n"
    )
    assert run(["data", "check", "--config", "run.yaml", "other.jsonl", "data.max_length=100", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["read"], report["unit"], report["noted"]) == (3, "tokens", {})
    assert run(["data", "show", "--config", "run.yaml", "--line", "2"]) == 0
    assert "pairs.jsonl:2" in capsys.readouterr().out
    assert run(["data", "convert", "--config", "run.yaml", "--out", "out.jsonl"]) == 0
    assert len(Path("out.jsonl").read_text().splitlines()) == len(PAIRS)


def test_several_files_are_read_as_one_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "check", "pairs.jsonl", "new.jsonl", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["read"] == 9


@pytest.mark.parametrize(
    ("winners", "note"),
    [
        ("aaaaaa", "all 6 verdicts favour the response shown first"),
        (["tie"] * 6, "all 6 verdicts are ties"),
        ("aaaaab", ""),
    ],
)
def test_verdicts_for_one_column_are_reported(
    winners: list[str], note: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = {"response_a": "good words", "response_b": "other words"}
    write_jsonl(Path("votes.jsonl"), [{"prompt": f"p{i}", **sides, "winner": w} for i, w in enumerate(winners)])
    run(["data", "check", "votes.jsonl"])
    printed = capsys.readouterr().out
    assert (f"  note    {note}" in printed) if note else ("verdicts" not in printed)
