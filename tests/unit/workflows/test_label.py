"""preftune label: which pairs people judge, and what becomes of their verdicts."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_jsonl

from preftune.config.schema import BatchConfig, DataConfig, DPOConfig, ModelConfig, TrainConfig
from preftune.data.read_groups import read_groups
from preftune.errors import ConfigError, DataError, RunError
from preftune.lifecycle.data import read_data
from preftune.methods import dpo
from preftune.people.pairs import first_is_left
from preftune.people.verdicts import Verdicts
from preftune.train.display import Display
from preftune.types import content
from preftune.workflows import label
from preftune.workflows.label import LabelOptions, command_for, journal_of, preferences, read_pairs, run

QUIET = Display(quiet=True)
ROWS = [
    {
        "prompt": f"prompt {i}",
        "responses": [f"one {i}", f"two {i}", f"one {i}", f"three {i}"],
        "ended": [True] * 3 + [False],
    }
    for i in range(6)
]


def options(*sources: Path, **more: Any) -> LabelOptions:
    names = [str(source) for source in sources]
    return LabelOptions(DataConfig(train=names if len(names) > 1 else names[0]), **more)


def samples(tmp_path: Path, name: str = "samples.jsonl", rows: Any = ROWS) -> Path:
    return write_jsonl(tmp_path / name, rows)


def judge(settings: LabelOptions, out: Path, choices: str, annotator: str = "ana") -> None:
    """Save verdicts: f and s prefer the first and second response wherever they are shown, t is a tie, - a skip."""
    pairs = read_pairs(settings, QUIET).pairs
    with Verdicts(journal_of(out), pairs, settings.seed, settings.votes) as verdicts:
        for pair, wish in zip(pairs, choices, strict=False):
            left = first_is_left(pair.key, annotator, settings.seed)
            side = {"t": "tie", "-": "skip"}.get(wish) or ("a" if (wish == "f") == left else "b")
            verdicts.judge(annotator, pair.key, side)


def test_each_row_gives_random_pairs_of_different_responses(tmp_path: Path) -> None:
    file = samples(tmp_path)
    one = read_pairs(options(file), QUIET).pairs
    assert [pair.prompt for pair in one] == [row["prompt"] for row in ROWS]
    assert all(pair.first != pair.second for pair in one)
    assert read_pairs(options(file), QUIET).pairs == one
    assert read_pairs(options(file, seed=1), QUIET).pairs != one
    every = read_pairs(options(file, per_row=None), QUIET).pairs
    assert Counter(pair.prompt for pair in every) == {row["prompt"]: 3 for row in ROWS}
    assert set(one) < set(every)
    ended = {pair.ended for pair in every if "three" in str(pair.second)}
    assert ended == {(True, False)}


def test_what_is_not_judged_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*ROWS[:2], ROWS[0], {"prompt": "p", "responses": ["same", "same"]}]
    assert len(read_pairs(options(samples(tmp_path, rows=rows), per_row=None), Display()).pairs) == 6
    shown = capsys.readouterr().err
    assert "1 prompts with fewer than two different responses" in shown
    assert "3 repeated pairs" in shown
    with pytest.raises(DataError, match="there is no pair to judge"):
        read_pairs(options(samples(tmp_path, "one.jsonl", rows[3:])), QUIET)


def test_the_majority_decides_and_ties_and_skips_are_counted(tmp_path: Path) -> None:
    """Three annotators; the table of the rule."""
    settings, out = options(samples(tmp_path)), tmp_path / "prefs.jsonl"
    for annotator, choices in {"ana": "fftt-", "bob": "fst-f", "eve": "ss-f-"}.items():
        judge(settings, out, choices, annotator)
    pairs = read_pairs(settings, QUIET).pairs
    with Verdicts(journal_of(out), pairs) as verdicts:
        hard, soft = preferences(verdicts, False), preferences(verdicts, True)
    prompts = {row["prompt"]: row["judgements"] for row in hard.rows}
    first, second = [{"better": 0, "worse": 1}], [{"better": 1, "worse": 0}]
    assert prompts == {"prompt 0": first, "prompt 1": second, "prompt 3": first, "prompt 4": first}
    assert dict(hard.left_out) == {"tied": 1, "not judged": 1}
    shares = {row["prompt"]: row["judgements"][0].get("probability", 1.0) for row in soft.rows}
    assert shares == {
        "prompt 0": pytest.approx(2 / 3),
        "prompt 1": pytest.approx(2 / 3),
        "prompt 2": 0.5,
        "prompt 3": 0.75,
        "prompt 4": 1.0,
    }


def test_annotators_who_disagree_make_a_tie(tmp_path: Path) -> None:
    settings, out = options(samples(tmp_path)), tmp_path / "prefs.jsonl"
    judge(settings, out, "f", "ana")
    judge(settings, out, "s", "bob")
    run(settings, out, QUIET, page=False)
    assert out.read_text() == ""


@pytest.mark.parametrize("soft", [False, True])
def test_dpo_trains_on_the_preference_data_unchanged(tmp_path: Path, model_folder: Path, soft: bool) -> None:
    """Text prompts and chats; the account keeps every row, and the run reaches its last step."""
    chats = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in ROWS]
    for name, rows in (("text", ROWS), ("chat", chats)):
        settings, out = options(samples(tmp_path, f"{name}-s.jsonl", rows), soft=soft), tmp_path / f"{name}.jsonl"
        judge(settings, out, "fsft-s")
        run(settings, out, QUIET, page=False)
        groups, account = read_groups(str(out))
        assert (account.format, account.kept, account.dropped) == ("groups", 5 if soft else 4, {})
        assert [g.judgements[0].better for g in groups][:3] == [0, 1, 0]
        pairs = {pair.prompt: pair for pair in read_pairs(settings, QUIET).pairs}
        assert all(set(map(content, g.responses)) == {pairs[g.prompt].first, pairs[g.prompt].second} for g in groups)
        assert all(g.ended == pairs[g.prompt].ended for g in groups)
        assert len(read_data(DataConfig(train=str(out))).train) == len(groups)
    config = DPOConfig(
        model=ModelConfig(path=str(model_folder), dtype="fp32"),
        data=DataConfig(train=str(tmp_path / "text.jsonl")),
        batch=BatchConfig(pairs=2),
        train=TrainConfig(max_steps=2),
        monitor=None,
        out=str(tmp_path / "run"),
    )
    assert (dpo.run(config, display=QUIET) / "model.safetensors").is_file()


def test_two_files_are_compared_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = samples(tmp_path, "ours.jsonl", [{"prompt": f"p {i}", "responses": [f"short {i}"]} for i in range(5)])
    rows = [{"prompt": f"p {i}", "responses": [f"a longer one {i}" if i else "short 0"]} for i in range(4)]
    settings, out = options(ours, samples(tmp_path, "other.jsonl", rows)), tmp_path / "prefs.jsonl"
    pairs = read_pairs(settings, Display()).pairs
    assert [(p.first, p.second) for p in pairs] == [(f"short {i}", f"a longer one {i}") for i in (1, 2, 3)]
    shown = capsys.readouterr().err
    assert f"1 prompts that only {ours} has" in shown
    assert "1 pairs of identical responses" in shown
    judge(settings, out, "fst")
    run(settings, out, Display(), page=False)
    shown = " ".join(capsys.readouterr().err.split())
    assert "win rate 50.0%" in shown
    assert "1 won, 1 tied, 1 lost" in shown
    with pytest.raises(DataError, match="not both samples"):
        read_pairs(
            options(ours, write_jsonl(tmp_path / "p.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b"}])), QUIET
        )
    with pytest.raises(DataError, match="cannot compare 3 files"):
        read_pairs(options(ours, ours, ours), QUIET)


def test_preference_data_are_labelled_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"p {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(4)]
    settings, out = options(write_jsonl(tmp_path / "old.jsonl", [*rows, rows[0]])), tmp_path / "new.jsonl"
    assert len(read_pairs(settings, QUIET).pairs) == 4
    judge(settings, out, "fffs")
    run(settings, out, Display(), page=False)
    assert "agreement with the labels of the file: 75.0%" in " ".join(capsys.readouterr().err.split())


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    settings, out = options(samples(tmp_path)), tmp_path / "prefs.jsonl"
    judge(settings, out, "ff")
    samples(tmp_path, rows=[{**row, "prompt": row["prompt"] + "!"} for row in ROWS])
    with pytest.raises(RunError, match="has changed"):
        run(settings, out, QUIET, page=False)


def test_the_page_is_served_until_finish_is_pressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, out = options(samples(tmp_path), annotator="ana"), tmp_path / "prefs.jsonl"
    judge(settings, out, "fffff")
    urls: list[str] = []

    def person(url: str) -> None:
        def post(name: str, body: Any) -> Any:
            headers = {"Origin": url.rsplit("/", 2)[0]}
            request = urllib.request.Request(url + name, json.dumps(body).encode(), headers)
            return json.load(urllib.request.urlopen(request))

        state = json.load(urllib.request.urlopen(url + "state"))
        assert state["remaining"] == 1
        post("verdict", {"pair": state["pair"]["id"], "choice": "a"})
        post("finish", {})

    class Watching(Display):
        def say(self, text: str) -> None:
            if text.strip().startswith("http"):
                urls.append(text.strip())
                threading.Thread(target=person, args=(text.strip(),), daemon=True).start()

    monkeypatch.setattr(label, "Display", Watching)
    assert run(settings, out, QUIET)
    assert len(urls) == 1
    assert len(out.read_text().splitlines()) == 6
    assert run(settings, out, QUIET)  # complete: no page
    assert len(urls) == 1


def test_the_printed_command_collects_the_same_pairs(tmp_path: Path) -> None:
    settings = options(tmp_path / "a b.jsonl", per_row=None, votes=2, soft=True, seed=3)
    command = command_for(settings, tmp_path / "o.jsonl")
    assert (
        command
        == f"preftune label '{tmp_path}/a b.jsonl' --out {tmp_path}/o.jsonl --pairs all --votes 2 --soft --seed 3"
    )


def test_no_file_of_the_user_is_overwritten(tmp_path: Path) -> None:
    file = samples(tmp_path)
    before = file.read_text()
    with pytest.raises(ConfigError, match="also the input"):
        run(options(file), file, QUIET, page=False)
    with pytest.raises(ConfigError, match="preftune label has not written it"):
        run(options(file), samples(tmp_path, "prefs.jsonl", ROWS[:1]), QUIET, page=False)
    assert file.read_text() == before
    assert len((tmp_path / "prefs.jsonl").read_text().splitlines()) == 1


def test_settings_of_preference_data_are_used_and_refused_for_samples(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer_a": "one", "answer_b": "two"}]
    file = write_jsonl(tmp_path / "own.jsonl", rows)
    columns = {"prompt": "question", "chosen": "answer_a", "rejected": "answer_b"}
    pairs = read_pairs(LabelOptions(DataConfig(train=str(file), columns=columns)), QUIET).pairs
    assert [(p.prompt, p.first, p.second, p.label) for p in pairs] == [("q", "one", "two", 1.0)]
    with pytest.raises(ConfigError, match=r"without data\.columns"):
        read_pairs(LabelOptions(DataConfig(train=str(samples(tmp_path)), columns=columns)), QUIET)
