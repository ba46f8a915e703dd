"""Verdicts: asked for once, kept, read or quoted; agreement with labels."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_jsonl
from tests.contests import contest

from preftune.cli.main import run as cli
from preftune.client import Client
from preftune.data.groups import read_groups
from preftune.errors import ConfigError, IncompleteError
from preftune.lifecycle.saved import reward_fingerprint
from preftune.train.display import Display
from preftune.workflows import winrate
from preftune.workflows.verdicts import words

QUIET = Display(quiet=True)


def test_verdicts_of_a_server_are_paid_for_once(tmp_path: Path, model_folder: Path, judge_server: Any) -> None:
    """Two orders a match, the data's own pairs for the agreement; only what could not be read is asked for again."""
    judge_server.silent = 1
    server = Client(judge_server.url, "judge", concurrency=1)
    wanted = contest(tmp_path, model_folder, judge="judge", server=server, temperatures=(1.0,))
    found = winrate.run(wanted, tmp_path / "out", QUIET)
    (rate,) = found[str(model_folder)].values()
    assert rate.unread == 1
    assert rate.wins + rate.ties + rate.losses == 3
    asked = len(judge_server.asked)
    assert asked == 2 * 3 + 2 * 3
    for _ in range(2):
        (again,) = winrate.run(wanted, tmp_path / "out", QUIET)[str(model_folder)].values()
        assert again.unread == 0
        assert len(judge_server.asked) == asked + 1
    said = [json.loads(line)["said"] for line in (tmp_path / "out" / "verdicts.jsonl").read_text().splitlines()]
    assert said.count("hm") == 1  # what could not be read can be looked at
    facts = json.loads((tmp_path / "out" / "winrate.json").read_text())
    assert facts["agreement_with_labels"]["agreement"] == pytest.approx(2 / 3)  # the second chosen one is shorter
    assert facts["agreement_with_labels"]["pairs"] == 3


def test_half_a_verdict_is_asked_for_again(tmp_path: Path, model_folder: Path, judge_server: Any) -> None:
    server = Client(judge_server.url, "judge", concurrency=1)
    wanted = contest(tmp_path, model_folder, judge="judge", server=server, temperatures=(1.0,))
    found = winrate.run(wanted, tmp_path / "out", QUIET)
    verdicts, asked = tmp_path / "out" / "verdicts.jsonl", len(judge_server.asked)
    whole = verdicts.read_text()
    verdicts.write_text(whole[:-20])
    for _ in range(2):
        assert winrate.run(wanted, tmp_path / "out", QUIET) == found
        assert len(judge_server.asked) == asked + 1
    assert sorted(verdicts.read_text().splitlines()) == sorted(whole.splitlines())


