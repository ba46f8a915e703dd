"""Training data that are read while training: a source in its order, a shuffle buffer, and exact resume.

A source is read in chunks of CHUNK rows. A chunk becomes groups of token ids, which go into a buffer. Each draw takes a
group of the buffer, chosen by the seed, the pass and the number of the draw, and the buffer is filled up again. At the
end of the source the buffer is emptied before the source is read again, so each pass has every group once.

The state of a stream says which chunk is read, how many of its groups have left it, and which groups are in the buffer:
each by its chunk and its number in it. To resume, only these chunks are read and tokenised again; the rows before them
are skipped, and parts (files, shards) without any of them are not opened.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, overload

import numpy as np

from preftune.data.steps import Step, size_of
from preftune.data.subset import Subset
from preftune.errors import DataError, RunError
from preftune.formats.account import Account, is_expected
from preftune.sources.parts import Parts
from preftune.sources.rows import Row
from preftune.types import TokenGroup

CHUNK = 64
CHECKED = 200  # rows after which the share of dropped rows is checked
STREAM = 1 << 62  # distinguishes the keys of draws from those of epochs and passes


class Key(NamedTuple):
    """A group of a pass: its part, the first row of its chunk in the part, and its number in the chunk."""

    part: int
    row: int
    number: int


Item = tuple[Key, TokenGroup]
Convert = Callable[[Sequence[Row], Account], list[TokenGroup]]  # rows to groups, counted in the account


class SourceStream:
    """The groups of one source, in the order of its shuffle buffer, pass after pass.

    account   what happened to the rows that this process has read
    """

    def __init__(
        self, parts: Parts, convert: Convert, seed: int, number: int, buffer: int, max_dropped: float, format: str = ""
    ) -> None:
        self.parts, self.account = parts, Account(parts.name, format)
        self._convert, self._seed, self._number = convert, seed, number
        self._size, self._max_dropped = buffer, max_dropped
        self.passes = self._drawn = 0
        self._buffer: list[Item] = []
        self._ended = False
        self._counts: Counter[str] = Counter()  # rows read and dropped before the current chunk
        self._chunk: Counter[str] = Counter()  # of the current chunk
        self._begin_reading(0)

    def draw(self) -> Item:
        """Return the next group. Raises DataError if a pass has no group, or drops too many rows."""
        while True:
            while not self._ended and len(self._buffer) < self._size:
                item = self._next()
                if item is None:
                    self._ended = True
                else:
                    self._buffer.append(item)
            if self._buffer:
                break
            if not self._drawn:
                fix = "run preftune data check to see why rows are dropped"
                raise DataError("no row is left to train on", where=self.parts.name, fix=fix)
            self.passes, self._drawn, self._ended = self.passes + 1, 0, False
            self._begin_reading(0)
        key = [self._seed, STREAM + (self._number << 40) + self.passes]
        index = int(np.random.Generator(np.random.Philox(key=key, counter=self._drawn)).integers(len(self._buffer)))
        self._drawn += 1
        last = self._buffer.pop()
        if index == len(self._buffer):
            return last
        drawn, self._buffer[index] = self._buffer[index], last
        return drawn

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs, as JSON."""
        return {
            "passes": self.passes,
            "drawn": self._drawn,
            "ended": self._ended,
            "chunk": [self._part, self._row, self._rows_in_chunk],
            "pulled": self._pulled,
            "buffer": [key for key, _ in self._buffer],
            "counts": dict(self._counts),
        }

    def restore(self, state: Mapping[str, Any], others: Sequence[Key] = ()) -> dict[Key, TokenGroup]:
        """Continue from a state. Return the groups `others` of the same pass. Raises RunError if the data changed."""
        self.passes, self._drawn, self._ended = state["passes"], state["drawn"], state["ended"]
        part, row, rows = state["chunk"]
        keys = [Key(*key) for key in state["buffer"]]
        wanted = {(key.part, key.row) for key in (*keys, *others)}
        groups: dict[Key, TokenGroup] = {}
        for number in sorted({part for part, _ in wanted}):
            last = max(row for part, row in wanted if part == number)
            self._begin_reading(number)
            while self._row + self._rows_in_chunk <= last and self._load(count=False, wanted=wanted):
                groups |= dict(self._queue)
        try:
            self._buffer = [(key, groups[key]) for key in keys]
            kept = {key: groups[key] for key in others}
        except KeyError:
            what = "groups that the stream had read are not in the data any more"
            raise RunError(what, where=self.parts.name, fix="restore the data, or choose a different `out`") from None
        self._counts = Counter(state["counts"])
        self._begin_reading(part, row)
        if rows:
            self._load()
            for _ in range(state["pulled"]):
                self._next_in_chunk()
        return kept

    def lines(self) -> list[str]:
        """Return what happened to the rows, also before the run was resumed."""
        counts = self._counts + self._chunk
        read, dropped = counts.pop("read", 0), sum(counts.values())
        epochs = f", in {self.passes + 1} passes" if self.passes else ""
        head = f"{self.parts.name}: {read:,} rows read as {self.account.format!r}{epochs}, {read - dropped:,} kept"
        return [head, *(f"  dropped {number:,}: {reason}" for reason, number in counts.items())] + [
            line for line in self.account.lines()[1:] if line.startswith("  note")
        ]

    def _begin_reading(self, part: int, row: int = 0) -> None:
        """Read on from a row of a part."""
        self._part, self._row, self._rows_in_chunk, self._pulled = part, row, 0, 0
        self._queue: deque[Item] = deque()
        self._rows: Iterator[Row] | None = None

    def _next(self) -> Item | None:
        """Return the next group of the pass in the order of the source, None at its end."""
        while not self._queue:
            if not self._load():
                return None
        return self._next_in_chunk()

    def _next_in_chunk(self) -> Item:
        self._pulled += 1
        return self._queue.popleft()

    def _load(self, count: bool = True, wanted: set[tuple[int, int]] | None = None) -> bool:
        """Read the next chunk into the queue. Return False at the end of the source, or of the part for `wanted`.

        Of the chunks that are not `wanted`, the rows are only skipped.
        """
        self._counts, self._chunk = self._counts + self._chunk, Counter()
        self._row, self._rows_in_chunk, self._pulled = self._row + self._rows_in_chunk, 0, 0
        self._queue.clear()
        while self._part < len(self.parts.parts):
            if self._rows is None:
                self._rows = islice(self.parts.parts[self._part](), self._row, None)
            chunk = list(islice(self._rows, CHUNK))
            if chunk:
                self._rows_in_chunk = len(chunk)
                if wanted is None or (self._part, self._row) in wanted:
                    self._fill(chunk, count)
                return True
            if wanted is not None:
                return False
            self._begin_reading(self._part + 1)
        return False

    def _fill(self, chunk: list[Row], count: bool) -> None:
        account = Account(self.parts.name, self.account.format)
        groups = self._convert(chunk, account)
        self._queue = deque((Key(self._part, self._row, n), group) for n, group in enumerate(groups))
        if not count:
            return
        self._chunk = Counter({"read": account.read, **{text: len(o) for text, o in account.dropped.items()}})
        self.account.read += account.read
        for own, lists in ((self.account.drop, account.dropped), (self.account.note, account.noted)):
            for text, origins in lists.items():
                for origin in origins:
                    own(text, origin)
        self._check(self._counts + self._chunk)

    def _check(self, counts: Counter[str]) -> None:
        """Raise DataError if too many of the rows that have been read were dropped."""
        read = counts.pop("read", 0)
        expected = sum(number for reason, number in counts.items() if is_expected(reason))
        dropped = sum(counts.values()) - expected
        if read >= CHECKED and dropped > self._max_dropped * (read - expected):
            raise DataError(
                f"{dropped} of the first {read - expected} rows were dropped ({dropped / (read - expected):.0%})",
                where=self.parts.name,
                why="; ".join(self.lines()[1:]).strip(),
                fix="repair the rows, or accept more dropped rows with data.max_dropped",
            )


