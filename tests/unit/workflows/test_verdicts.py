"""Verdicts of a judge are saved and requested once; unreadable replies are reported; agreement with labels."""

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
from preftune.config.schema import DataConfig
from preftune.data.read_groups import read_groups
from preftune.errors import ConfigError, IncompleteError
from preftune.lifecycle.open_policy import reward_fingerprint
from preftune.train.display import Display
from preftune.workflows import winrate
from preftune.workflows.verdicts import words

QUIET = Display(quiet=True)


def data_of(path: Path, rows: list[dict[str, Any]]) -> DataConfig:
    return DataConfig(train=str(write_jsonl(path, rows)))


def test_a_verdict_is_requested_once_and_an_unreadable_one_again(
    tmp_path: Path, model_folder: Path, judge_server: Any
) -> None:
    """Each match and each labelled pair is judged in both orders."""
    judge_server.silent = 1
    server = Client(judge_server.url, "judge", concurrency=1)
    options = contest(tmp_path, model_folder, judge="judge", server=server, temperatures=(1.0,))
    rates = winrate.run(options, tmp_path / "out", QUIET)
    (rate,) = rates[str(model_folder)].values()
    assert rate.unread == 1
    assert rate.wins + rate.ties + rate.losses == 3
    requests = len(judge_server.requests)
    assert requests == 2 * 3 + 2 * 3
    for _ in range(2):
        (again,) = winrate.run(options, tmp_path / "out", QUIET)[str(model_folder)].values()
        assert again.unread == 0
        assert len(judge_server.requests) == requests + 1
    replies = [json.loads(line)["said"] for line in (tmp_path / "out" / "verdicts.jsonl").read_text().splitlines()]
    assert replies.count("hm") == 1  # an unreadable reply is saved for inspection
    facts = json.loads((tmp_path / "out" / "winrate.json").read_text())
    assert facts["agreement_with_labels"]["agreement"] == pytest.approx(
        2 / 3
    )  # the second chosen response is the shorter one
    assert facts["agreement_with_labels"]["pairs"] == 3


def test_an_incomplete_line_of_verdicts_is_requested_again(
    tmp_path: Path, model_folder: Path, judge_server: Any
) -> None:
    server = Client(judge_server.url, "judge", concurrency=1)
    options = contest(tmp_path, model_folder, judge="judge", server=server, temperatures=(1.0,))
    rates = winrate.run(options, tmp_path / "out", QUIET)
    verdicts, requests = tmp_path / "out" / "verdicts.jsonl", len(judge_server.requests)
    whole = verdicts.read_text()
    verdicts.write_text(whole[:-20])
    for _ in range(2):
        assert winrate.run(options, tmp_path / "out", QUIET) == rates
        assert len(judge_server.requests) == requests + 1
    assert sorted(verdicts.read_text().splitlines()) == sorted(whole.splitlines())