def test_a_judge_that_cannot_be_read_is_quoted(
    tmp_path: Path, model_folder: Path, judge_server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not an internal error: what the judge said, and the next command asks again."""
    judge_server.silent = 6
    wanted = contest(tmp_path, model_folder)
    arguments = ["eval", "winrate", "--policy", str(model_folder), "--data", wanted.data, "--max-new-tokens", "5"]
    arguments += [
        "--judge",
        "big",
        "--judge-url",
        judge_server.url,
        "--temperatures",
        "1",
        "--out",
        str(tmp_path / "o"),
    ]
    assert cli(arguments) == 9
    said = capsys.readouterr().err
    assert "not one of 6 verdicts could be read" in said
    assert "'hm'" in said
    assert cli(arguments) == 0
    assert len(judge_server.asked) == 6 + 6 + 6


def test_a_judge_that_refuses_everything_is_quoted(tmp_path: Path, model_folder: Path, judge_server: Any) -> None:
    judge_server.refuses = True
    wanted = contest(tmp_path, model_folder, judge="judge", server=Client(judge_server.url, "judge"))
    with pytest.raises(
        ConfigError, match=r"not one of 6 questions was taken\s*6: the server refused the request: 400 unsupported"
    ):
        winrate.run(wanted, tmp_path / "out", QUIET)


def test_why_verdicts_are_unread_is_counted(
    tmp_path: Path, model_folder: Path, judge_server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some refused, some without a verdict: that is no refusal of everything, and what a count counts is said."""
    judge_server.refused, judge_server.silent = 1, 5
    server = Client(judge_server.url, "judge", concurrency=1)
    wanted = contest(tmp_path, model_folder, judge="judge", server=server, temperatures=(1.0,))
    winrate.run(wanted, tmp_path / "out", Display())
    said = " ".join(capsys.readouterr().err.split())
    assert "5 of 6 verdicts unread" in said
    assert "of 3 matches" in said
    assert "verdicts unread, 4: its last line is not a verdict; 1: the server refused the request: 400 unsup" in said
    judge_server.asked.clear()
    judge_server.silent = 1000
    with pytest.raises(IncompleteError, match=r"5: its last line is not a verdict; 1: the server(.|\n)*at last: 'hm'"):
        winrate.run(wanted, tmp_path / "again", Display())


def test_labels_that_the_judge_cannot_read_leave_the_win_rates(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(questions: Any) -> Any:
        for i, q in enumerate(questions):
            labels = {q.first, q.second} == {" sat", " ran"}
            yield i, None if labels else 1.0, "too long"

    rows = [{"prompt": "the cat", "chosen": " sat", "rejected": " ran"}]
    wanted = replace(contest(tmp_path, model_folder), data=str(write_jsonl(tmp_path / "one.jsonl", rows)))
    monkeypatch.setattr(winrate, "open_judge", lambda *_, **__: judge)
    with pytest.raises(IncompleteError, match=r"not one of 2 verdicts could be read\n.*'too long'"):
        winrate.run(wanted, tmp_path / "out", QUIET)
    facts = json.loads((tmp_path / "out" / "winrate.json").read_text())
    assert facts["agreement_with_labels"] is None
    assert facts["win_rates"][str(model_folder)]["1"]["rate"] == 0.5


def test_agreement_is_with_all_labels(tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every judgement of every row, read as its probability says; a label that is a tie is half right."""
    rows = [
        {"prompt": "the cat", "chosen": " sat on the mat", "rejected": " no"},  # the longer one: right
        {"prompt": "the cat", "chosen": " no", "rejected": " sat on it"},  # the prompt of an earlier row: wrong
        {"prompt": "a dog", "chosen": " no", "rejected": " ran away", "probability": 0.2},  # right
        {"prompt": "we can", "chosen": " no", "rejected": " look at it", "probability": 0.5},  # half
    ]
    wanted = contest(tmp_path, model_folder, temperatures=(1.0,))
    wanted = replace(wanted, data=str(write_jsonl(tmp_path / "labels.jsonl", rows)))
    (rate,) = winrate.run(wanted, tmp_path / "out", Display())[str(model_folder)].values()
    assert rate.wins + rate.ties + rate.losses == 3
    facts = json.loads((tmp_path / "out" / "winrate.json").read_text())["agreement_with_labels"]
    assert (facts["agreement"], facts["pairs"], facts["tied_labels"], facts["unread"]) == (2.5 / 4, 4, 1, 0)
    said = capsys.readouterr().err
    assert "1 (line 2): the prompt of an earlier row" in said
    assert "the judge sides with the data's labels in 62.5%" in said
    page = (tmp_path / "out" / "winrate.html").read_text()
    assert "Agreement with the labels of the data" in page
    assert "<td>62.5%</td>" in page
    assert "<th>verdicts unread</th>" in page


def test_agreement_is_with_all_judgements_of_a_group(tmp_path: Path, model_folder: Path) -> None:
    judgements = [{"better": 0, "worse": 1}, {"better": 0, "worse": 2}, {"better": 1, "worse": 2}]
    rows = [{"prompt": "the cat", "responses": [" sat on it", " sat down", " a b c d"], "judgements": judgements}]
    wanted = contest(tmp_path, model_folder, temperatures=(1.0,))
    winrate.run(replace(wanted, data=str(write_jsonl(tmp_path / "g.jsonl", rows))), tmp_path / "out", QUIET)
    facts = json.loads((tmp_path / "out" / "winrate.json").read_text())["agreement_with_labels"]
    assert facts["pairs"] == 3
    groups, _ = read_groups(str(tmp_path / "g.jsonl"))
    longer = [len(r) for r in groups[0].responses]
    right = sum(longer[j.better] > longer[j.worse] for j in groups[0].judgements)
    assert facts["agreement"] == pytest.approx(right / 3)


def test_lengths_of_texts_without_spaces() -> None:
    assert words("two words,\nthree more words.") == 5
    assert words("你好世界") == 4
    assert words("PyTorchは速い 2.13") == 1 + 3 + 1


def test_verdicts_are_those_of_the_judges_weights(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another model in the same folder is another judge, and so is another function in the same file."""
    judge, code = tmp_path / "judge", tmp_path / "rewards.py"
    shutil.copytree(model_folder, judge)
    code.write_text("one")
    names = [f"lm:{judge}", f"implicit:{judge},{model_folder}", f"{code}:long", "length"]
    before = [reward_fingerprint(name) for name in names]
    assert before == [reward_fingerprint(name) for name in names]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert reward_fingerprint("~/rewards.py:long").split()[1] == before[2].split()[1]
    settings = judge / "generation_config.json"
    settings.write_text(settings.read_text() + " ")
    code.write_text("two")
    assert [reward_fingerprint(name) == old for name, old in zip(names, before, strict=True)] == [
        False,
        False,
        False,
        True,
    ]
