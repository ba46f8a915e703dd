"""Verdicts on disk: every one survives a kill, can be withdrawn, and belongs to the pairs it was given for."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from preftune.errors import RunError
from preftune.files import journal_line
from preftune.people.pairs import Pair, first_is_left, turns
from preftune.people.verdicts import Verdicts, shared_agreement, summary_lines
from preftune.types import Message

PAIRS = [Pair(f"prompt {i}", "first", "second", origin=f"s.jsonl:{i + 1}") for i in range(8)]


def judge_all(verdicts: Verdicts, annotator: str, choices: str) -> None:
    for pair, choice in zip(PAIRS, choices, strict=False):
        verdicts.judge(annotator, pair.key, {"t": "tie", "s": "skip"}.get(choice, choice))


def test_a_verdict_names_the_response_that_was_on_the_chosen_side(tmp_path: Path) -> None:
    with Verdicts(tmp_path / "v.jsonl", PAIRS, seed=3) as verdicts:
        judge_all(verdicts, "ana", "a" * 8)
        rows = verdicts.judged()["ana"]
    for pair in PAIRS:
        assert rows[pair.key]["verdict"] == ("first" if first_is_left(pair.key, "ana", 3) else "second")
    assert {row["verdict"] for row in rows.values()} == {"first", "second"}


def test_the_sides_are_a_fair_coin_for_each_annotator() -> None:
    keys = [str(i) for i in range(2000)]
    sides = {name: [first_is_left(key, name, 0) for key in keys] for name in ("ana", "bob")}
    assert 900 < sum(sides["ana"]) < 1100
    assert 900 < sum(a == b for a, b in zip(*sides.values(), strict=True)) < 1100


def test_a_resumed_annotator_gets_the_first_pair_without_a_verdict(tmp_path: Path) -> None:
    with Verdicts(tmp_path / "v.jsonl", PAIRS) as verdicts:
        judge_all(verdicts, "ana", "ats")
    with Verdicts(tmp_path / "v.jsonl", PAIRS) as verdicts:
        assert verdicts.next_pair("ana") == PAIRS[3]
        assert verdicts.next_pair("bob") == PAIRS[0]
        assert (verdicts.remaining("ana"), verdicts.missing()) == (5, 5)
        assert not verdicts.judge("ana", PAIRS[0].key, "b")  # judged before: unchanged
        assert verdicts.undo("ana") == PAIRS[2].key
        assert verdicts.next_pair("ana") == PAIRS[2]
    with Verdicts(tmp_path / "v.jsonl", PAIRS) as verdicts:
        assert verdicts.undo("ana") == PAIRS[1].key
        assert verdicts.undo("ana") == PAIRS[0].key
        assert verdicts.undo("ana") is None


def test_votes_limit_the_annotators_of_a_pair(tmp_path: Path) -> None:
    with Verdicts(tmp_path / "v.jsonl", PAIRS, votes=1) as verdicts:
        judge_all(verdicts, "ana", "abab")
        assert verdicts.next_pair("bob") == PAIRS[4]
        assert verdicts.remaining("bob") == verdicts.missing() == 4


def _judge_until_killed(path: Path, saved: Any) -> None:
    with Verdicts(path, PAIRS) as verdicts:
        for pair in PAIRS:
            verdicts.judge("ana", pair.key, "a", comment="because")
            saved.send(pair.key)
        threading.Event().wait()


@pytest.mark.parametrize("number", [1, 4, 8])
def test_a_kill_after_any_verdict_loses_nothing(tmp_path: Path, number: int) -> None:
    receive, send = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_judge_until_killed, args=(tmp_path / "v.jsonl", send))
    process.start()
    keys = [receive.recv() for _ in range(number)]
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with Verdicts(tmp_path / "v.jsonl", PAIRS) as verdicts:
        rows = verdicts.judged()["ana"]
    assert [key for key in keys if key not in rows] == []
    assert {row["comment"] for row in rows.values()} == {"because"}


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_an_incomplete_last_line_is_removed_and_reported(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "v.jsonl"
    with Verdicts(path, PAIRS) as verdicts:
        judge_all(verdicts, "ana", "abt")
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with Verdicts(path, PAIRS) as verdicts:
        assert verdicts.repaired > 0
        assert verdicts.next_pair("ana") == PAIRS[2]
        verdicts.judge("ana", PAIRS[2].key, "tie")
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_verdicts_are_refused_for_other_pairs(tmp_path: Path) -> None:
    with Verdicts(tmp_path / "v.jsonl", PAIRS) as verdicts:
        judge_all(verdicts, "ana", "ab")
    for pairs, seed in ((PAIRS[:-1], 0), ([*PAIRS[:-1], Pair("prompt 7", "first", "changed")], 0), (PAIRS, 1)):
        with pytest.raises(RunError, match="samples or a setting has changed"):
            Verdicts(tmp_path / "v.jsonl", pairs, seed)
    (tmp_path / "other.jsonl").write_text('{"prompt": 1}\n')
    with pytest.raises(RunError, match="not a journal of preftune label"):
        Verdicts(tmp_path / "other.jsonl", PAIRS)


@pytest.mark.parametrize(
    "line",
    [
        "7",
        "{}",
        '{"pair": "x", "annotator": "ana", "verdict": "tie", "left": "first"}',
        '{"pair": "KEY", "annotator": "ana", "verdict": "best", "left": "first"}',
        '{"pair": "KEY", "annotator": null, "verdict": "tie", "left": "first"}',
        '{"pair": "KEY", "annotator": "ana", "verdict": "tie"}',
        '{"pair": ["KEY"], "annotator": "ana", "verdict": "tie", "left": "first"}',
    ],
)
def test_a_line_that_is_not_a_verdict_is_an_error_with_its_number(tmp_path: Path, line: str) -> None:
    with Verdicts(tmp_path / "v.jsonl", PAIRS) as verdicts:
        judge_all(verdicts, "ana", "ab")
    with (tmp_path / "v.jsonl").open("a") as file:
        file.write(journal_line(json.loads(line.replace("KEY", PAIRS[3].key))))
    with pytest.raises(RunError, match=r"v\.jsonl:4: the line is not a verdict"):
        Verdicts(tmp_path / "v.jsonl", PAIRS)


def test_two_commands_cannot_write_the_same_journal(tmp_path: Path) -> None:
    with Verdicts(tmp_path / "v.jsonl", PAIRS), pytest.raises(RunError, match="another preftune command"):
        Verdicts(tmp_path / "v.jsonl", PAIRS)
    Verdicts(tmp_path / "v.jsonl", PAIRS).close()


def test_agreement_counts_shared_pairs_without_skips(tmp_path: Path) -> None:
    with Verdicts(tmp_path / "v.jsonl", PAIRS) as verdicts:
        for pair in PAIRS[:4]:  # both prefer the first response, wherever it is shown
            for name in ("ana", "bob"):
                verdicts.judge(name, pair.key, "a" if first_is_left(pair.key, name, 0) else "b")
        verdicts.judge("ana", PAIRS[4].key, "tie")
        verdicts.judge("bob", PAIRS[4].key, "skip")
        verdicts.judge("ana", PAIRS[5].key, "tie")
        verdicts.judge("bob", PAIRS[5].key, "tie")
        overall = shared_agreement(verdicts)
        assert overall is not None
        assert (overall.items, overall.raw, overall.alpha) == (5, 1.0, 1.0)
        lines = "\n".join(summary_lines(verdicts))
    assert "agreement: 100.0% on 5 pairs" in lines
    assert "ana and bob: 100.0% of 5 pairs, Cohen's kappa 1.00" in lines


def test_chats_are_shown_as_turns_with_their_other_fields() -> None:
    call = Message("assistant", "", (("tool_calls", '[{"name": "f"}]'), ("reasoning_content", '"a\\nb"')))
    assert turns((Message("user", "hi"), call)) == [
        {"role": "user", "text": "hi"},
        {"role": "assistant", "text": '[tool_calls] [{"name": "f"}]\n[reasoning_content] a\nb'},
    ]
    assert turns("text") == [{"role": "", "text": "text"}]
