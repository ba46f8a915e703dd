"""preftune eval winrate: policies, prompts, judges and messages."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_jsonl
from tests.contests import contest

from preftune.cli.main import run as cli
from preftune.config.schema import DataConfig
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
        ((Judgement(1, 0, probability=0.1),), "a"),  # a probability below one half swaps the label
        ((Judgement(1, 0, probability=0.5),), "b"),  # either response of a tie is accepted
        ((Judgement(0, 1), Judgement(2, 0)), "c"),  # the first winner loses another judgement
        ((Judgement(0, 1), Judgement(1, 2), Judgement(2, 0)), "a"),  # every response loses a judgement
        ((Judgement(0, 1, probability=0.5), Judgement(2, 1)), "c"),
    ],
)
def test_the_preferred_response_won_and_lost_no_judgement(judgements: tuple[Judgement, ...], text: str) -> None:
    assert preferred(PreferenceGroup("p", ("a", "b", "c"), judgements)) == text


def test_prompts_are_enough_to_compare_two_models(tmp_path: Path, model_folder: Path) -> None:
    data = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "the cat"}, {"prompt": "a dog"}, {"prompt": "a dog"}])
    options = WinRateOptions(
        (str(model_folder),), DataConfig(train=str(data)), "length", str(model_folder), (1.0,), max_new_tokens=5
    )
    (rate,) = winrate.run(options, tmp_path / "out", QUIET)[str(model_folder)].values()
    assert rate.ties == 2
    assert json.loads((tmp_path / "out" / "winrate.json").read_text())["agreement_with_labels"] is None
    with pytest.raises(DataError, match="a prompt but no response"):
        winrate.run(replace(options, against=None), tmp_path / "out", QUIET)
    misspelt = write_jsonl(tmp_path / "typo.jsonl", [{"prompt": "the cat", "chosen": " sat", "rejcted": " ran"}])
    with pytest.raises(DataError, match="did you mean"):  # a misspelt column is not read as prompts
        winrate.run(replace(options, data=DataConfig(train=str(misspelt))), tmp_path / "out", QUIET)


def test_the_requests_for_grades_are_estimated(
    tmp_path: Path, model_folder: Path, judge_server: Any, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """For a grading judge and for a best of n by grades. Saved grades do not count."""
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    judge_server.grader = True
    name = f"judge:{judge_server.url},big"
    options = contest(tmp_path, model_folder, judge=name, temperatures=(1.0,), price_in=3.0, price_out=15.0)
    winrate.run(options, tmp_path / "out", Display(), dry_run=True)
    output = capsys.readouterr().err
    assert "judge: at most 9 requests" in output  # 3 responses to be sampled, 3 chosen and 3 rejected ones
    assert "at most 2,700 output tokens (up to 3 times that if replies cannot be read), about 0.0" in output
    assert judge_server.requests == []
    winrate.run(options, tmp_path / "out", QUIET)
    assert len(judge_server.requests) <= 9
    best = replace(options, policies=(f"best:4,{model_folder},{name}",), against=str(model_folder))
    winrate.run(best, tmp_path / "out", Display(), dry_run=True)
    output = capsys.readouterr().err
    assert f"best:4,{model_folder},{name}: at most 12 requests" in output
    assert "judge: at most 6 requests" in output


def test_prompts_that_are_too_long_are_skipped_and_counted(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = contest(tmp_path, model_folder, temperatures=(1.0,))
    with Path(str(options.data.train)).open("a") as file:
        file.write(json.dumps({"prompt": "the cat " * 200, "chosen": " sat", "rejected": " ran"}) + "\n")
    (rate,) = winrate.run(options, tmp_path / "out", Display())[str(model_folder)].values()
    assert rate.wins + rate.ties + rate.losses == 3
    assert "skipped 1 prompt: longer than the model's token limit" in capsys.readouterr().err


def test_a_judge_that_ignores_the_texts_is_reported_as_uninformative(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = winrate.run(contest(tmp_path, model_folder, judge="first"), tmp_path / "first", Display())
    output = capsys.readouterr().err
    assert "all 6 verdicts favour the response shown first, so they carry no information" in output
    assert "the judge on the data's pairs: all 6 verdicts favour the response shown first" in output
    for rate in rates[str(model_folder)].values():
        assert (rate.rate, rate.first_shown, rate.consistent) == (0.5, 1.0, 0.0)
    rates = winrate.run(contest(tmp_path, model_folder, judge="length"), tmp_path / "length", QUIET)
    for rate in rates[str(model_folder)].values():
        assert (rate.first_shown, rate.consistent) == (0.5, 1.0)


def test_the_best_of_n_responses_can_be_compared(tmp_path: Path, model_folder: Path, pairs_file: Path) -> None:
    """Its responses are at least as long as the first ones, and the judge prefers longer responses."""
    best = f"best:4,{model_folder},length"
    data = DataConfig(train=str(pairs_file))
    options = WinRateOptions((best,), data, "length", str(model_folder), (1.0,), max_new_tokens=8)
    rate = winrate.run(options, tmp_path / "out", QUIET)[best]["1"]
    assert rate.losses == 0
    assert rate.wins > 0
    assert winrate.run(options, tmp_path / "out", QUIET)[best]["1"] == rate
    for wrong in ("best:1,m,length", "best:x,m,length", "best:4,m", "best:4,,length"):
        with pytest.raises(ConfigError, match="best:N,MODEL,REWARD"):
            winrate.run(replace(options, policies=(wrong,)), tmp_path / "wrong", QUIET)


def test_a_model_against_itself_ties(tmp_path: Path, model_folder: Path) -> None:
    """With the same seed, both sides are the same responses."""
    options = contest(tmp_path, model_folder, against=str(model_folder), temperatures=(0.7,))
    (rate,) = winrate.run(options, tmp_path / "out", QUIET)[str(model_folder)].values()
    assert (rate.rate, rate.ties, rate.low, rate.high) == (0.5, 3, 0.5, 0.5)


def test_the_command_writes_results_and_a_dry_run_estimates_the_cost(
    tmp_path: Path, model_folder: Path, judge_server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    options = contest(tmp_path, model_folder)
    common = [
        "eval",
        "winrate",
        "--policy",
        str(model_folder),
        "--data",
        str(options.data.train),
        "--max-new-tokens",
        "5",
    ]
    assert cli([*common, "--judge", "length", "--temperatures", "1", "--out", str(tmp_path / "o")]) == 0
    assert "length-adjusted" in capsys.readouterr().err
    assert "Who wins, and how sure that is" in (tmp_path / "o" / "winrate.html").read_text()
    price = ["--judge", "big", "--judge-url", judge_server.url, "--price-in", "3", "--price-out", "15", "--dry-run"]
    assert cli([*common, *price]) == 0
    output = capsys.readouterr().err
    assert "at most 30 requests" in output
    assert "at the given prices" in output
    assert judge_server.requests == []
    assert cli([*common, "--judge", "length", "--task", "poetry"]) == 2


def test_server_settings_reach_the_server_and_identify_the_judge(
    tmp_path: Path, model_folder: Path, judge_server: Any
) -> None:
    """With another setting, all verdicts are requested again."""
    data = str(contest(tmp_path, model_folder).data.train)
    command = ["eval", "winrate", "--policy", str(model_folder), "--data", data, "--judge", "m", "--temperatures", "1"]
    command += ["--max-new-tokens", "4", "--judge-url", judge_server.url, "--out", str(tmp_path / "out"), "-q"]
    settings = ["--server-settings", '{"temperature": null, "seed": 7}']
    assert cli([*command, *settings]) == 0
    assert {(body.get("temperature"), body["seed"]) for body in judge_server.requests} == {(None, 7)}
    count = len(judge_server.requests)
    assert cli([*command, *settings]) == 0
    assert len(judge_server.requests) == count
    assert cli(command) == 0
    assert len(judge_server.requests) == 2 * count
    assert cli(["sample", "m", "--prompts", data, "--out", str(tmp_path / "s"), *settings]) == 2  # without a URL


def test_responses_without_a_reward_are_not_the_best_of_n(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are counted, and a prompt without any reward is skipped. It is an error if all prompts are skipped."""
    (tmp_path / "mine.py").write_text(
        "def some(prompts, responses):\n"
        "    return [None if p == 'a dog' or len(r) % 2 else float(len(r)) for p, r in zip(prompts, responses)]\n"
        "def none(prompts, responses):\n    return [None] * len(responses)\n"
    )
    options = contest(tmp_path, model_folder, temperatures=(1.0,))
    some = replace(options, policies=(f"best:8,{model_folder},{tmp_path / 'mine.py'}:some",))
    (rate,) = winrate.run(some, tmp_path / "out", Display())[some.policies[0]].values()
    output = capsys.readouterr().err
    assert "responses got no reward" in output
    assert rate.wins + rate.ties + rate.losses == 2
    facts = json.loads((tmp_path / "out" / "winrate.json").read_text())
    assert facts["left_out"] == {some.policies[0]: {"1": 1}}
    none = replace(options, policies=(f"best:2,{model_folder},{tmp_path / 'mine.py'}:none",))
    with pytest.raises(DataError, match="no prompt has a response on both sides"):
        winrate.run(none, tmp_path / "none", QUIET)


def test_an_error_for_an_unknown_name_names_the_option(tmp_path: Path, model_folder: Path) -> None:
    options = contest(tmp_path, model_folder)
    with pytest.raises(ModelError, match="--policy nope"):
        winrate.run(replace(options, policies=("nope",)), tmp_path / "out", QUIET)
    with pytest.raises(ModelError, match="--against nope"):
        winrate.run(replace(options, against="best:4,nope,length"), tmp_path / "out", QUIET)
    with pytest.raises(ConfigError, match="for a model behind a server, set --judge-url"):
        winrate.run(replace(options, judge="mymodel"), tmp_path / "out", QUIET)