class Stream(Sequence[Step]):
    """The steps of a run on streamed data, which are made one after another, and their groups.

    shares   the share of the groups that comes from each source. After any number of groups, the number of each source
             differs from its share by less than the number of sources
    """

    def __init__(
        self, sources: Sequence[SourceStream], shares: Sequence[float], pairs: int, steps: int, state: Any = None
    ) -> None:
        self.sources, self._shares, self._pairs, self._steps = sources, shares, pairs, steps
        self._counts = [0] * len(sources)
        self._next: tuple[int, Item] | None = None  # drawn, but too large for the step before
        self._drawn = 0
        self._step = Step(0, 0, ())
        self.groups = StreamedGroups()
        if state:
            self._restore(state)
        self._states = {self._step.number: self._state()}

    def state_after(self, step: int) -> dict[str, Any]:
        """Return the state after a step, the current one or the one before it."""
        return self._states[step]

    def __len__(self) -> int:
        return self._steps

    @overload
    def __getitem__(self, index: int) -> Step: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Step]: ...
    def __getitem__(self, index: int | slice) -> Step | Sequence[Step]:
        if isinstance(index, slice):
            return Subset(self, np.arange(len(self))[index])
        if index >= self._steps:
            raise IndexError("no step has this index")
        if index + 1 != self._step.number:
            assert index == self._step.number, "the steps of a stream are made in order"
            self._make_step()
        return self._step

    def lines(self) -> list[str]:
        """Return what happened to the rows of each source."""
        return [line for source in self.sources for line in source.lines()]

    def _make_step(self) -> None:
        members: list[TokenGroup] = []
        size = 0
        while True:
            number, item = self._next or self._draw()
            self._next = None
            if members and size + size_of(item[1]) > self._pairs:
                self._next = number, item
                break
            members.append(item[1])
            size += size_of(item[1])
            if size >= self._pairs:
                break
        epoch = min(source.passes for source in self.sources)
        first, self._drawn = self._drawn, self._drawn + len(members)
        self.groups.replace(first, members)
        self._step = Step(self._step.number + 1, epoch, tuple(range(first, self._drawn)))
        self._states = {self._step.number - 1: self._states[self._step.number - 1], self._step.number: self._state()}

    def _draw(self) -> tuple[int, Item]:
        """Draw from the source that is furthest behind its share."""
        total = sum(self._counts) + 1
        behind = [share * total - count for share, count in zip(self._shares, self._counts, strict=True)]
        number = int(np.argmax(np.round(behind, 9)))
        self._counts[number] += 1
        return number, self.sources[number].draw()

    def _state(self) -> dict[str, Any]:
        return {
            "step": self._step.number,
            "drawn": self._drawn,
            "counts": list(self._counts),
            "next": [self._next[0], self._next[1][0]] if self._next else None,
            "sources": [source.state() for source in self.sources],
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._step, self._drawn = Step(state["step"], 0, ()), state["drawn"]
        self._counts = list(state["counts"])
        for number, source in enumerate(self.sources):
            own = [Key(*state["next"][1])] if state["next"] and state["next"][0] == number else []
            groups = source.restore(state["sources"][number], own)
            for key, group in groups.items():
                self._next = number, (key, group)


class StreamedGroups(Sequence[TokenGroup]):
    """The groups of the current step, by their numbers in the run. Earlier groups are not kept."""

    def __init__(self) -> None:
        self._first, self._groups = 0, list[TokenGroup]()

    def replace(self, first: int, groups: list[TokenGroup]) -> None:
        """Set the groups of the current step; `first` is the number of the first one."""
        self._first, self._groups = first, groups

    def __len__(self) -> int:
        return self._first + len(self._groups)

    @overload
    def __getitem__(self, index: int) -> TokenGroup: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[TokenGroup]: ...
    def __getitem__(self, index: int | slice) -> TokenGroup | Sequence[TokenGroup]:
        assert isinstance(index, int), "a stream has no slices"
        if not self._first <= index < len(self):
            raise IndexError("the group is not in the current step")
        return self._groups[index - self._first]
