"""Conversation trees (OpenAssistant): the ranked replies to a message become the responses of one group.

A tree is stored as a table with one message per row, or nested in one row, where each message has its `replies`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from preftune.formats.account import UNCOMPARED, Account
from preftune.formats.parsers import Reading, ranked
from preftune.formats.values import ROLES, BadRow, Drop, Fields, as_number, get, kind_name, peek
from preftune.sources.rows import Row
from preftune.types import PreferenceGroup

READ = ("message_id", "parent_id", "text", "role", "rank", "deleted", "review_result")
ORIGINS = {"prompt": "text", "responses": "text", "ranks": "rank"}  # the columns that a comparison is made from
#: Columns of OpenAssistant's tables that describe a message.
DESCRIBING = {"emojis", "labels", "detoxify", "user_id", "message_tree_id", "tree_state"}
REJECTED = "the message was deleted, or rejected in a review"
NO_PARENT = "an earlier message of the conversation is missing"


@dataclass(frozen=True, slots=True)
class Node:
    """One message of a tree. `rank` is 0 for the best reply, or None."""

    id: str
    parent: str | None
    role: str
    text: str
    rank: float | None
    row: Row

    @property
    def message(self) -> dict[str, str]:
        """The message as a dict with role and content."""
        return {"role": self.role, "content": self.text}


def are_messages(rows: Sequence[Fields]) -> bool:
    """Return whether the rows are the messages of trees, one per row."""
    return bool(rows) and all(
        {"message_id", "parent_id", "text", "role"} <= row.keys() and isinstance(row["role"], str) for row in rows
    )


def compared(rows: Iterable[Row], account: Account, statuses: dict[str, str]) -> Iterator[Row]:
    """Yield one row of the format `ranked` for each message with several ranked replies.

    All rows are read first. Messages that are neither a response nor part of a prompt are dropped. `statuses` gets the
    status of each column that the yielded rows do not have.
    """
    nodes: dict[str, Node] = {}
    for row in rows:
        if row.fault or row.value.get("message_id") is None:
            yield row if row.fault else Row({}, row.origin, "the message has no id")
            continue
        statuses |= {name: "used" if name in READ else "metadata" for name in row.value if _is_left_out(name)}
        if row.value.get("deleted") is True or row.value.get("review_result") is False:
            account.read += 1
            account.drop(REJECTED, row.origin)
            continue
        try:
            node = _node(row.value, row)
        except BadRow as fault:
            yield Row({}, row.origin, str(fault))
            continue
        nodes[node.id] = node
    account.note("the ranked replies to each message were compared", account.source)
    responses, context = set[str](), set[str]()
    for path, replies in comparisons(nodes):
        first, *others = replies
        rest = {name: value for name, value in first.row.value.items() if not _is_left_out(name)}
        yield Row(
            rest | _comparison(path, replies), first.row.origin, others=tuple(reply.row.origin for reply in others)
        )
        responses |= {reply.id for reply in replies}
        context |= {node.id for node in path}
    for node in nodes.values():
        if node.id not in responses:
            account.read += 1
            if node.id not in context:
                complete = _path(node, nodes) is not None
                account.drop(UNCOMPARED if complete else NO_PARENT, node.row.origin)


def _is_left_out(name: str) -> bool:
    return name in READ or name in DESCRIBING


def is_tree(row: Fields) -> bool:
    """Return whether a row is a whole tree, whose `prompt` has its replies in it."""
    prompt = peek(row, "prompt")
    return isinstance(prompt, dict) and isinstance(prompt.get("replies"), list)


def tree(row: Fields, reading: Reading) -> list[PreferenceGroup]:
    """Parse a whole tree."""
    nodes: dict[str, Node] = {}
    _add_nested(get(row, "prompt"), None, nodes)
    groups: list[PreferenceGroup] = []
    reason = UNCOMPARED
    for path, replies in comparisons(nodes):
        try:
            groups += ranked(_comparison(path, replies), reading)
        except Drop as drop:
            reason = str(drop)
    if not groups:
        raise Drop(reason)
    return groups


def _add_nested(value: Any, parent: str | None, nodes: dict[str, Node]) -> None:
    if not isinstance(value, dict):
        raise BadRow("each message of the tree must be an object with role and text")
    if value.get("deleted") is True or value.get("review_result") is False:
        return
    node = _node({**value, "message_id": str(len(nodes)), "parent_id": parent}, Row({}, ""))
    nodes[node.id] = node
    replies = value.get("replies") or []
    if not isinstance(replies, list):
        raise BadRow(f"the replies to a message must be a list, not {kind_name(replies)}")
    for reply in replies:
        _add_nested(reply, node.id, nodes)


def _node(value: Fields, row: Row) -> Node:
    role, text = value.get("role"), value.get("text")
    if not isinstance(role, str) or role not in ROLES:
        raise BadRow(f"the message has the unknown role {role!r}")
    if not isinstance(text, str):
        raise BadRow("the message has no text")
    parent = value["parent_id"]
    return Node(
        str(value["message_id"]),
        None if parent in (None, "") else str(parent),
        ROLES[role],
        text,
        as_number(value.get("rank")),
        row,
    )


def comparisons(nodes: dict[str, Node]) -> Iterator[tuple[list[Node], list[Node]]]:
    """Yield (the messages up to one with several ranked replies, these replies from the best to the worst)."""
    replies: dict[str, list[Node]] = defaultdict(list)
    for node in nodes.values():
        if node.parent is not None and node.role == "assistant" and node.rank is not None:
            replies[node.parent].append(node)
    for id, several in replies.items():
        path = _path(nodes[id], nodes) if id in nodes and len(several) > 1 else None
        if path:
            yield path, sorted(several, key=lambda node: node.rank or 0)


def _path(node: Node, nodes: dict[str, Node]) -> list[Node] | None:
    """Return the messages from the root to this one, or None if one of them is missing."""
    path = [node]
    while path[-1].parent is not None:
        parent = nodes.get(path[-1].parent)
        if parent is None or parent in path:
            return None
        path.append(parent)
    return path[::-1]


def _comparison(path: Sequence[Node], replies: Sequence[Node]) -> Fields:
    return {
        "prompt": [node.message for node in path],
        "responses": [reply.text for reply in replies],
        "ranks": [reply.rank for reply in replies],
    }
