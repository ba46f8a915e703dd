"""Groups of text in an Arrow file.

    chat        1 if prompt and responses are chats, which are stored as JSON, else 0
    prompt      bytes (UTF-8)
    responses   list of bytes
    ended       list of int8, 1 or 0

and the columns of `arrow_file`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from preftune.data.arrow_file import (
    Bytes,
    Columns,
    GroupFile,
    Lists,
    Writer,
    bytes_column,
    decode,
    encode,
    list_column,
    numbers,
    view,
)
from preftune.types import Message, PreferenceGroup, Text


def encode_text(text: Text) -> bytes:
    """Encode a text, or a chat as JSON: [[role, content, [[name, value], ...]], ...]."""
    if isinstance(text, str):
        return encode(text)
    return encode(json.dumps([[m.role, m.content, m.extra] for m in text], ensure_ascii=False))


def decode_text(data: memoryview, chat: bool) -> Text:
    """Return what `encode_text` has encoded."""
    text = decode(data)
    if not chat:
        return text
    return tuple(
        Message(role, content, tuple((name, value) for name, value in extra))
        for role, content, extra in json.loads(text)
    )


class TextWriter(Writer[PreferenceGroup]):
    """Writes a file of text."""

    @staticmethod
    def size(group: PreferenceGroup) -> int:
        return sum(
            len(text) if isinstance(text, str) else sum(len(message.content) for message in text)
            for text in (group.prompt, *group.responses)
        )

    def columns(self, groups: Sequence[PreferenceGroup]) -> dict[str, Any]:
        chats = [not isinstance(group.prompt, str) for group in groups]
        responses = [response for group in groups for response in group.responses]
        kinds = [chat for group, chat in zip(groups, chats, strict=True) for _ in group.responses]
        assert kinds == [not isinstance(response, str) for response in responses]  # parsers.group_of
        texts = bytes_column(list(map(encode_text, responses)))
        ended = numbers([end for group in groups for end in group.ended], np.int8)
        return {
            "chat": numbers(chats, np.int8),
            "prompt": bytes_column([encode_text(group.prompt) for group in groups]),
            "responses": list_column([len(group.responses) for group in groups], texts),
            "ended": list_column([len(group.ended) for group in groups], ended),
        }


class TextColumns(Columns):
    """The columns of a record batch of text."""

    def __init__(self, batch: Any) -> None:
        super().__init__(batch)
        self._chat = view(batch["chat"], np.int8)
        self._prompts, self._groups, self._ends = (
            Bytes(batch["prompt"]),
            Lists(batch["responses"]),
            Lists(batch["ended"]),
        )
        self._responses = Bytes(self._groups.values)
        self._ended = view(self._ends.values, np.int8)

    def prompt(self, index: int) -> Text:
        return decode_text(self._prompts[index], bool(self._chat[index]))

    def group(self, index: int) -> PreferenceGroup:
        chat, (begin, end) = bool(self._chat[index]), self._ends.bounds(index)
        return PreferenceGroup(
            self.prompt(index),
            tuple(decode_text(self._responses[i], chat) for i in range(*self._groups.bounds(index))),
            self.judgements(index),
            self.labels(index),
            self.ranks(index),
            tuple(map(bool, self._ended[begin:end].tolist())),
            self.origin(index),
            int(self.source[index]),
        )


class TextFile(GroupFile[PreferenceGroup, TextColumns]):
    """The groups of an Arrow file of text."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)

    def open_columns(self, batch: Any) -> TextColumns:
        return TextColumns(batch)

    def group(self, columns: TextColumns, index: int) -> PreferenceGroup:
        return columns.group(index)

    def prompts(self) -> Iterator[tuple[Text, str]]:
        """Yield prompt and origin of each group, without reading the responses."""
        for index in range(len(self)):
            columns, row = self.locate(index)
            yield columns.prompt(row), columns.origin(row)
