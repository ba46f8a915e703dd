"""The ranked replies to each message of a conversation tree are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.unit.formats.examples import A, U, read_rows

from preftune.errors import DataError


def message(
    id: str, parent: str | None, role: str, text: str, rank: float | None = None, **more: Any
) -> dict[str, Any]:
    return {"message_id": id, "parent_id": parent, "role": role, "text": text, "rank": rank, "lang": "en"} | more


TABLE = [
    message("1", None, "prompter", "hello", emojis={"name": ["+1"], "count": [3]}, labels={"name": ["spam"]}),
    message("3", "1", "assistant", "bad", 1.0),
    message("2", "1", "assistant", "good", 0.0),
    message("4", "2", "prompter", "and now?"),
    message("5", "4", "assistant", "only reply"),
    message("6", "4", "assistant", "removed", 0, deleted=True),
    message("7", "3", "prompter", "why?"),
    message("8", "7", "assistant", "worse", 2),
    message("9", "7", "assistant", "better", 0),
    message("10", "gone", "assistant", "x", 0),
    message("11", "gone", "assistant", "y", 1),
]


def test_ranked_replies_of_a_table_are_compared(tmp_path: Path) -> None:
    (first, second), account = read_rows(tmp_path, TABLE)
    assert first.prompt == (U("hello"),)
    assert first.responses == ((A("good"),), (A("bad"),))
    assert second.prompt == (U("hello"), A("bad"), U("why?"))
    assert second.responses == ((A("better"),), (A("worse"),))
    assert [(j.better, j.worse) for g in (first, second) for j in g.judgements] == [(0, 1), (0, 1)]
    assert (account.read, account.kept) == (11, 6)
    lines = {reason: [o.rpartition(":")[2] for o in origins] for reason, origins in account.dropped.items()}
    assert lines == {
        "the message was deleted, or rejected in a review": ["6"],
        "the message has no ranked alternative": ["4", "5"],
        "an earlier message of the conversation is missing": ["10", "11"],
    }
    used = {"message_id", "parent_id", "role", "text", "rank", "deleted"}
    assert {name for name, status in account.columns.items() if status == "used"} == used
    assert set(account.columns) == used | {"lang", "emojis", "labels"}


def test_a_tree_in_one_row_gives_the_same_groups(tmp_path: Path) -> None:
    def nested(id: str) -> dict[str, Any]:
        row = next(row for row in TABLE if row["message_id"] == id)
        return row | {"replies": [nested(reply["message_id"]) for reply in TABLE if reply["parent_id"] == id]}

    table, _ = read_rows(tmp_path, TABLE)
    nested_groups, account = read_rows(tmp_path, [{"message_tree_id": "1", "prompt": nested("1")}])
    assert account.format == "tree"
    plain = [[(g.prompt, g.responses, g.judgements) for g in groups] for groups in (table, nested_groups)]
    assert plain[0] == plain[1]


def test_a_message_that_cannot_be_read_is_an_error_of_its_row(tmp_path: Path) -> None:
    rows = [*TABLE[:3], message("12", "1", "moderator", "x")]
    with pytest.raises(DataError, match=r"rows.jsonl:4: the message has the unknown role 'moderator'"):
        read_rows(tmp_path, rows)
    groups, account = read_rows(tmp_path, rows, bad_rows="drop")
    assert (len(groups), account.read, account.kept) == (1, 4, 3)
