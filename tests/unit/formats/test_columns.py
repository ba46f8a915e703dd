"""Every column of a row is used, known metadata, named in data.ignore, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import write_jsonl
from tests.unit.formats.test_formats import A, S, U, chat

from preftune.data.groups import read_groups
from preftune.data.prompts import read_prompts
from preftune.errors import ConfigError, DataError
from preftune.formats.account import Account, require_matched
from preftune.formats.columns import FATES
from preftune.formats.parsers import Reading
from preftune.formats.values import is_blank
from preftune.types import PreferenceGroup

PAIR: dict[str, Any] = {"prompt": "Say it.", "chosen": "good words", "rejected": "bad words"}


def read_rows(folder: Path, rows: list[dict[str, Any]], **reading: Any) -> tuple[list[PreferenceGroup], Account]:
    return read_groups(str(write_jsonl(folder / "rows.jsonl", rows)), Reading(**reading))


def better_of(groups: list[PreferenceGroup]) -> list[Any]:
    """The better response of each pair."""
    return [group.responses[group.judgements[0].better] for group in groups]


# ---- properties over random columns

NAMES = st.sampled_from(
    (
        *("id", "source", "turn_id", "persona", "tools", "images", "system", "history", "input", "question", "promt"),
        *("text", "weight", "score_chosen", "notes", "messages", "metadata", "num_turns", "label", "reply", "date"),
    )
)
WORDS = st.sampled_from(["", "good words", "Say it.", "Other words.", "[]", "x"])
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), WORDS)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=2), st.dictionaries(st.sampled_from("ab"), SCALARS, max_size=2))
ROWS = st.dictionaries(NAMES, VALUES, max_size=5).map(lambda more: {**PAIR, **more})
IGNORED = st.lists(NAMES, max_size=2, unique=True).map(tuple)


@given(ROWS, IGNORED)
def test_used_and_metadata_and_ignored_and_refused_are_all(
    tmp_path_factory: pytest.TempPathFactory, row: dict[str, Any], ignore: tuple[str, ...]
) -> None:
    folder = tmp_path_factory.mktemp("columns")
    try:
        _, account = read_rows(folder, [row], ignore=ignore)
    except DataError as error:  # the message names the column at fault, and says how to leave it out
        named = [name for name in row if f"{name!r}" in error.what]
        assert named
        assert not set(named) & set(ignore)
        return
    assert set(account.columns) == set(row)
    assert set(account.columns.values()) <= set(FATES.values())
    assert {name for name, fate in account.columns.items() if fate == "ignored"} == set(ignore) & set(row)
    assert {name for name, fate in account.columns.items() if fate == "empty"} == {
        name for name in row if is_blank(row[name]) and name not in ignore
    }


@given(ROWS, VALUES)
def test_a_column_that_is_not_used_never_changes_the_groups(
    tmp_path_factory: pytest.TempPathFactory, row: dict[str, Any], value: Any
) -> None:
    folder = tmp_path_factory.mktemp("columns")
    try:
        groups, account = read_rows(folder, [row], ignore=("notes", "persona"))
    except DataError:
        return
    for column, fate in account.columns.items():
        if fate in ("metadata", "ignored"):
            try:
                again, _ = read_rows(folder, [{**row, column: value}], ignore=("notes", "persona"))
            except DataError:  # a value of another kind may be refused, but it is not trained on
                continue
            assert again == groups


@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected", "system", "history", "input"])
def test_a_used_column_changes_the_groups(tmp_path: Path, column: str) -> None:
    row = {**PAIR, "system": "s", "history": [["q", "a"]], "input": "i"}
    groups, account = read_rows(tmp_path, [row])
    assert account.columns[column] == "used"
    other = [["q", "b"]] if column == "history" else "other"
    assert read_rows(tmp_path, [{**row, column: other}])[0] != groups


# ---- what is refused, and what the message says

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"promt": "p", "chosen": "a", "rejected": "b"}, "'promt' is not used (did you mean 'prompt'?)", "{prompt: promt}"),
    ({**PAIR, "tools": [{"name": "f"}]}, "'tools' describes tools", "data.ignore=[tools]"),
    ({**PAIR, "images": ["x.png"]}, "'images' holds images", "data.ignore=[images]"),
    ({**PAIR, "chat_template_kwargs": {"a": 1}}, "'chat_template_kwargs' has template arguments", "ignore=[chat_t"),
    ({**PAIR, "question": "Another?"}, "'question' is not used", "data.ignore=[question]"),
    ({**PAIR, "context": "c"}, "'context' belongs to the prompt", "{input: context}"),
    ({**PAIR, "persona": "p"}, "'persona' belongs to the prompt", "{input: persona}"),
    ({**PAIR, "reply": "r"}, "'reply' is not used", "data.ignore=[reply]"),
    ({**PAIR, "label": 1}, "'label' has no meaning in the format 'preference'", "data.ignore=[label]"),
    ({"prompt": "p", "completion": "c", "weight": 2}, "'weight' has no meaning", "data.ignore=[weight]"),
    ({"prompt": "p", "response": "c", "helpfulness": 4}, "'helpfulness' says how good", "data.ignore=[helpfulness]"),
    ({"messages": chat(("user", "x"), ("assistant", "y")), "rejected": "z"}, "'rejected' is not used", "ignore=[rejec"),
    (
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c", "system": "s"},
        "'system' belongs to the prompt",
        "data.ignore=[system]",
    ),
]


@pytest.mark.parametrize(("row", "what", "fix"), REFUSED, ids=[what for _, what, _ in REFUSED])
@pytest.mark.parametrize("bad_rows", ["error", "drop"])
def test_refused_columns_are_named_with_a_fix(
    tmp_path: Path, row: dict[str, Any], what: str, fix: str, bad_rows: str
) -> None:
    with pytest.raises(DataError) as caught:
        read_rows(tmp_path, [row] * 3, bad_rows=bad_rows)
    assert what in caught.value.what
    assert "(3 of 3 rows)" in caught.value.what
    assert fix in caught.value.fix
    assert caught.value.where.endswith("rows.jsonl:1")


@pytest.mark.parametrize("row", [row for row, _, fix in REFUSED if "data.ignore" in fix])
def test_what_is_refused_can_be_ignored(tmp_path: Path, row: dict[str, Any]) -> None:
    column = list(row)[-1]
    _, account = read_rows(tmp_path, [row], ignore=(column,))
    assert account.columns[column] == "ignored"
    assert f"ignored: {column}" in account.lines()[1]


def test_a_refused_column_of_few_rows_can_be_dropped_with_its_rows(tmp_path: Path) -> None:
    rows = [PAIR, {**PAIR, "images": ["x.png"]}, PAIR]
    groups, account = read_rows(tmp_path, rows, bad_rows="drop")
    assert len(groups) == 2
    [(reason, origins)] = account.dropped.items()
    assert reason == "cannot be read: column 'images' holds images, and preftune trains on text"
    assert origins == [f"{tmp_path / 'rows.jsonl'}:2"]


def test_columns_that_repeat_what_is_used_are_no_fault(tmp_path: Path) -> None:
    dialogue = chat(("user", PAIR["prompt"]), ("assistant", PAIR["chosen"]))
    row = {**PAIR, "question": " Say it.", "messages": dialogue, "candidates": ["good words", "bad words", "others"]}
    _, account = read_rows(tmp_path, [row])
    assert {name for name, fate in account.columns.items() if fate.startswith("repeated")} == set(row) - set(PAIR)


def test_a_prompt_that_differs_from_the_dialogues_is_noted(tmp_path: Path) -> None:
    sides = {k: chat(("user", "hi"), ("assistant", k)) for k in ("chosen", "rejected")}
    groups, account = read_rows(tmp_path, [{"prompt": "hello", **sides}])
    assert groups[0].prompt == (U("hi"),)
    assert list(account.noted) == ["column 'prompt' differs from the prompt in the dialogues, which was used"]


def test_other_dialogues_beside_a_pair_of_dialogues_are_refused(tmp_path: Path) -> None:
    sides = {k: chat(("user", "hi"), ("assistant", k)) for k in ("chosen", "rejected")}
    for column, value in (("messages", chat(("user", "other"))), ("question", "other"), ("context", "other")):
        with pytest.raises(DataError, match=f"column '{column}'"):
            read_rows(tmp_path, [{"prompt": "hi", column: value, **sides}])


def test_columns_of_rows_that_cannot_be_read_are_listed_too(tmp_path: Path) -> None:
    rows = [PAIR, {"prompt": "p", "chosen": 3, "rejected": "b", "odd": "x"}]
    _, account = read_rows(tmp_path, rows, bad_rows="drop")
    assert account.columns["odd"] == "in dropped rows only"
    rows = [{"good": 3, "rejected": "b", "prompt": "p"}]
    _, account = read_rows(tmp_path, rows, bad_rows="drop", columns={"chosen": "good"})
    assert list(account.dropped) == ["cannot be read: column 'chosen' must be a list of messages, not a number"]


def test_names_to_ignore_must_be_there(tmp_path: Path) -> None:
    accounts = [read_rows(tmp_path, [{**PAIR, "source": "x"}], ignore=("sorce",))[1] for _ in range(2)]
    with pytest.raises(DataError, match=r"data.ignore names 'sorce'(.|\n)*did you mean 'source'"):
        require_matched(tuple(accounts))
    with_it = read_rows(tmp_path, [{**PAIR, "sorce": "x"}], ignore=("sorce",))[1]
    require_matched((accounts[0], with_it))  # one of the files has it


# ---- empty prompts


def test_empty_prompts_are_an_error_unless_asked_for(tmp_path: Path) -> None:
    rows = [{"chosen": "so it is", "rejected": "no"}] * 3
    with pytest.raises(DataError, match="the prompt is empty in 3 of 3 rows"):
        read_rows(tmp_path, rows)
    for asked in ({"allow_empty_prompts": True}, {"format": "preference-implicit"}):
        assert len(read_rows(tmp_path, rows, **asked)[0]) == 3
    assert len(read_rows(tmp_path, [{"text": "once"}])[0]) == 1
    with pytest.raises(DataError, match=r"empty in 2 of 3(.|\n)*not used: 'source'"):
        read_rows(tmp_path, [{**PAIR, "prompt": "", "source": "s"}] * 2 + [PAIR])
    assert len(read_rows(tmp_path, [{**PAIR, "prompt": ""}, PAIR])[0]) == 2


# ---- context columns


def test_a_system_text_in_some_rows_makes_all_prompts_chats(tmp_path: Path) -> None:
    rows = [{**PAIR, "system": ""}, {**PAIR, "system": "Be kind."}]
    groups, account = read_rows(tmp_path, rows)
    assert [group.prompt for group in groups] == [(U("Say it."),), (S("Be kind."), U("Say it."))]
    assert [group.responses[0] for group in groups] == [(A("good words"),)] * 2
    [(note, origins)] = account.noted.items()
    assert "made a chat" in note
    assert origins == [f"{tmp_path / 'rows.jsonl'}:1"]
    assert read_rows(tmp_path, rows[:1])[0][0].prompt == "Say it."


def test_two_system_texts_that_differ_are_refused(tmp_path: Path) -> None:
    row = {**PAIR, "prompt": chat(("system", "a"), ("user", "x")), "system": "b"}
    with pytest.raises(DataError, match="the system column and the system message of the prompt differ"):
        read_rows(tmp_path, [row])
    assert read_rows(tmp_path, [{**row, "system": "a"}])[0][0].prompt == (S("a"), U("x"))


# ---- data.columns


def test_columns_are_renamed_before_the_format_is_found(tmp_path: Path) -> None:
    rows = [{"q": "Say it.", "good": "good words", "bad": "bad words", "id": 3}]
    groups, account = read_rows(tmp_path, rows, columns={"prompt": "q", "chosen": "good", "rejected": "bad"})
    assert groups == [
        PreferenceGroup(
            "Say it.",
            ("good words", "bad words"),
            groups[0].judgements,
            origin=groups[0].origin,
        )
    ]
    assert account.columns == {
        "q": "used as prompt",
        "good": "used as chosen",
        "bad": "used as rejected",
        "id": "metadata",
    }


def test_two_columns_can_swap_their_names(tmp_path: Path) -> None:
    groups, _ = read_rows(tmp_path, [PAIR], columns={"chosen": "rejected", "rejected": "chosen"})
    assert groups[0].responses == ("bad words", "good words")


def test_columns_that_cannot_be_mapped(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown name 'promt'(.|\n)*did you mean 'prompt'"):
        read_rows(tmp_path, [PAIR], columns={"promt": "question"})
    with pytest.raises(DataError, match=r"'prompt' from 'questoin', and no row has it(.|\n)*mean 'question'"):
        read_rows(tmp_path, [{"question": "q", "chosen": "a", "rejected": "b"}], columns={"prompt": "questoin"})
    with pytest.raises(ConfigError, match="column 'x' has two names"):
        read_rows(tmp_path, [PAIR], columns={"prompt": "x", "chosen": "x"})
    with pytest.raises(DataError, match="another column the name 'prompt', which the row has already"):
        read_rows(tmp_path, [{**PAIR, "question": "q"}], columns={"prompt": "question"})
    groups, _ = read_rows(tmp_path, [{**PAIR, "question": "q"}], columns={"prompt": "question"}, ignore=("prompt",))
    assert groups[0].prompt == "q"


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_columns_of_files_of_every_kind(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"rows.{kind}"
    row = {"q": "Say it.", "good": "good words", "bad": "bad words"}
    if kind == "csv":
        path.write_text("q,good,bad\nSay it.,good words,bad words\n")
    elif kind == "json":
        path.write_text(json.dumps([row]))
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    groups, _ = read_groups(str(path), Reading(columns={"prompt": "q", "chosen": "good", "rejected": "bad"}))
    assert (groups[0].prompt, groups[0].responses) == ("Say it.", ("good words", "bad words"))


GUESSED: list[tuple[dict[str, Any], str]] = [
    ({"q": "x", "answer_good": "a", "answer_bad": "b", "question": "y"}, "{chosen: answer_good, rejected: answer_bad}"),
    ({"user_text": "x", "better": "a", "worse": "b"}, "{chosen: better, rejected: worse, prompt: user_text}"),
    ({"prompt": "p", "chosen": "a", "rejecetd": "b"}, "{rejected: rejecetd}"),
    ({"prompt": "p", "generations": ["a", "b"], "ratings": [1, 2]}, "{responses: generations, scores: ratings}"),
    (
        {"prompt": "p", "ans1": "a", "ans2": "b", "verdict": "1"},
        "{response_a: ans1, response_b: ans2, winner: verdict}",
    ),
    ({"ask": "p", "left": "a", "right": "b", "vote": "l"}, "{prompt: ask, response_a: left, response_b: right, winner"),
    ({"promt": "p", "completion": "a"}, "{prompt: promt}"),
    ({"problem": "p", "solution": "a"}, "{completion: solution, prompt: problem}"),
    ({"Prompt": "p", "Chosen": "a", "Rejected": "b"}, "{chosen: Chosen, rejected: Rejected, prompt: Prompt}"),
    ({"prompt": "p", "response_a": "a", "response_b": "b"}, "{winner: COLUMN}"),
    ({"prompt": "p", "positive": "a", "negative": "b"}, "{chosen: positive, rejected: negative}"),
    (
        {"prompt": "p", "generations": ["a", "b"], "ratings": [1, 2], "rationales": ["c", "d"]},
        "{responses: generations, scores: ratings}",
    ),
    ({"prompt": "p", "foo": "a", "bar": "b"}, "{prompt: COLUMN, chosen: COLUMN, rejected: COLUMN}"),
]


@pytest.mark.parametrize(("row", "mapping"), GUESSED)
def test_unknown_columns_get_the_mapping_to_write(tmp_path: Path, row: dict[str, Any], mapping: str) -> None:
    with pytest.raises(DataError) as caught:
        read_rows(tmp_path, [row])
    assert f"data.columns={mapping}" in caught.value.fix


def test_a_file_of_prompts_is_no_preference_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the rows have a prompt and no response(.|\n)*preftune sample"):
        read_rows(tmp_path, [{"prompt": "p", "id": 1}])


# ---- who won

SIDES = {"prompt": "p", "response_a": "x", "response_b": "y"}


@pytest.mark.parametrize(
    ("columns", "winners", "settings", "first"),
    [
        (("response_a", "response_b"), ["a", "b", "tie"], {}, ["x", "y", None]),
        (("response_a", "response_b"), ["model_b", "tie (bothbad)", "model_a"], {}, ["y", None, "x"]),
        (("response_a", "response_b"), ["response_b", "A"], {}, ["y", "x"]),
        (("response_a", "response_b"), [0, 1, 1.0], {}, ["x", "y", "y"]),
        (("response_a", "response_b"), ["1", "2"], {}, ["x", "y"]),
        (("response_1", "response_2"), [1, 1], {}, ["x", "x"]),
        (("response_0", "response_1"), [1, 1], {}, ["y", "y"]),
        (("output_1", "output_2"), [2, 1], {}, ["y", "x"]),
        (("response_a", "response_b"), ["l", "r", "-"], {"a": "l", "b": "r", "tie": "-"}, ["x", "y", None]),
        (("response_a", "response_b"), [1, 0], {"a": 1, "b": 0}, ["x", "y"]),
        (("response_a", "response_b"), [True, False], {"a": True, "b": False}, ["x", "y"]),
        (("response_a", "response_b"), [5, 4, 3], {"a": [5, 4], "b": 3}, ["x", "x", "y"]),
    ],
)
def test_winners(
    tmp_path: Path, columns: tuple[str, str], winners: list[Any], settings: dict[str, Any], first: list[str | None]
) -> None:
    rows = [{"prompt": "p", columns[0]: "x", columns[1]: "y", "winner": winner} for winner in winners]
    groups, account = read_rows(tmp_path, rows, winner_values=settings)
    found = {int(group.origin.rpartition(":")[2]): text for group, text in zip(groups, better_of(groups), strict=True)}
    assert [found.get(line) for line in range(1, len(rows) + 1)] == first
    assert len(account.dropped.get("tie", [])) == first.count(None)


def test_responses_of_votes_keep_their_order(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "response_a": "x", "response_b": "y", "winner": winner} for winner in "abb"]
    groups, _ = read_rows(tmp_path, rows)
    assert [group.responses for group in groups] == [("x", "y")] * 3
    assert [(group.judgements[0].better, group.judgements[0].worse) for group in groups] == [(0, 1), (1, 0), (1, 0)]


@pytest.mark.parametrize(
    ("winners", "more", "found"),
    [
        ("aaaaaa", {}, "all 6 verdicts are for the response that was shown first"),
        ("bbbbbbb", {}, "all 7 verdicts are for the response that was shown second"),
        ("tbbbbbbt", {}, "all 6 verdicts that are not ties are for the response that was shown second"),
        ("ttt", {}, "all 3 verdicts are ties"),
        ("aaa", {"probability": 0.5}, "all 3 verdicts are ties"),
        ("aaaaaa", {"probability": 0.1}, "all 6 verdicts are for the response that was shown second"),
        ("aaaaab", {}, ""),
        ("aaaaa", {}, ""),  # may be chance
        ("tttttttta", {}, ""),
    ],
)
def test_verdicts_that_do_not_depend_on_the_responses_are_noted(
    tmp_path: Path, winners: str, more: dict[str, float], found: str
) -> None:
    words = {"a": "a", "b": "b", "t": "tie"}
    sides = {"response_a": "x", "response_b": "y"}
    rows = [{"prompt": f"p{i}", **sides, "winner": words[w], **more} for i, w in enumerate(winners)]
    _, account = read_rows(tmp_path, rows)
    assert [note.startswith(found) for note in account.noted] == ([True] if found else [])
    posts = [{"info": {"post": f"p{i}"}, "summaries": [{"text": "x"}, {"text": "y"}]} for i in range(len(winners))]
    if "t" not in winners and not more:
        rows = [{**post, "choice": "ab".index(w)} for post, w in zip(posts, winners, strict=True)]
        _, account = read_rows(tmp_path, rows)
        assert [note.startswith(found) for note in account.noted] == ([True] if found else [])


@pytest.mark.parametrize(
    ("column", "values"), [("winner", [1, 1]), ("winner", [0, 2]), ("winner", [0, 1, 2]), ("label", [0, 1])]
)
def test_numbers_with_two_meanings_must_be_declared(tmp_path: Path, column: str, values: list[int]) -> None:
    with pytest.raises(DataError, match=r"not clear which response each means(.|\n)*data.winner_values=\{a: "):
        read_rows(tmp_path, [{**SIDES, column: value} for value in values])


def test_winner_values_have_known_sides(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.winner_values: unknown side 'A'"):
        read_rows(tmp_path, [{**SIDES, "winner": "l"}], winner_values={"A": "l"})
    with pytest.raises(ConfigError, match="'l' is declared twice"):
        read_rows(tmp_path, [{**SIDES, "winner": "l"}], winner_values={"a": "l", "b": "l"})


def test_columns_of_votes_are_mapped(tmp_path: Path) -> None:
    rows = [{"q": "p", "left": "x", "right": "y", "vote": vote} for vote in ("b", "a")]
    mapping = {"prompt": "q", "response_a": "left", "response_b": "right", "winner": "vote"}
    assert better_of(read_rows(tmp_path, rows, columns=mapping)[0]) == ["y", "x"]


def test_shp_counts_the_other_way(tmp_path: Path) -> None:
    row = {"history": "p", "human_ref_A": "x", "human_ref_B": "y", "post_id": "7", "domain": "d", "score_ratio": 2.0}
    groups, _ = read_rows(tmp_path, [{**row, "labels": 1}, {**row, "labels": 0}])
    assert [group.prompt for group in groups] == ["p", "p"]
    assert better_of(groups) == ["x", "y"]


# ---- scores


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("score_chosen", "score_rejected"),
        ("chosen_score", "rejected_score"),
        ("chosen-rating", "rejected-rating"),
        ("rating_chosen", "rating_rejected"),
        ("chosen_reward", "rejected_reward"),
        ("chosen_avg_rating", "rejected_avg_rating"),
    ],
)
def test_scores_are_read_under_all_their_names(tmp_path: Path, better: str, worse: str) -> None:
    groups, _ = read_rows(tmp_path, [{**PAIR, better: 3, worse: 1}], margin_from_scores=True)
    assert groups[0].judgements[0].margin == 2
    assert read_rows(tmp_path, [{**PAIR, better: 1, worse: 1}])[1].dropped
    with pytest.raises(DataError) as caught:
        read_rows(tmp_path, [{**PAIR, better: 1, worse: 3}])
    assert f"the rejected response has the higher score: {better} 1 and {worse} 3" in caught.value.what
    assert f"data.ignore=[{better}, {worse}]" in caught.value.fix
    assert len(read_rows(tmp_path, [{**PAIR, better: 1, worse: 3}], ignore=(better, worse))[0]) == 1
    assert len(read_rows(tmp_path, [{**PAIR, better: 1, worse: None}])[0]) == 1


# ---- messages stored as text

SIDE = {side: chat(("user", "hi?"), ("assistant", side)) for side in ("chosen", "rejected")}


@pytest.mark.parametrize("write", [json.dumps, repr, lambda value: json.dumps(value, indent=1)])
def test_dialogues_stored_as_text_are_dialogues(tmp_path: Path, write: Any) -> None:
    groups, account = read_rows(tmp_path, [{key: write(value) for key, value in SIDE.items()}] * 2)
    assert account.format == "chat-implicit"
    assert groups[0].prompt == (U("hi?"),)
    rows = [{"prompt": write(chat(("user", "hi?"))), "chosen": "[1, 2]", "rejected": "[]"}]
    assert read_rows(tmp_path, rows)[0][0].responses == ((A("[1, 2]"),), (A("[]"),))  # answers that are JSON stay text
    asked = {"input": write({"messages": chat(("user", "hi?"))}), "preferred_output": write(chat(("assistant", "\\d"))),
             "non_preferred_output": write(chat(("assistant", "b")))}  # fmt: skip
    assert read_rows(tmp_path, [asked])[0][0].responses == ((A("\\d"),), (A("b"),))
    ranked = [{"prompt": "p", "responses": write(["a", "b"]), "scores": write([1, 2])}]
    assert read_rows(tmp_path, ranked)[0][0].responses == ("a", "b")


def test_dialogues_that_are_cut_short_are_bad_rows(tmp_path: Path) -> None:
    rows = [{key: json.dumps(value) for key, value in SIDE.items()}] * 2
    rows.append({"chosen": rows[0]["chosen"][:-9], "rejected": rows[0]["rejected"]})
    with pytest.raises(DataError, match=r"rows.jsonl:3: column 'chosen': broken JSON: .*json.dumps"):
        read_rows(tmp_path, rows)


def test_messages_in_few_rows_stay_text_with_a_note(tmp_path: Path) -> None:
    groups, account = read_rows(tmp_path, [PAIR, {**PAIR, "chosen": json.dumps(SIDE["chosen"])}])
    assert isinstance(groups[1].responses[0], str)
    assert list(account.noted) == ["column 'chosen' holds messages as JSON text, which stays plain text"]


# ---- prompts


def test_prompts_take_context_names_and_refuse_what_belongs_to_them(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [{"question": "q", "system": "s", "answer": "not part of the prompt"}])
    groups, account = read_prompts(str(path))
    assert [group.prompt for group in groups] == [(S("s"), U("q"))]
    assert account.columns == {"question": "used", "system": "used", "answer": "metadata"}
    path = write_jsonl(tmp_path / "p.jsonl", [{"ask": "q", "images": ["x.png"]}])
    with pytest.raises(DataError, match="'images' holds images"):
        read_prompts(str(path), Reading(columns={"prompt": "ask"}))
    assert read_prompts(str(path), Reading(columns={"prompt": "ask"}, ignore=("images",)))[0][0].prompt == "q"
