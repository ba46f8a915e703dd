"""Preference pairs on disk, and saved dialogues."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from preftune.errors import ConfigError, PreftuneError
from preftune.talk.dialogue import Answer, Dialogue, Turn
from preftune.talk.files import Pairs, pair_of, paths_of, save
from preftune.types import Message

PROMPT = (Message("system", "Be brief."), Message("user", "hi"))
TURN = Turn("hi", PROMPT, (Answer("yes", 1, True), Answer("no\nway", 2)), chosen=1, verdict="right")


def test_a_pair_holds_the_prompt_that_the_models_received() -> None:
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    answers = [[{"role": "assistant", "content": text}] for text in ("no\nway", "yes")]
    assert pair_of(TURN, 1) == {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}
    plain = Turn(" b", "a b", (Answer(" c"), Answer(" d")))
    assert pair_of(plain, 0) == {"prompt": "a b", "chosen": " c", "rejected": " d"}


@pytest.mark.parametrize(("texts", "message"), [(("a", " "), "right answer is empty"), (("a", "a"), "the same")])
def test_equal_and_empty_answers_make_no_pair(texts: tuple[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pair_of(Turn("hi", PROMPT, (Answer(texts[0]), Answer(texts[1]))), 0)


def rows(path: Path) -> list[object]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pairs_are_appended_and_the_last_one_can_be_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "prefs.jsonl"
    pairs = Pairs.open(str(path))
    assert not path.exists()
    pairs.add({"n": 1})
    pairs.add({"n": "ä"})
    assert rows(path) == [{"n": 1}, {"n": "ä"}]
    assert not pairs.take_back({"n": 1})
    assert pairs.take_back({"n": "ä"})
    assert not pairs.take_back({"n": 1})
    assert rows(path) == [{"n": 1}]
    assert pairs.rows == [{"n": 1}]


def test_a_file_without_a_newline_at_its_end_is_completed(tmp_path: Path) -> None:
    path = tmp_path / "prefs.jsonl"
    path.write_text('{"n": 0}')
    pairs = Pairs.open(str(path))
    pairs.add({"n": 1})
    assert rows(path) == [{"n": 0}, {"n": 1}]
    assert pairs.take_back({"n": 1})
    assert rows(path) == [{"n": 0}]


def test_a_pair_is_not_taken_back_from_a_file_that_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "prefs.jsonl"
    pairs = Pairs.open(str(path))
    pairs.add({"n": 1})
    with path.open("a") as file:
        file.write('{"n": 2}\n')
    assert not pairs.take_back({"n": 1})
    assert rows(path) == [{"n": 1}, {"n": 2}]


def test_a_folder_is_not_a_preference_file(tmp_path: Path) -> None:
    with pytest.raises(PreftuneError, match="folder"):
        Pairs.open(str(tmp_path))


def test_a_dialogue_is_saved_as_messages_and_as_markdown(tmp_path: Path) -> None:
    dialogue = Dialogue(system="Be brief.", turns=(TURN,))
    paths = paths_of(str(tmp_path / "chat"))
    assert [path.name for path in paths] == ["chat.jsonl", "chat.md"]
    assert [path.name for path in paths_of("a.md")] == ["a.md"]
    for path in paths:
        save(dialogue, ["dpo", "base"], "seed 0", path)
    (row,) = rows(paths[0])
    assert row == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "no\nway"},
        ]
    }
    text = paths[1].read_text()
    assert "# Chat with dpo and base\n\nseed 0\n\n## System\n\nBe brief.\n\n## User\n\nhi\n" in text
    assert "## dpo (left)\n\nyes\n\n## base (right, better, cut off)\n\nno\nway\n" in text


def test_a_plain_dialogue_is_saved_as_text(tmp_path: Path) -> None:
    turns = (Turn("once", "once", (Answer(" upon"),)), Turn("a", "once upon\na", (Answer(" time"),)))
    save(Dialogue(plain=True, turns=turns), ["m"], "", tmp_path / "a.jsonl")
    assert rows(tmp_path / "a.jsonl") == [{"text": "once upon\na time"}]
