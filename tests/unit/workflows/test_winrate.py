"""Win rates as a command: contestants, prompts, judges, what is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_jsonl
from tests.contests import contest

from preftune.cli.main import run as cli
from preftune.errors import ConfigError, DataError, ModelError
from preftune.train.display import Display
from preftune.types import Judgement, PreferenceGroup
from preftune.workflows import winrate
from preftune.workflows.winrate import WinRateOptions, preferred

QUIET = Display(quiet=True)


@pytest.mark.parametrize(
    ("judgements", "text"),
    [
        ((Judgement(1, 0),), "b"),
        ((Judgement(1, 0, probability=0.1),), "a"),  # a soft label below one half says the opposite
        ((Judgement(1, 0, probability=0.5),), "b"),  # of a tie either will do
        ((Judgement(0, 1), Judgement(2, 0)), "c"),  # the first winner loses another
        ((Judgement(0, 1), Judgement(1, 2), Judgement(2, 0)), "a"),  # all of them lose one
        ((Judgement(0, 1, probability=0.5), Judgement(2, 1)), "c"),
    ],
)
def test_the_preferred_response(judgements: tuple[Judgement, ...], text: str) -> None:
    assert preferred(PreferenceGroup("p", ("a", "b", "c"), judgements)) == text


def test_two_models_need_prompts_alone(tmp_path: Path, model_folder: Path) -> None:
    data = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "the cat"}, {"prompt": "a dog"}, {"prompt": "a dog"}])
    wanted = WinRateOptions((str(model_folder),), str(data), "length", str(model_folder), (1.0,), max_new_tokens=5)
    (rate,) = winrate.run(wanted, tmp_path / "out", QUIET)[str(model_folder)].values()
    assert rate.ties == 2
    assert json.loads((tmp_path / "out" / "winrate.json").read_text())["agreement_with_labels"] is None
    with pytest.raises(DataError, match="a prompt but no response"):
        winrate.run(replace(wanted, against=None), tmp_path / "out", QUIET)
    misspelt = write_jsonl(tmp_path / "typo.jsonl", [{"prompt": "the cat", "chosen": " sat", "rejcted": " ran"}])
    with pytest.raises(DataError, match="did you mean"):  # not taken for prompts
        winrate.run(replace(wanted, data=str(misspelt)), tmp_path / "out", QUIET)


def test_what_grades_will_take_is_said_first(
    tmp_path: Path, model_folder: Path, judge_server: Any, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """For a grading judge, and for a best of n by grades; no more is asked, and what is known is not counted."""
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    judge_server.grader = True
    name = f"judge:{judge_server.url},big"
    wanted = contest(tmp_path, model_folder, judge=name, temperatures=(1.0,), price_in=3.0, price_out=15.0)
    winrate.run(wanted, tmp_path / "out", Display(), dry_run=True)
    said = capsys.readouterr().err
    assert "judge: at most 9 requests" in said  # 3 responses to be sampled, 3 chosen and 3 rejected ones
    assert "at most 2,700 output tokens (up to 3 times that if replies cannot be read), about 0.0" in said
    assert judge_server.asked == []
    winrate.run(wanted, tmp_path / "out", QUIET)
    assert len(judge_server.asked) <= 9
    best = replace(wanted, policies=(f"best:4,{model_folder},{name}",), against=str(model_folder))
    winrate.run(best, tmp_path / "out", Display(), dry_run=True)
    said = capsys.readouterr().err
    assert f"best:4,{model_folder},{name}: at most 12 requests" in said
    assert "judge: at most 6 requests" in said


def test_prompts_that_are_too_long_are_left_out_and_said(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = contest(tmp_path, model_folder, temperatures=(1.0,))
    with Path(wanted.data).open("a") as file:
        file.write(json.dumps({"prompt": "the cat " * 200, "chosen": " sat", "rejected": " ran"}) + "\n")
    (rate,) = winrate.run(wanted, tmp_path / "out", Display())[str(model_folder)].values()
    assert rate.wins + rate.ties + rate.losses == 3
    assert "left out: 1 prompts, too long to be answered" in capsys.readouterr().err


def test_controls_show_what_they_are(tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = winrate.run(contest(tmp_path, model_folder, judge="first"), tmp_path / "first", Display())
    said = capsys.readouterr().err
    assert "all 6 verdicts favour the response shown first, so they carry no information" in said
    assert "the judge on the data's pairs: all 6 verdicts favour the response shown first" in said
    for rate in found[str(model_folder)].values():
        assert (rate.rate, rate.first_shown, rate.consistent) == (0.5, 1.0, 0.0)
    found = winrate.run(contest(tmp_path, model_folder, judge="length"), tmp_path / "length", QUIET)
    for rate in found[str(model_folder)].values():
        assert (rate.first_shown, rate.consistent) == (0.5, 1.0)


def test_best_of_n_is_a_contestant(tmp_path: Path, model_folder: Path, pairs_file: Path) -> None:
    """By the judge's own reward it loses no comparison with the first of its answers, and is longer here."""
    best = f"best:4,{model_folder},length"
    contest = WinRateOptions((best,), str(pairs_file), "length", str(model_folder), (1.0,), max_new_tokens=8)
    found = winrate.run(contest, tmp_path / "out", QUIET)[best]["1"]
    assert found.losses == 0
    assert found.wins > 0
    again = winrate.run(contest, tmp_path / "out", QUIET)[best]["1"]
    assert again == found
    for wrong in ("best:1,m,length", "best:x,m,length", "best:4,m", "best:4,,length"):
        with pytest.raises(ConfigError, match="best of n"):
            winrate.run(replace(contest, policies=(wrong,)), tmp_path / "wrong", QUIET)