def test_an_unreadable_judge_is_quoted_in_the_error(
    tmp_path: Path, model_folder: Path, judge_server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 9; the same command requests the verdicts again."""
    judge_server.silent = 6
    options = contest(tmp_path, model_folder)
    arguments = [
        "eval",
        "winrate",
        "--policy",
        str(model_folder),
        "--data",
        str(options.data.train),
        "--max-new-tokens",
        "5",
    ]
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
    output = capsys.readouterr().err
    assert "none of 6 verdicts could be read" in output
    assert "'hm'" in output
    assert cli(arguments) == 0
    assert len(judge_server.requests) == 6 + 6 + 6


def test_the_reason_is_reported_if_a_judge_refuses_all_questions(
    tmp_path: Path, model_folder: Path, judge_server: Any
) -> None:
    judge_server.refuses = True
    options = contest(tmp_path, model_folder, judge="judge", server=Client(judge_server.url, "judge"))
    with pytest.raises(
        ConfigError, match=r"the server refused all 6 requests\s*6: the server refused the request: 400 unsupported"
    ):
        winrate.run(options, tmp_path / "out", QUIET)


def test_unread_verdicts_are_counted_by_reason(
    tmp_path: Path, model_folder: Path, judge_server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """One request is refused and five replies have no verdict."""
    judge_server.refused, judge_server.silent = 1, 5
    server = Client(judge_server.url, "judge", concurrency=1)
    options = contest(tmp_path, model_folder, judge="judge", server=server, temperatures=(1.0,))
    winrate.run(options, tmp_path / "out", Display())
    output = " ".join(capsys.readouterr().err.split())
    assert "5 of 6 verdicts unread" in output
    assert "of 3 matches" in output
    assert "verdicts unread, 4: its last line is not a verdict; 1: the server refused the request: 400 unsup" in output
    judge_server.requests.clear()
    judge_server.silent = 1000
    with pytest.raises(
        IncompleteError, match=r"5: its last line is not a verdict; 1: the server(.|\n)*ended with: 'hm'"
    ):
        winrate.run(options, tmp_path / "again", Display())


def test_win_rates_are_written_even_if_no_label_could_be_judged(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(questions: Any) -> Any:
        for i, q in enumerate(questions):
            labels = {q.first, q.second} == {" sat", " ran"}
            yield i, None if labels else 1.0, "too long"

    rows = [{"prompt": "the cat", "chosen": " sat", "rejected": " ran"}]
    options = replace(contest(tmp_path, model_folder), data=data_of(tmp_path / "one.jsonl", rows))
    monkeypatch.setattr(winrate, "open_judge", lambda *_, **__: judge)
    with pytest.raises(IncompleteError, match=r"none of 2 verdicts could be read\n.*'too long'"):
        winrate.run(options, tmp_path / "out", QUIET)
    facts = json.loads((tmp_path / "out" / "winrate.json").read_text())
    assert facts["agreement_with_labels"] is None
    assert facts["win_rates"][str(model_folder)]["1"]["rate"] == 0.5


def test_agreement_counts_every_label_by_its_probability(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A label with probability 0.5 is a tie and counts as half right."""
    rows = [
        {"prompt": "the cat", "chosen": " sat on the mat", "rejected": " no"},  # the longer response: right
        {"prompt": "the cat", "chosen": " no", "rejected": " sat on it"},  # repeats an earlier prompt: wrong
        {"prompt": "a dog", "chosen": " no", "rejected": " ran away", "probability": 0.2},  # right
        {"prompt": "we can", "chosen": " no", "rejected": " look at it", "probability": 0.5},  # half
    ]
    options = contest(tmp_path, model_folder, temperatures=(1.0,))
    options = replace(options, data=data_of(tmp_path / "labels.jsonl", rows))
    (rate,) = winrate.run(options, tmp_path / "out", Display())[str(model_folder)].values()
    assert rate.wins + rate.ties + rate.losses == 3
    facts = json.loads((tmp_path / "out" / "winrate.json").read_text())["agreement_with_labels"]
    assert (facts["agreement"], facts["pairs"], facts["tied_labels"], facts["unread"]) == (2.5 / 4, 4, 1, 0)
    output = capsys.readouterr().err
    assert "1 (line 2): the row repeats an earlier prompt" in output
    assert "the judge agrees with 62.5%" in output
    page = (tmp_path / "out" / "winrate.html").read_text()
    assert "Agreement with the labels of the data" in page
    assert ">62.5\u00a0%</td>" in page
    assert '<th scope="col">verdicts unread</th>' in page


def test_agreement_counts_all_judgements_of_a_group(tmp_path: Path, model_folder: Path) -> None:
    judgements = [{"better": 0, "worse": 1}, {"better": 0, "worse": 2}, {"better": 1, "worse": 2}]
    rows = [{"prompt": "the cat", "responses": [" sat on it", " sat down", " a b c d"], "judgements": judgements}]
    options = contest(tmp_path, model_folder, temperatures=(1.0,))
    winrate.run(replace(options, data=data_of(tmp_path / "g.jsonl", rows)), tmp_path / "out", QUIET)
    facts = json.loads((tmp_path / "out" / "winrate.json").read_text())["agreement_with_labels"]
    assert facts["pairs"] == 3
    groups, _ = read_groups(str(tmp_path / "g.jsonl"))
    longer = [len(r) for r in groups[0].responses]
    right = sum(longer[j.better] > longer[j.worse] for j in groups[0].judgements)
    assert facts["agreement"] == pytest.approx(right / 3)


def test_words_are_counted_in_scripts_without_spaces() -> None:
    assert words("two words,\nthree more words.") == 5
    assert words("你好世界") == 4
    assert words("PyTorchは速い 2.13") == 1 + 3 + 1


def test_a_judge_is_identified_by_its_weights_or_its_code(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other weights in the same folder, or other code in the same file, change the fingerprint."""
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
