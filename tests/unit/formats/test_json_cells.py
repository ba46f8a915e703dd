"""Messages and lists that are stored as text are decoded only in columns whose format needs them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import write_jsonl
from tests.unit.formats.examples import PAIR_ROW, A, U, chat, read_rows

from preftune.data.prompts import read_prompts
from preftune.data.read_groups import read_groups
from preftune.errors import DataError
from preftune.formats.json_cells import decode_cells
from preftune.formats.parsers import Reading
from preftune.sources.rows import Row
from preftune.types import Message, PreferenceGroup


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write(kind: str, folder: Path, rows: list[dict[str, Any]]) -> str:
    return str({"csv": write_csv, "jsonl": write_jsonl}[kind](folder / f"a.{kind}", rows))


def turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


ASKED = [turn("user", "Hello")]


GOOD, BAD = [turn("assistant", "Hi")], [turn("assistant", "Go")]


KINDS = pytest.mark.parametrize("kind", ["csv", "jsonl"])


@KINDS
@pytest.mark.parametrize(
    "answer", ['{"thing": "the sea"}', "[1, 2]", '["a", "b"]', "[]", "{}", '[{"role": "x"}]', "[x"]
)
def test_responses_that_are_json_stay_text(tmp_path: Path, kind: str, answer: str) -> None:
    rows = [{"prompt": f"p{i}", "chosen": answer, "rejected": "no"} for i in range(3)]
    groups, account = read_groups(write(kind, tmp_path, rows))
    assert account.format == "preference"
    assert [group.responses for group in groups] == [(answer, "no")] * 3


@KINDS
@pytest.mark.parametrize("dump", [json.dumps, repr], ids=["json", "python"])
def test_dialogues_stored_as_text_are_decoded_in_every_format(tmp_path: Path, kind: str, dump: Any) -> None:
    sharegpt = [{"from": "human", "value": "Hello"}]
    rows: dict[str, dict[str, Any]] = {
        "ultrafeedback": {"prompt": "Hello", "chosen": dump(ASKED + GOOD), "rejected": dump(ASKED + BAD)},
        "chat-implicit": {"chosen": dump(ASKED + GOOD), "rejected": dump(ASKED + BAD)},
        "chat": {"prompt": dump(ASKED), "chosen": dump(GOOD[0]), "rejected": "Go"},
        "sharegpt": {"conversations": dump(sharegpt), "chosen": dump(GOOD[0]), "rejected": dump(BAD[0])},
        "openai": {
            "input": dump({"messages": ASKED}),
            "preferred_output": dump(GOOD),
            "non_preferred_output": dump(BAD),
        },
        "sft-messages": {"messages": dump(ASKED + GOOD)},
        "unpaired": {"prompt": dump(ASKED), "completion": dump(GOOD), "label": "true"},
        "ranked": {"prompt": "Hello", "responses": dump(["Hi", "Go"]), "scores": dump([2, 1.5])},
        "groups": {"prompt": "Hello", "responses": dump(["Hi", "Go"]), "judgements": dump([{"better": 0, "worse": 1}])},
    }
    for name, row in rows.items():
        groups, account = read_groups(write(kind, tmp_path, [row]))
        assert account.format == name
        chosen = groups[0].responses[0]
        assert chosen == "Hi" or chosen == (Message("assistant", "Hi"),)
        assert account.noted == {}


@KINDS
def test_lists_of_responses_are_decoded_if_the_format_is_named(tmp_path: Path, kind: str) -> None:
    rows = [{"prompt": "p", "chosen": '["a", "b"]', "rejected": '["c"]'}]
    source = write(kind, tmp_path, rows)
    assert read_groups(source)[0][0].responses == ('["a", "b"]', '["c"]')
    assert read_groups(source, Reading("lists"))[0][0].responses == ("a", "b", "c")


@KINDS
def test_a_named_text_format_keeps_dialogues_as_text_with_a_note(tmp_path: Path, kind: str) -> None:
    source = write(kind, tmp_path, [{"prompt": "p", "chosen": json.dumps(GOOD), "rejected": "no"}])
    groups, account = read_groups(source, Reading("preference"))
    assert groups[0].responses == (json.dumps(GOOD), "no")
    assert account.noted == {
        "column 'chosen' contains messages as JSON text, which stays plain text": [
            f"{source}:{2 if kind == 'csv' else 1}"
        ]
    }


def test_a_column_with_text_and_dialogues_stays_text_with_a_note(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": "yes", "rejected": "no"}] * 30
    rows[25] = rows[25] | {"chosen": json.dumps(GOOD)}
    source = write("jsonl", tmp_path, rows)
    groups, account = read_groups(source)
    assert groups[25].responses == (json.dumps(GOOD), "no")
    assert list(account.noted.values()) == [[f"{source}:26"]]


def test_text_in_a_column_of_dialogues_is_an_error(tmp_path: Path) -> None:
    rows = [{"chosen": json.dumps(ASKED + GOOD), "rejected": json.dumps(ASKED + BAD)}] * 30
    for cell, fault in (
        ("plain", "column 'chosen' must be a list of messages, not text"),
        ('[{"role": "user", "content": "a', "column 'chosen': broken JSON: Unterminated string"),
        ('[{"role": "user", "role": "user", "content": "a"}]', "column 'chosen': key 'role' appears twice"),
        ("[{'role': 'user', 'role': 'user', 'content': 'a'}]", "column 'chosen': key 'role' appears twice"),
        ("[{'role': 'user', 'content': 'a'}\n {'role': 'assistant'}]", "write such cells with json.dumps"),
    ):
        source = write("csv", tmp_path, [*rows, {"chosen": cell, "rejected": rows[0]["rejected"]}])
        with pytest.raises(DataError) as error:
            read_groups(source)
        assert f"{source}:32: " in str(error.value)
        assert fault in str(error.value)


def test_a_list_column_does_not_turn_a_demonstration_into_a_ranking(tmp_path: Path) -> None:
    row = {"prompt": "p", "completion": "4", "answers": '["4", "four"]'}
    with pytest.raises(DataError, match=r"column 'answers' is not used"):
        read_groups(write("csv", tmp_path, [row]))
    groups, account = read_groups(write("csv", tmp_path, [row]), Reading(ignore=("answers",)))
    assert account.format == "sft-completion"
    assert groups[0].responses == ("4",)
    ranked = {"prompt": "p", "answers": '[{"text": "a", "rank": 1}, {"text": "b", "rank": 2}]'}
    assert read_groups(write("csv", tmp_path, [ranked]))[1].format == "ranked"
    ranked = {"prompt": "p", "outputs": '["a", "b"]', "scores": "[1, 2]"}
    assert read_groups(write("csv", tmp_path, [ranked]))[1].format == "ranked"


def test_a_named_chat_format_decodes_each_cell_separately(tmp_path: Path) -> None:
    rows = [{"prompt": json.dumps(ASKED), "chosen": "Hi", "rejected": '{"a": 1}'}]
    rows += [{"prompt": json.dumps(ASKED), "chosen": json.dumps(GOOD), "rejected": "Go"}]
    groups, _ = read_groups(write("csv", tmp_path, rows), Reading("chat"))
    assert groups[0].prompt == groups[1].prompt == (Message("user", "Hello"),)
    assert groups[0].responses == ((Message("assistant", "Hi"),), (Message("assistant", '{"a": 1}'),))
    assert groups[1].responses == ((Message("assistant", "Hi"),), (Message("assistant", "Go"),))


def test_a_first_row_that_cannot_be_decoded_is_a_bad_row(tmp_path: Path) -> None:
    rows = [{"chosen": "[{'role': 'user', 'content': 'a'} {'role': 'x'}]", "rejected": json.dumps(ASKED + BAD)}]
    good = {"chosen": json.dumps(ASKED + GOOD), "rejected": json.dumps(ASKED + BAD)}
    source = write("csv", tmp_path, [*rows, good])
    with pytest.raises(DataError, match=r"a.csv:2: column 'chosen': broken JSON"):
        read_groups(source)
    groups, account = read_groups(source, Reading(bad_rows="drop"))
    assert len(groups) == 1
    assert account.read == 2


@pytest.mark.parametrize(
    ("cell", "fault"),
    [
        ("[" * 100_000 + "]", "nested too deeply"),
        (f"[{'1' * 5000}]", "an integer has more digits"),
        ("[{{1}}]", ""),  # a set in a set, for Python
    ],
)
def test_a_list_that_python_cannot_parse_is_an_error(tmp_path: Path, cell: str, fault: str) -> None:
    rows = [{"messages": json.dumps(ASKED + GOOD)}, {"messages": cell}]
    with pytest.raises(DataError, match=rf"a.csv:3: column 'messages': broken JSON: {fault}"):
        read_groups(write("csv", tmp_path, rows))


def test_a_user_function_gets_undecoded_cells(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from preftune import Judgement, PreferenceGroup\n"
        "def read(row):\n"
        "    return PreferenceGroup('p', (row['messages'], row['b']), (Judgement(0, 1),))\n"
    )
    source = write("csv", tmp_path, [{"messages": json.dumps(GOOD), "b": "x"}])
    groups, _ = read_groups(source, Reading(f"{tmp_path / 'own.py'}:read"))
    assert groups == [PreferenceGroup("p", (json.dumps(GOOD), "x"), groups[0].judgements, origin=f"{source}:2")]


def test_cells_are_decoded_by_mapped_names(tmp_path: Path) -> None:
    row = {"replies": '["a", "b"]', "answers": '["c"]', "messages": "["}
    rows = [Row(row, "a:1")]
    mapped = Reading(columns={"responses": "replies", "chosen": "answers"}, ignore=("messages",))
    assert next(decode_cells(rows, mapped)).value == row | {"replies": ["a", "b"]}
    assert next(decode_cells(rows, Reading())).fault.startswith("column 'messages': broken JSON")


def test_prompts_stored_as_text_are_decoded(tmp_path: Path) -> None:
    groups, _ = read_prompts(
        write("csv", tmp_path, [{"prompt": json.dumps(ASKED)}, {"prompt": json.dumps(ASKED[:1] * 2)}])
    )
    assert groups[0].prompt == (Message("user", "Hello"),)
    groups, _ = read_prompts(write("csv", tmp_path, [{"prompt": '["a"]'}, {"prompt": "x"}]))
    assert [group.prompt for group in groups] == ['["a"]', "x"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(st.lists(st.tuples(VALUES, st.sampled_from([json.dumps, repr, str])), min_size=1, max_size=4))
def test_text_without_messages_is_never_changed(cells: list[Any]) -> None:
    rows = [
        Row({"prompt": "p", "chosen": dump(value), "rejected": "r"}, f"a:{i}") for i, (value, dump) in enumerate(cells)
    ]
    assert list(decode_cells(rows, Reading())) == rows


SIDE = {side: chat(("user", "hi?"), ("assistant", side)) for side in ("chosen", "rejected")}


@pytest.mark.parametrize("write", [json.dumps, repr, lambda value: json.dumps(value, indent=1)])
def test_dialogues_in_json_or_python_syntax_are_decoded(tmp_path: Path, write: Any) -> None:
    groups, account = read_rows(tmp_path, [{key: write(value) for key, value in SIDE.items()}] * 2)
    assert account.format == "chat-implicit"
    assert groups[0].prompt == (U("hi?"),)
    rows = [{"prompt": write(chat(("user", "hi?"))), "chosen": "[1, 2]", "rejected": "[]"}]
    assert read_rows(tmp_path, rows)[0][0].responses == ((A("[1, 2]"),), (A("[]"),))  # responses stay text
    openai = {
        "input": write({"messages": chat(("user", "hi?"))}),
        "preferred_output": write(chat(("assistant", "\\d"))),
        "non_preferred_output": write(chat(("assistant", "b"))),
    }
    assert read_rows(tmp_path, [openai])[0][0].responses == ((A("\\d"),), (A("b"),))
    ranked = [{"prompt": "p", "responses": write(["a", "b"]), "scores": write([1, 2])}]
    assert read_rows(tmp_path, ranked)[0][0].responses == ("a", "b")


def test_a_truncated_dialogue_is_a_bad_row(tmp_path: Path) -> None:
    rows = [{key: json.dumps(value) for key, value in SIDE.items()}] * 2
    rows.append({"chosen": rows[0]["chosen"][:-9], "rejected": rows[0]["rejected"]})
    with pytest.raises(DataError, match=r"rows.jsonl:3: column 'chosen': broken JSON: .*json.dumps"):
        read_rows(tmp_path, rows)


def test_messages_in_only_some_rows_stay_text_with_a_note(tmp_path: Path) -> None:
    groups, account = read_rows(tmp_path, [PAIR_ROW, {**PAIR_ROW, "chosen": json.dumps(SIDE["chosen"])}])
    assert isinstance(groups[1].responses[0], str)
    assert list(account.noted) == ["column 'chosen' contains messages as JSON text, which stays plain text"]
