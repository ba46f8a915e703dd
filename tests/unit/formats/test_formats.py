"""Every format: found from a row, and parsed to the group that the row means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_jsonl

from preftune.data.groups import hold_out, read_groups, refuse_overlap
from preftune.errors import DataError
from preftune.formats import column_roles, parse_votes
from preftune.formats.parsers import Reading, judgements_from_scores
from preftune.formats.table import BY_NAME, FORMATS, detect
from preftune.formats.values import BadRow, Drop, drop_empty_responses, message_of
from preftune.types import Judgement, Message, PreferenceGroup, as_json

U, A, S = (lambda text, role=role: Message(role, text) for role in ("user", "assistant", "system"))


def chat(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


PAIR = (Judgement(0, 1),)
SECOND = (Judgement(1, 0),)
# format, a row as it is found in the wild, the group it means
ROWS: list[tuple[str, dict[str, Any], PreferenceGroup]] = [
    ("preference", {"prompt": "p", "chosen": " a", "rejected": " b"}, PreferenceGroup("p", (" a", " b"), PAIR)),
    (
        "preference-implicit",
        {"chosen": "Q: why? A: because so", "rejected": "Q: why? A: better not"},
        PreferenceGroup("Q: why? A:", (" because so", " better not"), PAIR),
    ),
    (
        "hh",
        {"chosen": "\n\nHuman: hi\n\nAssistant: yes", "rejected": "\n\nHuman: hi\n\nAssistant: no"},
        PreferenceGroup("\n\nHuman: hi\n\nAssistant:", (" yes", " no"), PAIR),
    ),
    (
        "lists",
        {"prompt": "p", "chosen": [" a", " b"], "rejected": [" c", " a"], "subset": "Ties"},
        PreferenceGroup("p", (" a", " b", " c", " a"), (Judgement(0, 2), Judgement(1, 2), Judgement(1, 3))),
    ),
    (
        "chat",
        {"prompt": chat(("user", "hi")), "chosen": chat(("assistant", "a")), "rejected": chat(("assistant", "b"))},
        PreferenceGroup((U("hi"),), ((A("a"),), (A("b"),)), PAIR),
    ),
    (
        "chat",
        {"prompt": chat(("user", "hi")), "chosen": {"role": "assistant", "content": "a"}, "rejected": "b"},
        PreferenceGroup((U("hi"),), ((A("a"),), (A("b"),)), PAIR),
    ),
    (
        "preference",
        {"question": "q", "system": "s", "history": [["1", "2"]], "chosen": "a", "rejected": "b"},
        PreferenceGroup((S("s"), U("1"), A("2"), U("q")), ((A("a"),), (A("b"),)), PAIR),
    ),
    (
        "preference",
        {"prompt": "q", "input": "i", "chosen_response": "a", "rejected_response": "b", "chosen_avg_rating": 4},
        PreferenceGroup("q\ni", ("a", "b"), PAIR),
    ),
    (
        "preference",
        {"prompt": None, "question": "q", "response_j": "a", "response_k": "b"},
        PreferenceGroup("q", ("a", "b"), PAIR),
    ),
    (
        "chat",
        {"prompt": {"role": "User", "content": "hi"}, "chosen": {"role": "bot", "content": "a"}, "rejected": "b"},
        PreferenceGroup((U("hi"),), ((A("a"),), (A("b"),)), PAIR),
    ),
    (
        "chat",
        {
            "prompt": chat(("system", "s"), ("user", "hi")),
            "chosen": chat(("user", "hi"), ("assistant", "a")),
            "rejected": chat(("system", "s"), ("user", "hi"), ("assistant", "b")),
        },
        PreferenceGroup((S("s"), U("hi")), ((A("a"),), (A("b"),)), PAIR),
    ),
    (
        "chat",
        {"messages": chat(("user", "1"), ("assistant", "2"), ("user", "3")), "chosen": "a", "rejected": "b"},
        PreferenceGroup((U("1"), A("2"), U("3")), ((A("a"),), (A("b"),)), PAIR),
    ),
    (
        "chat",
        {
            "conversation": [{"speaker": "human", "message": "hi"}],
            "chosen": {"speaker": "gpt", "message": "a"},
            "rejected": {"speaker": "gpt", "message": "b"},
        },
        PreferenceGroup((U("hi"),), ((A("a"),), (A("b"),)), PAIR),
    ),
    (
        "chat-implicit",
        {
            "prompt": None,
            "system": "s",
            "chosen": chat(("user", "hi"), ("assistant", "a")),
            "rejected": chat(("user", "hi"), ("assistant", "b")),
        },
        PreferenceGroup((S("s"), U("hi")), ((A("a"),), (A("b"),)), PAIR),
    ),
    (
        "chat-implicit",
        {
            "chosen": chat(("system", "s"), ("user", "hi"), ("assistant", "a")),
            "rejected": chat(("system", "s"), ("user", "hi"), ("assistant", "b")),
        },
        PreferenceGroup((S("s"), U("hi")), ((A("a"),), (A("b"),)), PAIR),
    ),
    (
        "ultrafeedback",
        {
            "prompt": "hi",
            "prompt_id": "7",
            "chosen": chat(("user", "hi"), ("assistant", "a")),
            "rejected": chat(("user", "hi"), ("assistant", "b")),
            "messages": chat(("user", "hi"), ("assistant", "a")),
            "score_chosen": 8.0,
            "score_rejected": 6.5,
        },
        PreferenceGroup((U("hi"),), ((A("a"),), (A("b"),)), PAIR),
    ),
    (
        "sharegpt",
        {
            "conversations": [{"from": "human", "value": "hi"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
        PreferenceGroup((U("hi"),), ((A("a"),), (A("b"),)), PAIR),
    ),
    (
        "ultrafeedback",
        {"prompt": "hi", "chosen": {"role": "assistant", "content": "a"}, "rejected": "b"},
        PreferenceGroup((U("hi"),), ((A("a"),), (A("b"),)), PAIR),
    ),
    (
        "openai",
        {
            "input": {"messages": chat(("user", "hi")), "tools": [], "parallel_tool_calls": True},
            "preferred_output": chat(("assistant", "a")),
            "non_preferred_output": chat(("assistant", "b")),
        },
        PreferenceGroup((U("hi"),), ((A("a"),), (A("b"),)), PAIR),
    ),
    (
        "ranked",
        {"prompt": "p", "responses": ["x", "y", "z"], "scores": [0.5, 2.0, 0.5], "ended": [True, False, True]},
        PreferenceGroup(
            "p",
            ("x", "y", "z"),
            (Judgement(1, 0), Judgement(1, 2)),
            ranks=(2.0, 1.0, 2.0),
            ended=(True, False, True),
        ),
    ),
    (
        "ranked",
        {"prompt": "p", "answers": [{"answer": "x", "model": "m", "rank": 2.0}, {"answer": "y", "rank": 1.0}]},
        PreferenceGroup("p", ("x", "y"), (Judgement(1, 0),), ranks=(2.0, 1.0)),
    ),
    (
        "ranked",
        {
            "instruction": "p",
            "completions": [{"response": "x", "overall_score": 3}, {"response": "y", "overall_score": 9}],
        },
        PreferenceGroup("p", ("x", "y"), (Judgement(1, 0),), ranks=(2.0, 1.0)),
    ),
    (
        "ranked",
        {
            "context": chat(("user", "hi")),
            "completions": [
                {"rank": 0, "completion": chat(("assistant", "x"))},
                {"rank": 1, "completion": chat(("assistant", "y"))},
            ],
        },
        PreferenceGroup((U("hi"),), ((A("x"),), (A("y"),)), PAIR, ranks=(1.0, 2.0)),
    ),
    (
        "groups",
        {"prompt": "p", "responses": ["x", "y"], "judgements": [{"better": 1, "worse": 0, "probability": 0.8}]},
        PreferenceGroup("p", ("x", "y"), (Judgement(1, 0, probability=0.8),)),
    ),
    (
        "unpaired",
        {"prompt": "p", "completion": "c", "label": True},
        PreferenceGroup("p", ("c",), labels=(1,)),
    ),
    (
        "unpaired",
        {"prompt": chat(("user", "hi")), "completion": chat(("assistant", "c")), "label": 0},
        PreferenceGroup((U("hi"),), ((A("c"),),), labels=(-1,)),
    ),
    ("unpaired", {"prompt": "p", "completion": "c", "label": 0.0}, PreferenceGroup("p", ("c",), labels=(-1,))),
    (
        "unpaired",
        {"instruction": "do", "input": "this", "output": "c", "kto_tag": "True"},
        PreferenceGroup("do\nthis", ("c",), labels=(1,)),
    ),
    (
        "unpaired-messages",
        {"messages": chat(("user", "hi"), ("assistant", "c")), "kto_tag": False},
        PreferenceGroup((U("hi"),), ((A("c"),),), labels=(-1,)),
    ),
    (
        "last-turn",
        {"messages": chat(("user", "hi"), ("assistant", "a")), "rejected_response": "b"},
        PreferenceGroup((U("hi"),), ((A("a"),), (A("b"),)), PAIR),
    ),
    (
        "last-turn",
        {
            "messages": chat(("user", "hi"), ("assistant", "a")),
            "rejected_messages": chat(("user", "hi"), ("assistant", "b")),
        },
        PreferenceGroup((U("hi"),), ((A("a"),), (A("b"),)), PAIR),
    ),
    (
        "votes",
        {"prompt": "p", "response_a": "x", "response_b": "y", "winner": "B"},
        PreferenceGroup("p", ("x", "y"), SECOND),
    ),
    (
        "votes",
        {
            "conversation_a": chat(("user", "hi"), ("assistant", "a")),
            "conversation_b": chat(("user", "hi"), ("assistant", "b")),
            "winner": "model_a",
        },
        PreferenceGroup((U("hi"),), ((A("a"),), (A("b"),)), PAIR),
    ),
    (
        "votes",
        {"context": chat(("user", "hi")), "response1": "x", "response2": "y", "overall_preference": 2},
        PreferenceGroup((U("hi"),), ((A("x"),), (A("y"),)), SECOND),
    ),
    (
        "summaries",
        {
            "info": {"subreddit": "cats", "title": "t", "post": "p"},
            "summaries": [{"text": "x", "policy": "m"}, {"text": "y", "policy": "n"}],
            "choice": 1,
        },
        PreferenceGroup("SUBREDDIT: r/cats\n\nTITLE: t\n\nPOST: p\n\nTL;DR:", ("x", "y"), SECOND),
    ),
    (
        "sft-completion",
        {"instruction": "do", "input": "this", "output": "c", "text": "### do\nthis\nc"},
        PreferenceGroup("do\nthis", ("c",)),
    ),
    ("sft-completion", {"prompt": "p", "completion": "c"}, PreferenceGroup("p", ("c",))),
    ("sft-text", {"text": "t"}, PreferenceGroup("", ("t",))),
    (
        "sft-messages",
        {"messages": chat(("user", "hi"), ("assistant", "c"))},
        PreferenceGroup((U("hi"),), ((A("c"),),)),
    ),
    (
        "sft-conversations",
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "c"}]},
        PreferenceGroup((U("hi"),), ((A("c"),),)),
    ),
]
BY_EXAMPLE = {name: row for name, row, _ in reversed(ROWS)}  # the first of each


@pytest.mark.parametrize(("name", "row", "group"), ROWS, ids=[f"{i}-{r[0]}" for i, r in enumerate(ROWS)])
def test_row(name: str, row: dict[str, Any], group: PreferenceGroup) -> None:
    assert detect([row], "here").name == name
    assert list(BY_NAME[name].parse(row, Reading())) == [group]


TOOL_CALL = {"type": "function", "function": {"name": "w", "arguments": {"town": 1}}}


def test_other_fields_of_a_message_are_kept_as_json() -> None:
    row = {
        "prompt": [
            {"role": "user", "content": "hi", "name": "Ann", "from": None, "tool_calls": []},
            {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]},
            {"role": "observation", "tool_call_id": "1", "content": "21 C"},
        ],
        "chosen": [{"role": "assistant", "content": "a", "reasoning_content": "Größe"}],
        "rejected": [{"role": "assistant", "content": "a", "reasoning_content": "other"}],
    }
    [group] = BY_NAME["chat"].parse(row, Reading())
    assert isinstance(group.prompt, tuple)
    assert [m.extra for m in group.prompt] == [
        (("name", '"Ann"'),),
        (("tool_calls", json.dumps([TOOL_CALL])),),
        (("tool_call_id", '"1"'),),
    ]
    assert [(m.role, m.content) for m in group.prompt] == [("user", "hi"), ("assistant", ""), ("tool", "21 C")]
    assert group.responses[0] == (Message("assistant", "a", (("reasoning_content", '"Größe"'),)),)
    assert as_json(group.prompt)[1] == {"role": "assistant", "content": "", "tool_calls": [TOOL_CALL]}


def test_a_response_of_a_tool_call_or_of_reasoning_alone_is_not_empty() -> None:
    chosen = {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]}
    rejected = {"role": "assistant", "content": "", "thinking": "hm"}
    [group] = BY_NAME["chat"].parse({"prompt": chat(("user", "x")), "chosen": chosen, "rejected": rejected}, Reading())
    assert drop_empty_responses(group) == group
    same = {"prompt": chat(("user", "x")), "chosen": {**chosen, "id": 1}, "rejected": {**chosen, "id": 2}}
    with pytest.raises(Drop, match="identical responses"):  # an id is nothing that the model would say
        list(BY_NAME["chat"].parse(same, Reading()))


def test_a_turn_with_the_role_function_call_is_a_tool_call() -> None:
    call = {"name": "w", "arguments": {"town": 1}}
    turns = [{"from": "human", "value": "x"}, {"from": "function_call", "value": json.dumps(call)}]
    turns.append({"from": "observation", "value": "21 C"})
    [group] = BY_NAME["sharegpt"].parse({"conversations": turns, "chosen": "a", "rejected": "b"}, Reading())
    assert as_json(group.prompt)[1] == {"role": "assistant", "content": "", "tool_calls": [TOOL_CALL]}


@pytest.mark.parametrize("role", ["User", "HUMAN", "human", "prompter"])
def test_roles_are_read_in_any_spelling(role: str) -> None:
    assert message_of({"role": role, "content": "x"}, "m") == U("x")


def test_every_format_has_a_row() -> None:
    assert {row[0] for row in ROWS} == {f.name for f in FORMATS}


def test_every_format_and_every_other_name_of_a_column_is_in_the_docs() -> None:
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    names = [
        *BY_NAME,
        *column_roles.COMPLETIONS,
        *column_roles.SYSTEMS,
        *column_roles.KINDS_OF_SCORE,
        *parse_votes.STRENGTHS,
    ]
    assert [name for name in (*names, *column_roles.PROMPTS) if f"`{name}`" not in page] == []


def test_every_example_is_json_with_its_columns() -> None:
    for form in FORMATS:
        text = form.example
        for shorthand in ("[message, ...]", '[message] or message or "..."', "[message]"):
            text = text.replace(shorthand, "[]")
        text = text.replace("[...]", "[]").replace("{...}", "{}").replace(": ...", ": null").replace(", ...", "")
        assert set(form.columns) == set(json.loads(text)), form.name


def test_sft_messages_train_every_assistant_turn() -> None:
    row = {"messages": chat(("user", "1"), ("assistant", "a"), ("user", "2"), ("assistant", "b"))}
    groups = list(BY_NAME["sft-messages"].parse(row, Reading()))
    assert [g.responses for g in groups] == [((A("a"),),), ((A("b"),),)]
    assert groups[1].prompt == (U("1"), A("a"), U("2"))


# format, row, reason that it is counted under
DROPPED = [
    (
        "chat",
        {"prompt": chat(("user", "x")), "chosen": {"role": "assistant", "content": "", "weight": 1}, "rejected": "b"},
        "empty response",
    ),
    (
        "sft-messages",
        {"messages": [*chat(("user", "x")), {"role": "assistant", "content": "y", "weight": 0}]},
        "all assistant turns have weight 0",
    ),
    ("preference", {"prompt": "p", "chosen": "a", "rejected": "a"}, "identical responses"),
    ("preference", {"prompt": "p", "chosen": " \n", "rejected": "a"}, "empty response"),
    ("preference", {"prompt": "p", "chosen": "a", "rejected": "b", "weight": 0}, "weight is not above 0"),
    ("ultrafeedback", BY_EXAMPLE["ultrafeedback"] | {"score_rejected": 8.0}, "tied scores"),
    (
        "hh",
        {"chosen": "\n\nHuman: a\n\nAssistant: x", "rejected": "\n\nHuman: b\n\nAssistant: y"},
        "prompts of chosen and rejected differ",
    ),
    (
        "hh",
        {"chosen": "\n\nHuman: a\n\nAssistant: x\n\nHuman: b", "rejected": "..."},
        "transcript ends with a human turn",
    ),
    (
        "preference-implicit",
        {"chosen": "so it is", "rejected": "so it is not"},
        "one text is the beginning of the other",
    ),
    (
        "chat-implicit",
        {"chosen": chat(("user", "1")), "rejected": chat(("user", "2"))},
        "prompts of chosen and rejected differ",
    ),
    (
        "chat-implicit",
        {
            "chosen": chat(("user", "1"), ("assistant", "a"), ("user", "2"), ("assistant", "b")),
            "rejected": chat(("user", "1"), ("assistant", "c"), ("user", "2"), ("assistant", "d")),
        },
        "several turns after the prompt",
    ),
    ("preference", {"prompt": "p", "chosen": "a", "rejected": "b", "status": "tie"}, "tie"),
    ("votes", {"prompt": "p", "response_a": "x", "response_b": "y", "winner": "tie (bothbad)"}, "tie"),
    ("votes", {"prompt": "p", "response_1": "x", "response_2": "y", "preference_strength": 0}, "tie"),
    (
        "chat",
        {
            "prompt": chat(("user", "1")),
            "chosen": chat(("user", "2"), ("assistant", "a")),
            "rejected": chat(("user", "2"), ("assistant", "b")),
        },
        "the dialogue does not begin with the prompt",
    ),
    ("ranked", {"prompt": "p", "responses": ["x", "y"], "scores": [1, 1]}, "tied scores"),
    ("ranked", {"prompt": "p", "responses": ["x", "x"], "scores": [1, 2]}, "identical responses"),
    ("ranked", {"prompt": "p", "responses": ["x"], "scores": [1]}, "fewer than two responses"),
    ("sft-messages", {"messages": chat(("user", "1"))}, "no assistant turn after another turn"),
]


@pytest.mark.parametrize(("name", "row", "reason"), DROPPED)
def test_nothing_to_learn(name: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(Drop, match=reason):
        list(BY_NAME[name].parse(row, Reading()))


# format, row, part of the message
BAD = [
    ("preference", {"prompt": "p", "chosen": "a", "rejecetd": "b"}, "'rejected' is missing; did you mean 'rejecetd'"),
    ("preference", {"prompt": None, "chosen": "a", "rejected": "b"}, "'prompt' is null"),
    ("preference", {"prompt": "p", "chosen": 3, "rejected": "b"}, "'chosen' must be text, not a number"),
    ("preference", {"prompt": "p", "chosen": ["a"], "rejected": "b"}, "'chosen' must be text, not a list"),
    ("preference", {"prompt": "p", "chosen": "a\ud800", "rejected": "b"}, "a lone surrogate at character 1"),
    ("preference", {"prompt": "p", "chosen": "a", "rejected": "b", "margin": "big"}, "'margin' must be a number"),
    ("preference", {"prompt": "p", "chosen": "a", "rejected": "b", "probability": 2}, "between 0 and 1"),
    ("ultrafeedback", BY_EXAMPLE["ultrafeedback"] | {"score_rejected": 9.0}, "rejected response has the higher score"),
    (
        "chat",
        {"prompt": [{"role": "robot", "content": "x"}], "chosen": "a", "rejected": "b"},
        r"prompt\[0\] has the unknown role 'robot'",
    ),
    ("chat", {"prompt": [{"role": "user", "content": None}], "chosen": "a", "rejected": "b"}, "must be text, not null"),
    (
        "chat",
        {"prompt": chat(("user", "x")), "chosen": {"role": "assistant"}, "rejected": "b"},
        "must be text, not null",
    ),
    (
        "chat",
        {"prompt": [{"role": "user", "content": [{"type": "image"}]}], "chosen": "a", "rejected": "b"},
        r"prompt\[0\].content\[0\] has content that is not text: 'image'",
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "function_call", "value": "look it up"}], "chosen": "a", "rejected": "b"},
        r"conversations\[0\] has the role 'function_call', but its text is not JSON",
    ),
    (
        "chat",
        {"messages": chat(("user", "x"), ("assistant", "y")), "chosen": "a", "rejected": "b"},
        "'messages' ends with an assistant turn that is not the chosen response",
    ),
    ("preference", {"prompt": "p", "system": ["s"], "chosen": "a", "rejected": "b"}, "'system' must be text"),
    ("preference", {"prompt": "p", "history": ["q"], "chosen": "a", "rejected": "b"}, "'history' must be a list of"),
    (
        "preference",
        {"prompt": "p", "input": ["q"], "chosen": "a", "rejected": "b"},
        "'input', which is appended to 'prompt', must be",
    ),
    (
        "chat-implicit",
        {"chosen": chat(("assistant", "a")), "rejected": chat(("assistant", "b"))},
        "the row has no prompt",
    ),
    ("votes", {"prompt": "p", "response_a": "x", "response_b": "y", "winner": "left"}, "not 'left'"),
    ("votes", {"prompt": "p", "response_a": "x", "response_b": "y", "winner": None}, "'winner' is null"),
    ("summaries", {"info": {"post": "p"}, "summaries": [{"text": "x"}], "choice": 0}, "a list of two"),
    ("last-turn", {"messages": chat(("user", "x")), "rejected_response": "b"}, "must end with the assistant turn"),
    (
        "ranked",
        {"prompt": "p", "answers": [{"text": "x", "reasoning": "r", "rank": 1}, {"text": "y", "rank": 2}]},
        "only one field can be the response",
    ),
    ("openai", {"input": {"messages": chat(("user", "x")), "functions": [1]}, "preferred_output": []}, "'functions'"),
    ("ranked", {"prompt": "p", "responses": ["x", "y"]}, "they cannot be compared"),
    ("ranked", {"prompt": "p", "responses": ["x", "y"], "scores": [1]}, "'scores' has 1 entries for 2 responses"),
    ("ranked", {"prompt": "p", "responses": ["x", "y"], "scores": [1, None]}, r"scores\[1\] is null"),
    ("ranked", {"prompt": "p", "responses": ["x", "y"], "scores": [1, 2], "ended": [True]}, "list of 2 values"),
    ("unpaired", {"prompt": "p", "completion": "c", "label": "perhaps"}, "true or false, not 'perhaps'"),
    ("groups", {"prompt": "p", "responses": ["x"], "judgements": [{"better": 0, "worse": 1}]}, "does not exist"),
    ("groups", {"prompt": "p", "responses": ["x"], "judgements": [{"bettr": 0}]}, "an object with better and worse"),
    ("openai", {"input": "hi", "preferred_output": [], "non_preferred_output": []}, "'input' must be an object"),
]


@pytest.mark.parametrize(("name", "row", "message"), BAD)
def test_broken_row(name: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRow, match=message):
        list(BY_NAME[name].parse(row, Reading()))


def test_pairing_of_rankings() -> None:
    scores = [3.0, 1.0, 2.0, 2.0]
    assert {(j.better, j.worse) for j in judgements_from_scores(scores, Reading(pairs="all"))} == {
        (0, 1),
        (0, 2),
        (0, 3),
        (2, 1),
        (3, 1),
    }
    assert {(j.better, j.worse) for j in judgements_from_scores(scores, Reading(pairs="best-worst"))} == {(0, 1)}
    assert {(j.better, j.worse) for j in judgements_from_scores(scores, Reading(pairs="adjacent"))} == {(0, 2), (3, 1)}
    assert [j.margin for j in judgements_from_scores([1.0, 4.0], Reading(margin_from_scores=True))] == [3.0]


def test_margin_from_scores_of_pairs() -> None:
    group = next(iter(BY_NAME["ultrafeedback"].parse(BY_EXAMPLE["ultrafeedback"], Reading(margin_from_scores=True))))
    assert group.judgements[0].margin == 1.5
    with pytest.raises(BadRow, match="needs the columns score_chosen"):
        list(BY_NAME["preference"].parse(ROWS[0][1], Reading(margin_from_scores=True)))


def test_every_row_is_kept_or_counted(tmp_path: Path) -> None:
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    rows = [good, {**good, "rejected": "a"}, {**good, "chosen": ""}, good, {**good, "chosen": 5}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    groups, account = read_groups(str(path), Reading(bad_rows="drop"))
    assert [g.origin for g in groups] == [f"{path}:1", f"{path}:4"]
    assert account.dropped == {
        "identical responses": [f"{path}:2"],
        "empty response": [f"{path}:3"],
        "cannot be read: column 'chosen' must be text, not a number": [f"{path}:5"],
    }
    assert (account.read, account.kept) == (5, 2)
    with pytest.raises(DataError, match=r"60%"):
        account.check(0.2)
    with pytest.raises(DataError, match=r"a.jsonl:5: column 'chosen' must be text"):
        read_groups(str(path))


def test_a_late_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    line = json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"}) + "\n"
    path.write_text(line * 5000 + '{"prompt": \n' + line)
    with pytest.raises(DataError, match=r"a.jsonl:5001: broken JSON"):
        read_groups(str(path))


def test_unknown_columns_name_the_nearest_formats(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "p", "chosen": "a", "rejecetd": "b"}])
    with pytest.raises(DataError, match=r"'rejected' \(did you mean 'rejecetd'\?\)"):
        read_groups(str(path))


def test_mixed_rows_name_the_odd_one(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": chat(("user", "x")), "chosen": "a", "rejected": "b"},
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=r"a.jsonl:2: column 'prompt' must be text, not a list"):
        read_groups(str(path))


def test_columns_can_be_ignored(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b", "margin": "?"}])
    assert len(read_groups(str(path), Reading(ignore=("margin",)))[0]) == 1


def test_a_function_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from preftune import Judgement, PreferenceGroup\n"
        "def votes(row):\n"
        "    if row['q'] == 'bad': raise ValueError('no votes')\n"
        "    return PreferenceGroup(row['q'], tuple(row['a']), (Judgement(0, 1),))\n"
        "def wrong(row):\n"
        "    return [1]\n"
    )
    path = write_jsonl(tmp_path / "a.jsonl", [{"q": "x", "a": ["1", "2"]}, {"q": "bad", "a": []}])
    groups, account = read_groups(str(path), Reading(format=f"{tmp_path / 'mine.py'}:votes", bad_rows="drop"))
    assert [(g.prompt, g.responses, g.origin) for g in groups] == [("x", ("1", "2"), f"{path}:1")]
    [(reason, origins)] = account.dropped.items()
    assert "no votes" in reason
    assert origins == [f"{path}:2"]
    with pytest.raises(DataError, match="returned a list with an item of type int; return a PreferenceGroup"):
        read_groups(str(path), Reading(format=f"{tmp_path / 'mine.py'}:wrong"))


def test_hold_out_by_prompt() -> None:
    groups = [PreferenceGroup(f"p{i % 10}", ("a", "b"), PAIR, origin=f"f:{i}") for i in range(40)]
    train, held = hold_out(groups, 0.2)
    assert len(train) + len(held) == 40
    assert len({g.prompt for g in held}) == 2
    assert not {g.prompt for g in held} & {g.prompt for g in train}
    assert hold_out(list(reversed(groups)), 0.2)[1] == list(reversed(held))
    with pytest.raises(DataError, match="cannot hold out"):
        hold_out(groups[:1], 0.2)


def test_overlap_is_refused() -> None:
    groups = [PreferenceGroup(f"p{i}", ("a", "b"), PAIR, origin=f"f:{i + 1}") for i in range(3)]
    with pytest.raises(DataError, match=r"1 of 1 evaluation prompts are also in the training data"):
        refuse_overlap(groups, groups[2:])
    refuse_overlap(groups[:2], groups[2:])
