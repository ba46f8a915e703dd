"""One row per format with the group that it is parsed to, and functions that tests of formats share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.conftest import write_jsonl

from preftune.data.read_groups import read_groups
from preftune.formats.account import Account
from preftune.formats.parsers import Reading
from preftune.types import Judgement, Message, PreferenceGroup

U, A, S = (lambda text, role=role: Message(role, text) for role in ("user", "assistant", "system"))


def chat(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


FIRST_IS_BETTER = (Judgement(0, 1),)


SECOND_IS_BETTER = (Judgement(1, 0),)


PAIR_ROW: dict[str, Any] = {"prompt": "Say it.", "chosen": "good words", "rejected": "bad words"}


def read_rows(folder: Path, rows: list[dict[str, Any]], **reading: Any) -> tuple[list[PreferenceGroup], Account]:
    return read_groups(str(write_jsonl(folder / "rows.jsonl", rows)), Reading(**reading))


def better_responses(groups: list[PreferenceGroup]) -> list[Any]:
    """Return the better response of each pair."""
    return [group.responses[group.judgements[0].better] for group in groups]


# format, a row as in real data, the expected group
EXAMPLES: list[tuple[str, dict[str, Any], PreferenceGroup]] = [
    (
        "preference",
        {"prompt": "p", "chosen": " a", "rejected": " b"},
        PreferenceGroup("p", (" a", " b"), FIRST_IS_BETTER),
    ),
    (
        "preference-implicit",
        {"chosen": "Q: why? A: because so", "rejected": "Q: why? A: better not"},
        PreferenceGroup("Q: why? A:", (" because so", " better not"), FIRST_IS_BETTER),
    ),
    (
        "tree",
        {
            "prompt": {
                "role": "prompter",
                "text": "p",
                "replies": [{"role": "assistant", "text": text, "rank": rank} for text, rank in (("b", 1), ("a", 0))],
            }
        },
        PreferenceGroup((U("p"),), ((A("a"),), (A("b"),)), FIRST_IS_BETTER, ranks=(1.0, 2.0)),
    ),
    (
        "hh",
        {"chosen": "\n\nHuman: hi\n\nAssistant: yes", "rejected": "\n\nHuman: hi\n\nAssistant: no"},
        PreferenceGroup("\n\nHuman: hi\n\nAssistant:", (" yes", " no"), FIRST_IS_BETTER),
    ),
    (
        "lists",
        {"prompt": "p", "chosen": [" a", " b"], "rejected": [" c", " a"], "subset": "Ties"},
        PreferenceGroup("p", (" a", " b", " c", " a"), (Judgement(0, 2), Judgement(1, 2), Judgement(1, 3))),
    ),
    (
        "chat",
        {"prompt": chat(("user", "hi")), "chosen": chat(("assistant", "a")), "rejected": chat(("assistant", "b"))},
        PreferenceGroup((U("hi"),), ((A("a"),), (A("b"),)), FIRST_IS_BETTER),
    ),
    (
        "chat",
        {"prompt": chat(("user", "hi")), "chosen": {"role": "assistant", "content": "a"}, "rejected": "b"},
        PreferenceGroup((U("hi"),), ((A("a"),), (A("b"),)), FIRST_IS_BETTER),
    ),
    (
        "preference",
        {"question": "q", "system": "s", "history": [["1", "2"]], "chosen": "a", "rejected": "b"},
        PreferenceGroup((S("s"), U("1"), A("2"), U("q")), ((A("a"),), (A("b"),)), FIRST_IS_BETTER),
    ),
    (
        "preference",
        {"prompt": "q", "input": "i", "chosen_response": "a", "rejected_response": "b", "chosen_avg_rating": 4},
        PreferenceGroup("q\ni", ("a", "b"), FIRST_IS_BETTER),
    ),
    (
        "preference",
        {"prompt": None, "question": "q", "response_j": "a", "response_k": "b"},
        PreferenceGroup("q", ("a", "b"), FIRST_IS_BETTER),
    ),
    (
        "chat",
        {"prompt": {"role": "User", "content": "hi"}, "chosen": {"role": "bot", "content": "a"}, "rejected": "b"},
        PreferenceGroup((U("hi"),), ((A("a"),), (A("b"),)), FIRST_IS_BETTER),
    ),
    (
        "chat",
        {
            "prompt": chat(("system", "s"), ("user", "hi")),
            "chosen": chat(("user", "hi"), ("assistant", "a")),
            "rejected": chat(("system", "s"), ("user", "hi"), ("assistant", "b")),
        },
        PreferenceGroup((S("s"), U("hi")), ((A("a"),), (A("b"),)), FIRST_IS_BETTER),
    ),
    (
        "chat",
        {"messages": chat(("user", "1"), ("assistant", "2"), ("user", "3")), "chosen": "a", "rejected": "b"},
        PreferenceGroup((U("1"), A("2"), U("3")), ((A("a"),), (A("b"),)), FIRST_IS_BETTER),
    ),
    (
        "chat",
        {
            "conversation": [{"speaker": "human", "message": "hi"}],
            "chosen": {"speaker": "gpt", "message": "a"},
            "rejected": {"speaker": "gpt", "message": "b"},
        },
        PreferenceGroup((U("hi"),), ((A("a"),), (A("b"),)), FIRST_IS_BETTER),
    ),
    (
        "chat-implicit",
        {
            "prompt": None,
            "system": "s",
            "chosen": chat(("user", "hi"), ("assistant", "a")),
            "rejected": chat(("user", "hi"), ("assistant", "b")),
        },
        PreferenceGroup((S("s"), U("hi")), ((A("a"),), (A("b"),)), FIRST_IS_BETTER),
    ),
    (
        "chat-implicit",
        {
            "chosen": chat(("system", "s"), ("user", "hi"), ("assistant", "a")),
            "rejected": chat(("system", "s"), ("user", "hi"), ("assistant", "b")),
        },
        PreferenceGroup((S("s"), U("hi")), ((A("a"),), (A("b"),)), FIRST_IS_BETTER),
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
        PreferenceGroup((U("hi"),), ((A("a"),), (A("b"),)), FIRST_IS_BETTER),
    ),
    (
        "sharegpt",
        {
            "conversations": [{"from": "human", "value": "hi"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
        PreferenceGroup((U("hi"),), ((A("a"),), (A("b"),)), FIRST_IS_BETTER),
    ),
    (
        "ultrafeedback",
        {"prompt": "hi", "chosen": {"role": "assistant", "content": "a"}, "rejected": "b"},
        PreferenceGroup((U("hi"),), ((A("a"),), (A("b"),)), FIRST_IS_BETTER),
    ),
    (
        "openai",
        {
            "input": {"messages": chat(("user", "hi")), "tools": [], "parallel_tool_calls": True},
            "preferred_output": chat(("assistant", "a")),
            "non_preferred_output": chat(("assistant", "b")),
        },
        PreferenceGroup((U("hi"),), ((A("a"),), (A("b"),)), FIRST_IS_BETTER),
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
        PreferenceGroup((U("hi"),), ((A("x"),), (A("y"),)), FIRST_IS_BETTER, ranks=(1.0, 2.0)),
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
        PreferenceGroup((U("hi"),), ((A("a"),), (A("b"),)), FIRST_IS_BETTER),
    ),
    (
        "last-turn",
        {
            "messages": chat(("user", "hi"), ("assistant", "a")),
            "rejected_messages": chat(("user", "hi"), ("assistant", "b")),
        },
        PreferenceGroup((U("hi"),), ((A("a"),), (A("b"),)), FIRST_IS_BETTER),
    ),
    (
        "votes",
        {"prompt": "p", "response_a": "x", "response_b": "y", "winner": "B"},
        PreferenceGroup("p", ("x", "y"), SECOND_IS_BETTER),
    ),
    (
        "votes",
        {
            "conversation_a": chat(("user", "hi"), ("assistant", "a")),
            "conversation_b": chat(("user", "hi"), ("assistant", "b")),
            "winner": "model_a",
        },
        PreferenceGroup((U("hi"),), ((A("a"),), (A("b"),)), FIRST_IS_BETTER),
    ),
    (
        "votes",
        {"context": chat(("user", "hi")), "response1": "x", "response2": "y", "overall_preference": 2},
        PreferenceGroup((U("hi"),), ((A("x"),), (A("y"),)), SECOND_IS_BETTER),
    ),
    (
        "summaries",
        {
            "info": {"subreddit": "cats", "title": "t", "post": "p"},
            "summaries": [{"text": "x", "policy": "m"}, {"text": "y", "policy": "n"}],
            "choice": 1,
        },
        PreferenceGroup("SUBREDDIT: r/cats\n\nTITLE: t\n\nPOST: p\n\nTL;DR:", ("x", "y"), SECOND_IS_BETTER),
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


EXAMPLE_ROWS = {name: row for name, row, _ in reversed(EXAMPLES)}  # the first of each
