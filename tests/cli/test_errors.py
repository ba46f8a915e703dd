"""Wrong input on the command line: exit code, file, line, reason and fix, within seconds and without a traceback."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import PAIRS, write_jsonl

from preftune.cli.main import run

GOOD = json.dumps(PAIRS[0])

# name, text of the data file, overrides, exit code, parts of stderr
CASES: list[tuple[str, str, list[str], int, list[str]]] = [
    ("missing column", '{"prompt": "a", "chosen": "b"}', [], 3, ["pairs.jsonl", "'rejected'", "fix:"]),
    (
        "misspelt column",
        '{"prompt": "a", "chosen": "b", "rejecetd": "c"}',
        [],
        3,
        ["pairs.jsonl", "did you mean 'rejecetd'", "fix:"],
    ),
    (
        "missing column in a later row",
        GOOD + '\n{"prompt": "a", "chosen": "b"}',
        [],
        3,
        ["pairs.jsonl:2: column 'rejected' is missing", "fix:"],
    ),
    (
        "null",
        GOOD + '\n{"prompt": "a", "chosen": null, "rejected": "c"}',
        [],
        3,
        [":2: column 'chosen' is null", "fix:"],
    ),
    (
        "number",
        GOOD + '\n{"prompt": "a", "chosen": 5, "rejected": "c"}',
        [],
        3,
        [":2: column 'chosen' must be text", "fix:"],
    ),
    (
        "list",
        GOOD + '\n{"prompt": "a", "chosen": ["x"], "rejected": "c"}',
        [],
        3,
        [":2: column 'chosen' must be text", "fix:"],
    ),
    ("empty file", "", [], 3, ["pairs.jsonl: the file has no rows"]),
    ("blank lines", "\n\n\n", [], 3, ["the file has no rows"]),
    ("broken JSON", GOOD + "\n" + GOOD + '\n{"prompt": "a", ', [], 3, ["pairs.jsonl:3: broken JSON", "fix:"]),
    ("broken first line", "{broken", [], 3, ["pairs.jsonl:1: broken JSON"]),
    (
        "identical pair",
        '{"prompt": "a", "chosen": "b", "rejected": "b"}',
        [],
        3,
        ["none of the 1 rows can be used", "1 (line 1): identical responses", "fix:"],
    ),
    (
        "too many dropped",
        GOOD + '\n{"prompt": "a", "chosen": "b", "rejected": "b"}',
        [],
        3,
        [
            "1 of 2 rows were dropped (50%)",
            "(line 2): identical responses",
            "accept this share with data.max_dropped=0.5",
        ],
    ),
    (
        "prompt longer than the limit",
        json.dumps({"prompt": "word " * 99, "chosen": "a", "rejected": "b"}),
        ["data.overlong=error", "data.max_length=32"],
        3,
        ["pairs.jsonl:1:", "more than data.max_length 32", "fix:"],
    ),
    (
        "all prompts too long",
        json.dumps({"prompt": "word " * 99, "chosen": "a", "rejected": "b"}),
        ["data.overlong=drop", "data.max_length=32"],
        3,
        ["(line 1): longer than max_length 32"],
    ),
    ("empty response", '{"prompt": "a", "chosen": "", "rejected": "b"}', [], 3, ["(line 1): empty response"]),
    (
        "messages without template",
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
        [],
        4,
        ["no chat template", "fix:"],
    ),
    (
        "ranked row without its list",
        '{"prompt": "a", "responses": ["b", "c"], "scores": [1, 2]}\n' * 25 + '{"prompt": "a", "scores": [1, 2]}',
        [],
        3,
        ["pairs.jsonl:26: the row has no column with a list of responses", "fix:"],
    ),
    (
        "invalid labels",
        '{"prompt": "a", "responses": ["b", "c"], "judgements": [], "labels": ["x", "y"]}',
        [],
        3,
        ["pairs.jsonl:1: labels[0] must be 1 or -1", "fix:"],
    ),
    (
        "weight below 0",
        '{"prompt": "a", "responses": ["b", "c"], "judgements": [{"better": 0, "worse": 1, "weight": -3}]}',
        [],
        3,
        ["pairs.jsonl:1: judgements[0].weight must be at least 0", "fix:"],
    ),
    (
        "a function that returns an invalid group",
        GOOD,
        ["data.format=mine.py:far", "--dry-run"],
        3,
        ["pairs.jsonl:1: mine.py:far: judgements[0] refers to a response that does not exist", "fix: repair the"],
    ),
    (
        "a number of 5000 digits",
        GOOD + '\n{"prompt": "a", "chosen": "b", "rejected": "c", "n": ' + "1" * 5000 + "}",
        [],
        3,
        ["pairs.jsonl:2: broken JSON: an integer has more digits", "fix:"],
    ),
    (
        "a margin in some rows",
        GOOD + '\n{"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1}',
        ["loss.name=odpo"],
        3,
        ["pairs.jsonl:1: the row has no margin, but other rows have one (pairs.jsonl:2)", "fix:"],
    ),
    ("missing data file in a folder", GOOD, ["data.train=data/no.jsonl"], 3, ["data/no.jsonl: no such file", "fix:"]),
    ("an override that begins with a number", GOOD, ["0.x=1"], 2, ["override '0.x=1': unknown key '0'"]),
    ("true for a number", GOOD, ["optim.lr=true"], 2, ["optim.lr: must be a number, not true or false"]),
    ("true for a parameter", GOOD, ["loss.beta=true"], 2, ["loss.beta: must be a number, not true or false"]),
    ("an alias in itself", GOOD, ["data.ignore=&a [*a]"], 2, ["an alias (*) inside the value it refers to"]),
    ("unknown key", GOOD, ["optim.lrate=1"], 2, ["unknown key 'optim.lrate'; did you mean optim.lr?"]),
    ("unknown section", GOOD, ["optimiser.lr=1"], 2, ["unknown key 'optimiser'; did you mean optim?"]),
    ("wrong type", GOOD, ["batch.pairs=many"], 2, ["batch.pairs: must be a whole number", "'many'"]),
    ("out of range", GOOD, ["loss.beta=0"], 2, ["loss.beta: must be above 0, got 0"]),
    ("unknown loss", GOOD, ["loss.name=ppo"], 2, ["loss.name: unknown name 'ppo'", "fix:"]),
    ("parameter of another loss", GOOD, ["loss.gamma=1"], 2, ["loss.gamma: 'sigmoid' has no parameter 'gamma'"]),
    ("loss in a missing file", GOOD, ["loss.name=missing.py:f"], 2, ["no such file: missing.py"]),
    ("missing model folder", GOOD, ["model.path=./missing"], 4, ["model.path ./missing: no such folder", "fix:"]),
    (
        "folder without a model",
        GOOD,
        ["model.path=."],
        4,
        ["no config.json, so it is not a Hugging Face model folder", "fix:"],
    ),
    ("missing data file", GOOD, ["data.train=missing.jsonl"], 3, ["missing.jsonl: no such file", "fix:"]),
    ("unknown format", GOOD, ["data.format=alpacca"], 2, ["unknown name 'alpacca'; valid names:"]),
    ("misspelt format", GOOD, ["data.format=opena"], 2, ["did you mean 'openai'?"]),
    ("a folder that cannot be created", GOOD, ["out=/proc/x/y"], 7, ["/proc/x/y: the path cannot be written", "fix:"]),
    (
        "evaluation data that are the training data",
        GOOD,
        ["data.eval=pairs.jsonl"],
        3,
        ["1 of 1 evaluation prompts are also in the training data", "fix:"],
    ),
    (
        "a tracker that is not installed",
        GOOD,
        ["track=[mlflow]"],
        2,
        ["mlflow is not installed", "pip install 'preftune[mlflow]'"],
    ),
]


@pytest.mark.parametrize(("name", "data", "overrides", "code", "parts"), CASES, ids=[c[0] for c in CASES])
def test_wrong_input_ends_with_a_message(
    tmp_path: Path,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    data: str,
    overrides: list[str],
    code: int,
    parts: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text(data)
    Path("mine.py").write_text(
        "from preftune import Judgement, PreferenceGroup\n"
        "def far(row):\n    return PreferenceGroup(row['prompt'], ('a', 'b'), (Judgement(0, 5),))\n"
    )
    Path("run.yaml").write_text(
        f"model: {{path: {model_folder}}}\ndata: {{train: pairs.jsonl}}\nloss: {{name: sigmoid}}\nout: out\n"
    )
    assert run(["dpo", "run.yaml", *overrides]) == code
    printed = capsys.readouterr()
    for part in parts:
        assert part in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert not Path("out").exists()


def test_a_template_that_rewrites_the_prompt_is_exit_4(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.jinja").write_text("{{ messages | length }}{{ messages[-1].content }}")
    rows = [{"prompt": [{"role": "user", "content": "a"}], "chosen": "b", "rejected": "c"}]
    write_jsonl(Path("pairs.jsonl"), rows)
    Path("run.yaml").write_text(
        f"model: {{path: {model_folder}}}\ndata: {{train: pairs.jsonl, chat_template: t.jinja}}\n"
    )
    assert run(["dpo", "run.yaml"]) == 4
    printed = capsys.readouterr().err
    assert "pairs.jsonl:1: the rendered dialogue does not begin with the rendered prompt" in printed
    assert "fix:" in printed


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["dpo"], 2, "there is neither a config file nor a model and data"),
        (["dpo", "missing.yaml"], 2, "missing.yaml: no such config file"),
        (["dpo", "."], 2, ".: this is a folder, not a config file"),
        (["dpoo"], 2, "No such command"),
        (["dpo", "--fast", "x"], 2, "No such option"),
        (["score", "--policy", "./a", "--reference", "./b", "--data", "c"], 4, "--policy ./a: no such folder"),
        (["data", "check", "missing.jsonl"], 3, "no such file"),
        (["data", "convert", "pairs.jsonl", "--out", "o.jsonl", "--to", "xml"], 2, "use one of pairs, groups"),
        (["data", "show", "pairs.jsonl", "--line", "99"], 3, "pairs.jsonl:99: the data have no row at this line"),
    ],
)
def test_a_wrong_command_line_ends_with_a_message(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    part: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("pairs.jsonl"), PAIRS)
    assert run(arguments) == code
    assert part in capsys.readouterr().err


def test_an_error_of_the_system_names_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import preftune.lifecycle.data

    def too_long(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), "x" * 900)

    monkeypatch.setattr(preftune.lifecycle.data, "read_groups", too_long)
    assert run(["data", "check", str(write_jsonl(tmp_path / "x.jsonl", PAIRS))]) == 7
    assert f"{'x' * 200}...: the path cannot be used: File name too long" in capsys.readouterr().err


def test_an_unexpected_error_is_one_message_and_exit_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import preftune.lifecycle.data

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a defect")

    monkeypatch.setattr(preftune.lifecycle.data, "read_groups", broken)
    data = str(write_jsonl(tmp_path / "x.jsonl", PAIRS))
    assert run(["data", "check", data]) == 1
    printed = capsys.readouterr().err
    assert "internal error: RuntimeError: a defect" in printed
    assert "Traceback" not in printed
    assert run(["--debug", "data", "check", data]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_exit_7(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("pairs.jsonl"), PAIRS)
    Path("file").write_text("in the way")
    Path("run.yaml").write_text(f"model: {{path: {model_folder}}}\ndata: {{train: pairs.jsonl}}\nout: file/run\n")
    assert run(["dpo", "run.yaml"]) == 7
    assert "file/run: the path cannot be written" in capsys.readouterr().err
    model = str(model_folder)
    assert run(["score", "--policy", model, "--reference", model, "--data", "pairs.jsonl", "--out", "file/x"]) == 7
    assert "file/x: the path cannot be written" in capsys.readouterr().err


def test_an_interrupt_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first Ctrl-C outside a training step: while sampling, judging or scoring."""

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("preftune.workflows.sample.run", interrupted)
    assert run(["sample", "--model", "m", "--prompts", "p.jsonl", "--out", str(tmp_path / "s.jsonl")]) == 75
    assert "stopped: rerun the same command to resume" in capsys.readouterr().err
