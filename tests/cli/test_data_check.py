"""`preftune data check` fails where a run fails, accepts its settings, and reports line numbers for its counts."""

from __future__ import annotations

import gzip
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


REFUSAL = "I'm sorry, but I can't help with that."
WITH_DEFECTS = [
    *PAIRS[:3],
    {"prompt": "What is in the box?", "chosen": REFUSAL, "rejected": "It holds a lamp."},
    {"prompt": "And who is at the door?", "chosen": "A boy.<|im_end|>", "rejected": REFUSAL},
    {"prompt": "same", "chosen": "x", "rejected": "x"},
    PAIRS[1],
]


def check_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert run(["data", "check", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_findings_are_printed_with_lines_and_shares(capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(Path("rows.jsonl"), WITH_DEFECTS)
    assert run(["data", "check", "rows.jsonl"]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("refusals: responses that refuse")
    assert lines[at + 1 : at + 3] == ["  chosen     1 of 6 (16.7%), line 4", "  rejected   1 of 6 (16.7%), line 5"]
    at = lines.index("near-duplicates: rows that repeat an earlier row, exactly or nearly")
    assert lines[at + 1] == "  exact      1, line 7"
    assert any(line.startswith("no findings: near-duplicate-prompts, similar-responses, contra") for line in lines)
    assert any(line.startswith("bias: the chosen response is longer in ") for line in lines)


def test_the_report_file_is_the_printed_json(capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(Path("rows.jsonl"), WITH_DEFECTS)
    printed = check_json(capsys, "rows.jsonl", "--out", "deep/report.json")
    assert printed == {"ok": True, "code": 0, "command": "data check"} | json.loads(
        Path("deep/report.json").read_text()
    )
    findings = printed["findings"]
    assert findings["refusals"] == {"rows": 2, "lines": {"chosen": ["rows.jsonl:4"], "rejected": ["rows.jsonl:5"]}}
    assert findings["loops"] == {"rows": 0, "lines": {}}
    assert set(printed["bias"]["longer"]["preferred"]) == {"count", "total", "share", "low", "high"}


def test_the_page_is_self_contained_and_escapes_the_texts(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        *WITH_DEFECTS,
        {"prompt": "Say hello to her", "chosen": "<div>hi</div>", "rejected": "<script>x()</script>"},
    ]
    write_jsonl(Path("rows.jsonl"), rows)
    assert run(["data", "check", "rows.jsonl", "--out", "report.html"]) == 0
    assert capsys.readouterr().out.count("report.html: report written") == 1
    page = Path("report.html").read_text()
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert "&lt;div&gt;hi&lt;/div&gt;" in page
    assert "<td>template-tokens</td><td>chosen</td><td>1</td><td>14.3%</td><td>line 5</td>" in page.replace(
        ' dir="auto"', ""
    )
    assert len(page) < 20_000


@pytest.mark.parametrize(
    ("drop", "kept"),
    [
        ([], [1, 2, 3, 4]),  # the default keeps refusals
        (["--drop", "refusals"], [1, 2, 3, 7]),
        (["--drop", "refusals, near-duplicates"], [1, 2, 3]),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_clean_rows_are_written_byte_for_byte(
    capsys: pytest.CaptureFixture[str], drop: list[str], kept: list[int], suffix: str
) -> None:
    lines = [json.dumps(row, separators=(" ,", " : ")).encode() + b"\r\n" for row in WITH_DEFECTS]
    lines[6] = lines[6].rstrip()  # the last line has no line break
    data = b"\xef\xbb\xbf" + b"".join([*lines[:3], *lines[3:]])
    file = Path(f"rows{suffix}")
    file.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    assert run(["data", "check", str(file), "--write", "clean.jsonl", *drop]) == 0
    assert Path("clean.jsonl").read_bytes().splitlines() == [lines[i - 1].rstrip() for i in kept]
    assert Path("clean.jsonl").read_bytes().startswith(lines[0])
    out = capsys.readouterr().out
    assert f"clean.jsonl: {len(kept)} of 7 rows written, {7 - len(kept)} left out\n" in out
    assert "not used for training: 1 (" in out
    assert run(["data", "check", "clean.jsonl", "--write", "again.jsonl", *drop]) == 0
    assert Path("again.jsonl").read_bytes() == Path("clean.jsonl").read_bytes()


def test_training_rows_that_leak_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"{p['prompt']} Please explain it well.", "chosen": "a", "rejected": "b"} for p in PAIRS]
    write_jsonl(Path("rows.jsonl"), rows)
    write_jsonl(Path("eval.jsonl"), [{**rows[1], "prompt": [{"role": "user", "content": rows[1]["prompt"].upper()}]}])
    assert (
        run(["data", "check", "rows.jsonl", "--eval", "eval.jsonl", "--write", "clean.jsonl", "--drop", "leaks"]) == 0
    )
    written = [json.loads(line) for line in Path("clean.jsonl").read_text().splitlines()]
    assert rows[1] not in written
    assert rows[0] in written
    assert "  evaluation 1, line 1" in capsys.readouterr().out


def test_rows_of_csv_files_are_written_as_json() -> None:
    Path("rows.csv").write_text('prompt,chosen,rejected\nWho is it?,"A ""b""",c\nWho was it?,<|im_end|>,d\n')
    assert run(["data", "check", "rows.csv", "--write", "clean.jsonl"]) == 0
    assert Path("clean.jsonl").read_text() == '{"prompt": "Who is it?", "chosen": "A \\"b\\"", "rejected": "c"}\n'


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "report.txt"], "write FILE.json or FILE.html"),
        (["--drop", "refusals"], "add --write clean.jsonl"),
        (["--write", "c.jsonl", "--drop", "refusal"], "did you mean 'refusals'?"),
        (["--write", "c.jsonl", "--drop", ","], "no kind of finding"),
        (["--write", "pairs.jsonl"], "this is the file that is read"),
    ],
)
def test_wrong_options_are_refused_before_the_data_are_read(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    before = Path("pairs.jsonl").read_bytes()
    assert run(["data", "check", "pairs.jsonl", *options]) == 2
    assert message in capsys.readouterr().err
    assert Path("pairs.jsonl").read_bytes() == before


def test_rows_that_form_one_group_are_not_copied_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": "Who is it?", "response": r, "helpfulness": i} for i, r in enumerate(["a boy", "a girl"])]
    write_jsonl(Path("rows.jsonl"), rows)
    assert run(["data", "check", "rows.jsonl", "data.aspect=helpfulness", "--write", "clean.jsonl"]) == 3
    assert "joins several rows to one group" in capsys.readouterr().err
    assert not Path("clean.jsonl").exists()
