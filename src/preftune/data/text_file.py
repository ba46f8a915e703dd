"""Groups of text in an Arrow file.

    chat        whether prompt and responses are chats; they are then stored as JSON
    prompt      bytes (UTF-8)
    responses   list of bytes
    ended       list of bool

and the columns of `arrow_file`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from preftune.data.arrow_file import Bytes, Columns, GroupFile, Lists, Writer, decode, encode, list_column
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
    @staticmethod
    def size(group: PreferenceGroup) -> int:
        return sum(
            len(text) if isinstance(text, str) else sum(len(message.content) for message in text)
            for text in (group.prompt, *group.responses)
        )

    def columns(self, groups: Sequence[PreferenceGroup]) -> dict[str, Any]:
        import pyarrow

        chats = [not isinstance(group.prompt, str) for group in groups]
        responses = [response for group in groups for response in group.responses]
        kinds = [chat for group, chat in zip(groups, chats, strict=True) for _ in group.responses]
        assert kinds == [not isinstance(response, str) for response in responses]  # parsers.group_of
        ended = np.array([end for group in groups for end in group.ended], dtype=bool)
        texts = pyarrow.array(list(map(encode_text, responses)), pyarrow.large_binary())
        return {
            "chat": pyarrow.array(chats, pyarrow.bool_()),
            "prompt": pyarrow.array([encode_text(group.prompt) for group in groups], pyarrow.large_binary()),
            "responses": list_column([len(group.responses) for group in groups], texts),
            "ended": list_column([len(group.ended) for group in groups], pyarrow.array(ended)),
        }


class TextColumns(Columns):
    """The columns of a record batch of text."""

    def __init__(self, batch: Any) -> None:
        super().__init__(batch)
        self._chat = batch["chat"].to_numpy(zero_copy_only=False)
        self._prompts, self._groups, self._ends = (
            Bytes(batch["prompt"]),
            Lists(batch["responses"]),
            Lists(batch["ended"]),
        )
        self._responses = Bytes(self._groups.values)
        self._ended = self._ends.values.to_numpy(zero_copy_only=False)

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
            tuple(self._ended[begin:end].tolist()),
            self.origin(index),
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
