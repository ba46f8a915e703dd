"""Win rates: the arithmetic against scipy and by hand, what is paid for, labels, controls, the command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize
from tests.conftest import write_jsonl
from tests.servers import refuse, say, serving

from preftune.cli.main import run as cli
from preftune.data.groups import read_groups
from preftune.errors import ConfigError, DataError, IncompleteError, ModelError
from preftune.evaluate.server import Server
from preftune.evaluate.winrate import Match, bootstrap, length_controlled, win_rate
from preftune.methods import winrate
from preftune.methods.policies import judge_of
from preftune.methods.verdicts import words
from preftune.methods.winrate import Contest, preferred
from preftune.train.display import Display
from preftune.types import Judgement, PreferenceGroup

QUIET = Display(quiet=True)


def test_outcomes_by_hand() -> None:
    """A judge that always names the first shown makes ties of everything; one unread verdict leaves the other."""
    matches = [Match(1, 1, 10, 5), Match(1, 0, 5, 5), Match(0, 0, 3, 9), Match(None, 1, 4, 4), Match(None, None, 1, 1)]
    found = win_rate(matches)
    assert found.rate == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert (found.wins, found.ties, found.losses, found.unread) == (2, 1, 1, 3)
    assert found.consistent == pytest.approx(2 / 3)
    # forward verdicts 1, 1, 0; backward ones say that the first shown (the other) won 0, 1, 1 times
    assert found.first_shown == pytest.approx((1 + 1 + 0 + 0 + 1 + 1) / 6)
    assert (found.words, found.other_words) == (23 / 5, 24 / 5)
    with pytest.raises(ValueError, match="not one verdict"):
        win_rate([Match(None, None, 1, 1)])


def test_the_bootstrap_is_scipys() -> None:
    values = np.random.default_rng(0).choice([0.0, 0.5, 1.0], 120)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=5000, rng=1).confidence_interval
    assert bootstrap(values) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_length_control_is_the_logistic_fit() -> None:
    """Our responses win because they are longer: of equal length they would not."""
    generator = np.random.default_rng(0)
    longer = generator.normal(20, 15, 4000)
    x = np.tanh(longer / longer.std())
    outcome = (generator.random(4000) < 1 / (1 + np.exp(0.3 - 1.5 * x))).astype(float)

    def loss(w: Any) -> float:
        z = w[0] + w[1] * x
        return float(np.sum(np.logaddexp(0, z) - outcome * z))

    expected = minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-8}).x[0]
    assert length_controlled(outcome, longer, penalty=0) == pytest.approx(1 / (1 + np.exp(-expected)), abs=1e-4)
    assert outcome.mean() > 0.6
    assert length_controlled(outcome, longer) < 0.47


def test_no_difference_in_length() -> None:
    assert length_controlled(np.array([1.0, 0.0, 1.0, 1.0]), np.zeros(4)) == pytest.approx(0.75, abs=1e-4)


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


class JudgeServer(BaseHTTPRequestHandler):
    """A chat model that prefers the candidate with more words, and sometimes says nothing.

    As `grader` it grades every answer.
    """

    asked: list[dict[str, Any]]
    silent = 0
    grader = False
    refuses = False
    refused = 0

    def log_message(self, *_: Any) -> None: ...

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(body)
        if self.refuses or (len(self.asked) <= self.refused):
            refuse(self, "unsupported parameter")
            return
        data = json.loads(body["messages"][-1]["content"])
        if self.grader:
            say(self, "GRADE: 5")
            return
        a, b = len(data["A"].split()), len(data["B"].split())
        word = "A" if a > b else "B" if b > a else "TIE"
        text = "hm" if len(self.asked) <= type(self).silent else f"One is longer.\nVERDICT: {word}"
        say(self, text)


@pytest.fixture
def judge_server() -> Iterator[Any]:
    pytest.importorskip("openai")
    with serving(JudgeServer, asked=[]) as handler:
        yield handler


def contest(tmp_path: Path, model_folder: Path, **more: Any) -> Contest:
    rows = [
        {
            "prompt": "the cat",
            "chosen": " sat on the mat and looked at the moon and the sky and the sea",
            "rejected": " no",
        },
        {"prompt": "a dog", "chosen": " ran", "rejected": " looked at the river for a long time"},
        {"prompt": "once upon", "chosen": " a time there was a house", "rejected": " no"},
    ]
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    settings = {"judge": "length", "temperatures": (0.5, 1.0), "max_new_tokens": 6, **more}
    return Contest((str(model_folder),), str(data), **settings)


def test_verdicts_of_a_server_are_paid_for_once(tmp_path: Path, model_folder: Path, judge_server: Any) -> None:
    """Two orders a match, the data's own pairs for the agreement; only what could not be read is asked for again."""
    judge_server.silent = 1
    server = Server(judge_server.url, "judge", concurrency=1)
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


