"""Tokenised groups in an Arrow file.

    prompt_ids      list of int32
    response_ids    list of lists of int32
    scored          list of int8, 1 or 0: for all response tokens of a group with masks; empty for other groups

and the columns of `arrow_file`. The shapes of all groups are in a second file, `shapes.safetensors`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from preftune.data.arrow_file import Columns, GroupFile, Lists, Writer, list_column, numbers, view
from preftune.data.shapes import Shapes, Tally
from preftune.errors import writing
from preftune.types import TokenGroup

GROUPS, SHAPES = "groups.arrow", "shapes.safetensors"
INT32, INT8 = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int8)


class TokenWriter(Writer[TokenGroup]):
    """Writes a file of token ids."""

    @staticmethod
    def size(group: TokenGroup) -> int:
        return 4 * (len(group.prompt_ids) + sum(map(len, group.response_ids)))

    def columns(self, groups: Sequence[TokenGroup]) -> dict[str, Any]:
        prompts = [group.prompt_ids for group in groups]
        responses = [ids for group in groups for ids in group.response_ids]

        def ids_column(parts: Sequence[Any]) -> Any:
            return list_column(list(map(len, parts)), numbers(np.concatenate([INT32, *parts]), np.int32))

        return {
            "prompt_ids": ids_column(prompts),
            "response_ids": list_column([len(group.response_ids) for group in groups], ids_column(responses)),
            "scored": list_column(
                [sum(map(len, group.masks)) for group in groups],
                numbers(np.concatenate([INT8, *(mask for group in groups for mask in group.masks)]), np.int8),
            ),
        }


class TokenColumns(Columns):
    """The columns of a record batch of token ids."""

    def __init__(self, batch: Any) -> None:
        super().__init__(batch)
        self._prompts, self._groups = Lists(batch["prompt_ids"]), Lists(batch["response_ids"])
        self._responses = Lists(self._groups.values)
        self._scored = Lists(batch["scored"])
        self._mask = view(self._scored.values, np.int8)
        self._prompt_ids, self._response_ids = (view(ids.values, np.int32) for ids in (self._prompts, self._responses))

    def group(self, index: int) -> TokenGroup:
        begin, end = self._prompts.bounds(index)
        ids, bounds = self._response_ids, self._responses.bounds
        responses = tuple(ids[slice(*bounds(i))] for i in range(*self._groups.bounds(index)))
        prompt = self._prompt_ids[begin:end]
        first, last = self._scored.bounds(index)
        ends = np.cumsum([len(ids) for ids in responses])[:-1]
        return TokenGroup(
            prompt,
            responses,
            self.judgements(index),
            self.labels(index),
            self.ranks(index),
            self.origin(index),
            tuple(np.split(self._mask[first:last].astype(np.bool_), ends)) if last > first else (),
            int(self.source[index]),
        )


class TokenFile(GroupFile[TokenGroup, TokenColumns]):
    """The tokenised groups of a folder, with the shapes of all of them in memory. `key` is a hash of their content."""

    def __init__(self, folder: Path, key: str = "") -> None:
        super().__init__(folder / GROUPS)
        self.key = key
        arrays = load_file(folder / SHAPES)
        self.shapes = Shapes(**{field.name: arrays[field.name] for field in fields(Shapes)})

    def open_columns(self, batch: Any) -> TokenColumns:
        return TokenColumns(batch)

    def group(self, columns: TokenColumns, index: int) -> TokenGroup:
        return columns.group(index)


def write_tokens(folder: Path, groups: Iterable[TokenGroup]) -> None:
    """Write groups to the files of a folder. Raises StorageError."""
    writer, tally = TokenWriter(folder / GROUPS), Tally()
    for group in groups:
        writer.add(group)
        tally.add(group)
    writer.close()
    shapes = tally.shapes()
    with writing(folder / SHAPES):
        (folder / SHAPES).write_bytes(save({field.name: getattr(shapes, field.name) for field in fields(Shapes)}))