def test_against_itself(tmp_path: Path, model_folder: Path) -> None:
    """The same model with the same seed says the same: all ties."""
    wanted = contest(tmp_path, model_folder, against=str(model_folder), temperatures=(0.7,))
    (rate,) = winrate.run(wanted, tmp_path / "out", QUIET)[str(model_folder)].values()
    assert (rate.rate, rate.ties, rate.low, rate.high) == (0.5, 3, 0.5, 0.5)


def test_the_command(tmp_path: Path, model_folder: Path, judge_server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = contest(tmp_path, model_folder)
    common = ["eval", "winrate", "--policy", str(model_folder), "--data", wanted.data, "--max-new-tokens", "5"]
    assert cli([*common, "--judge", "length", "--temperatures", "1", "--out", str(tmp_path / "o")]) == 0
    assert "length-adjusted" in capsys.readouterr().err
    assert "Win rate over temperatures" in (tmp_path / "o" / "winrate.html").read_text()
    price = ["--judge", "big", "--judge-url", judge_server.url, "--price-in", "3", "--price-out", "15", "--dry-run"]
    assert cli([*common, *price]) == 0
    said = capsys.readouterr().err
    assert "at most 30 requests" in said
    assert "at the given prices" in said
    assert judge_server.asked == []
    assert cli([*common, "--judge", "length", "--task", "poetry"]) == 2


def test_settings_of_the_server_reach_it_from_the_command_line(
    tmp_path: Path, model_folder: Path, judge_server: Any
) -> None:
    """Another setting is another judge: it is asked again."""
    data = contest(tmp_path, model_folder).data
    command = ["eval", "winrate", "--policy", str(model_folder), "--data", data, "--judge", "m", "--temperatures", "1"]
    command += ["--max-new-tokens", "4", "--judge-url", judge_server.url, "--out", str(tmp_path / "out"), "-q"]
    settings = ["--server-settings", '{"temperature": null, "seed": 7}']
    assert cli([*command, *settings]) == 0
    assert {(body.get("temperature"), body["seed"]) for body in judge_server.asked} == {(None, 7)}
    asked = len(judge_server.asked)
    assert cli([*command, *settings]) == 0
    assert len(judge_server.asked) == asked
    assert cli(command) == 0
    assert len(judge_server.asked) == 2 * asked
    assert cli(["sample", "m", "--prompts", data, "--out", str(tmp_path / "s"), *settings]) == 2  # no URL


def test_answers_without_a_reward_are_no_candidates_for_the_best(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are counted, and so are prompts without another; with none at all there is nothing to judge."""
    (tmp_path / "mine.py").write_text(
        "def some(prompts, responses):\n"
        "    return [None if p == 'a dog' or len(r) % 2 else float(len(r)) for p, r in zip(prompts, responses)]\n"
        "def none(prompts, responses):\n    return [None] * len(responses)\n"
    )
    wanted = contest(tmp_path, model_folder, temperatures=(1.0,))
    some = replace(wanted, policies=(f"best:8,{model_folder},{tmp_path / 'mine.py'}:some",))
    (rate,) = winrate.run(some, tmp_path / "out", Display())[some.policies[0]].values()
    said = capsys.readouterr().err
    assert "answers got no reward" in said
    assert rate.wins + rate.ties + rate.losses == 2
    found = json.loads((tmp_path / "out" / "winrate.json").read_text())
    assert found["left_out"] == {some.policies[0]: {"1": 1}}
    none = replace(wanted, policies=(f"best:2,{model_folder},{tmp_path / 'mine.py'}:none",))
    with pytest.raises(DataError, match="no prompt has a response to be judged"):
        winrate.run(none, tmp_path / "none", QUIET)


def test_wrong_names_are_said_with_their_option(tmp_path: Path, model_folder: Path) -> None:
    wanted = contest(tmp_path, model_folder)
    with pytest.raises(ModelError, match="--policy nope"):
        winrate.run(replace(wanted, policies=("nope",)), tmp_path / "out", QUIET)
    with pytest.raises(ModelError, match="--against nope"):
        winrate.run(replace(wanted, against="best:4,nope,length"), tmp_path / "out", QUIET)
    with pytest.raises(ConfigError, match="for a model behind a server, set --judge-url"):
        winrate.run(replace(wanted, judge="mymodel"), tmp_path / "out", QUIET)