def test_two_models_need_prompts_alone(tmp_path: Path, model_folder: Path) -> None:
    data = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "the cat"}, {"prompt": "a dog"}, {"prompt": "a dog"}])
    wanted = Contest((str(model_folder),), str(data), "length", str(model_folder), (1.0,), max_new_tokens=5)
    (rate,) = winrate.run(wanted, tmp_path / "out", QUIET)[str(model_folder)].values()
    assert rate.ties == 2
    assert json.loads((tmp_path / "out" / "winrate.json").read_text())["agreement_with_labels"] is None
    with pytest.raises(DataError, match="no known format"):
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
    assert "at most 2,700 to write (up to 3 times that if replies cannot be read), about 0.0" in said
    assert judge_server.asked == []
    winrate.run(wanted, tmp_path / "out", QUIET)
    assert len(judge_server.asked) <= 9
    best = replace(wanted, policies=(f"best:4,{model_folder},{name}",), against=str(model_folder))
    winrate.run(best, tmp_path / "out", Display(), dry_run=True)
    said = capsys.readouterr().err
    assert f"best:4,{model_folder},{name}: at most 12 requests" in said
    assert "judge: at most 6 requests" in said


@pytest.mark.parametrize(
    ("wins", "draws", "total", "rate", "standard_error"),
    [
        (614, 12, 805, 77.01863354037268, 1.46803688292698),  # gpt4
        (606, 9, 805, 75.83850931677019, 1.4981004247868313),  # claude
        (427, 3, 803, 53.36239103362392, 1.7582560332920765),  # guanaco-13b
        (163, 20, 805, 21.490683229813666, 1.421716368655911),  # text_davinci_001
    ],
)
def test_published_verdicts(wins: int, draws: int, total: int, rate: float, standard_error: float) -> None:
    """AlpacaEval's leaderboard of the judge claude: counts of verdicts, the win rate and its standard error.

    Source: tatsu-lab/alpaca_eval, leaderboards/data_AlpacaEval/claude_leaderboard.csv (one verdict a prompt).
    """
    verdicts = [1.0] * wins + [0.5] * draws + [0.0] * (total - wins - draws)
    found = win_rate([Match(verdict, None, 1, 1) for verdict in verdicts])
    assert 100 * found.rate == pytest.approx(rate, rel=1e-12)
    assert (found.wins, found.ties) == (wins, draws)
    assert 100 * stats.sem(verdicts) == pytest.approx(standard_error, rel=1e-9)
    assert 100 * (found.high - found.low) == pytest.approx(2 * 1.96 * standard_error, rel=0.05)
    assert 100 * found.length_controlled == pytest.approx(rate, abs=0.1)  # equal lengths: nothing to control


def test_half_a_verdict_is_asked_for_again(tmp_path: Path, model_folder: Path, judge_server: Any) -> None:
    server = Server(judge_server.url, "judge", concurrency=1)
    wanted = contest(tmp_path, model_folder, judge="judge", server=server, temperatures=(1.0,))
    found = winrate.run(wanted, tmp_path / "out", QUIET)
    verdicts, asked = tmp_path / "out" / "verdicts.jsonl", len(judge_server.asked)
    whole = verdicts.read_text()
    verdicts.write_text(whole[:-20])
    for _ in range(2):
        assert winrate.run(wanted, tmp_path / "out", QUIET) == found
        assert len(judge_server.asked) == asked + 1
    assert sorted(verdicts.read_text().splitlines()) == sorted(whole.splitlines())


def test_verdicts_are_those_of_the_judges_weights(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another model in the same folder is another judge, and so is another function in the same file."""
    judge, code = tmp_path / "judge", tmp_path / "rewards.py"
    shutil.copytree(model_folder, judge)
    code.write_text("one")
    names = [f"lm:{judge}", f"implicit:{judge},{model_folder}", f"{code}:long", "length"]
    before = [judge_of(name) for name in names]
    assert before == [judge_of(name) for name in names]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert judge_of("~/rewards.py:long").split()[1] == before[2].split()[1]
    settings = judge / "generation_config.json"
    settings.write_text(settings.read_text() + " ")
    code.write_text("two")
    assert [judge_of(name) == old for name, old in zip(names, before, strict=True)] == [False, False, False, True]


def test_prompts_that_are_too_long_are_left_out_and_said(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = contest(tmp_path, model_folder, temperatures=(1.0,))
    with Path(wanted.data).open("a") as file:
        file.write(json.dumps({"prompt": "the cat " * 200, "chosen": " sat", "rejected": " ran"}) + "\n")
    (rate,) = winrate.run(wanted, tmp_path / "out", Display())[str(model_folder)].values()
    assert rate.wins + rate.ties + rate.losses == 3
    assert "left out: 1 prompts, too long to be answered" in capsys.readouterr().err


def test_controls_show_what_they_are(tmp_path: Path, model_folder: Path) -> None:
    found = winrate.run(contest(tmp_path, model_folder, judge="first"), tmp_path / "first", QUIET)
    for rate in found[str(model_folder)].values():
        assert (rate.rate, rate.first_shown, rate.consistent) == (0.5, 1.0, 0.0)
    found = winrate.run(contest(tmp_path, model_folder, judge="length"), tmp_path / "length", QUIET)
    for rate in found[str(model_folder)].values():
        assert (rate.first_shown, rate.consistent) == (0.5, 1.0)


def test_best_of_n_is_a_contestant(tmp_path: Path, model_folder: Path, pairs_file: Path) -> None:
    """By the judge's own reward it loses no comparison with the first of its answers, and is longer here."""
    best = f"best:4,{model_folder},length"
    contest = Contest((best,), str(pairs_file), "length", str(model_folder), (1.0,), max_new_tokens=8)
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
    assert "length-controlled" in capsys.readouterr().err
    assert "Win rate over temperatures" in (tmp_path / "o" / "winrate.html").read_text()
    price = ["--judge", "big", "--judge-url", judge_server.url, "--price-in", "3", "--price-out", "15", "--dry-run"]
    assert cli([*common, *price]) == 0
    said = capsys.readouterr().err
    assert "at most 30 requests" in said
    assert "at the prices given" in said
    assert judge_server.asked == []
    assert cli([*common, "--judge", "length", "--task", "poetry"]) == 2


def test_lengths_of_texts_without_spaces() -> None:
    assert words("two words,\nthree more words.") == 5
    assert words("你好世界") == 4
    assert words("PyTorchは速い 2.13") == 1 + 3 + 1


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


def test_a_judge_that_refuses_everything_is_quoted(tmp_path: Path, model_folder: Path, judge_server: Any) -> None:
    judge_server.refuses = True
    wanted = contest(tmp_path, model_folder, judge="judge", server=Server(judge_server.url, "judge"))
    with pytest.raises(ConfigError, match=r"not one of 6 questions was taken\s*6: the server refuses: 400 unsupported"):
        winrate.run(wanted, tmp_path / "out", QUIET)


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


def test_why_verdicts_are_unread_is_counted(
    tmp_path: Path, model_folder: Path, judge_server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some refused, some without a verdict: that is no refusal of everything, and what a count counts is said."""
    judge_server.refused, judge_server.silent = 1, 5
    server = Server(judge_server.url, "judge", concurrency=1)
    wanted = contest(tmp_path, model_folder, judge="judge", server=server, temperatures=(1.0,))
    winrate.run(wanted, tmp_path / "out", Display())
    said = " ".join(capsys.readouterr().err.split())
    assert "5 of 6 verdicts unread" in said
    assert "of 3 matches" in said
    assert "verdicts unread, 4: its last line is no verdict; 1: the server refuses: 400 unsupported parameter" in said
    judge_server.asked.clear()
    judge_server.silent = 1000
    with pytest.raises(IncompleteError, match=r"5: its last line is no verdict; 1: the server(.|\n)*at last: 'hm'"):
        winrate.run(wanted, tmp_path / "again", Display())


def test_wrong_names_are_said_with_their_option(tmp_path: Path, model_folder: Path) -> None:
    wanted = contest(tmp_path, model_folder)
    with pytest.raises(ModelError, match="--policy nope"):
        winrate.run(replace(wanted, policies=("nope",)), tmp_path / "out", QUIET)
    with pytest.raises(ModelError, match="--against nope"):
        winrate.run(replace(wanted, against="best:4,nope,length"), tmp_path / "out", QUIET)
    with pytest.raises(ConfigError, match="a model behind a server needs --judge-url"):
        winrate.run(replace(wanted, judge="mymodel"), tmp_path / "out", QUIET)
