"""The order of a stream, its passes and shares, and that it continues exactly from the state after any step."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

from preftune.data import stream as module
from preftune.data.stream import SourceStream, Stream
from preftune.errors import DataError, RunError
from preftune.formats.account import Account
from preftune.sources.parts import Parts
from preftune.sources.rows import Row
from preftune.types import Judgement, TokenGroup

PART_SIZES = (9, 0, 30, 5)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)


def rows_of(part: int, size: int, opened: list[int]) -> Iterator[Row]:
    opened.append(part)
    for i in range(size):
        yield Row({"part": part, "row": i}, f"{part}:{i}")


def parts(name: str, opened: list[int], sizes: Sequence[int] = PART_SIZES) -> Parts:
    opens: list[Callable[[], Iterator[Row]]] = [partial(rows_of, i, n, opened) for i, n in enumerate(sizes)]
    return Parts(name, tuple(opens), "")


def convert(chunk: Sequence[Row], account: Account) -> list[TokenGroup]:
    """Rows give 0, 1 or 2 groups, with one or two judgements each."""
    groups = []
    for row in chunk:
        account.read += 1
        number = (1, 1, 2, 1, 0)[row.value["row"] % 5]
        if not number:
            account.drop("every fifth row", row.origin)
        for i in range(number):
            judgements = (Judgement(0, 1),) * (1 + row.value["row"] % 2)
            ids = np.zeros(1, dtype=np.int32)
            groups.append(TokenGroup(ids, (ids, ids), judgements, origin=f"{row.origin}/{i}"))
    return groups


def stream(
    sizes: Any = None, state: Any = None, opened: list[int] | None = None, buffer: int = 6, seed: int = 0
) -> Stream:
    opened = [] if opened is None else opened
    shares = (0.3, 0.7) if sizes == 2 else (1.0,)
    sources = [
        SourceStream(parts(f"s{i}", opened, PART_SIZES[i:]), convert, seed, i, buffer, max_dropped=1.0)
        for i in range(len(shares))
    ]
    return Stream(sources, shares, pairs=3, steps=60, state=state)


def origins(made: Stream, steps: Any) -> list[tuple[int, int, tuple[str, ...]]]:
    return [(s.number, s.epoch, tuple(made.groups[i].origin for i in s.members)) for s in steps]


@pytest.mark.parametrize("sizes", [1, 2])
@pytest.mark.parametrize("buffer", [1, 6, 1000])
def test_a_stream_continues_exactly_after_every_step(sizes: int, buffer: int) -> None:
    whole = stream(sizes, buffer=buffer)
    states, expected = [json.dumps(whole.state_after(0))], []
    for step in whole:
        expected += origins(whole, [step])
        states.append(json.dumps(whole.state_after(step.number)))
        assert json.dumps(whole.state_after(step.number - 1)) == states[-2]  # if the step is interrupted
    assert max(source.passes for source in whole.sources) >= 1
    for number, state in enumerate(states):
        rest = stream(sizes, json.loads(state), buffer=buffer)
        assert json.dumps(rest.state_after(number)) == state
        assert origins(rest, rest[number:]) == expected[number:]
        assert rest.lines()[0] == whole.lines()[0]


def test_each_pass_has_every_group_once_in_another_order() -> None:
    made = stream(buffer=8)
    drawn = [origin for _, _, members in origins(made, made) for origin in members]
    every = {f"{p}:{i}/{k}" for p, n in enumerate(PART_SIZES) for i in range(n) for k in range((1, 1, 2, 1, 0)[i % 5])}
    size = len(every)
    first, second = drawn[:size], drawn[size : 2 * size]
    assert set(first) == set(second) == every
    assert first != second
    other = stream(buffer=8, seed=1)
    assert [origin for _, _, members in origins(other, other) for origin in members][:size] != first


def test_a_buffer_of_one_keeps_the_order_and_a_large_one_mixes_all() -> None:
    made = stream(buffer=1)
    assert [m for _, _, members in origins(made, made[:3]) for m in members][:4] == ["0:0/0", "0:1/0", "0:2/0", "0:2/1"]
    made = stream(buffer=1000)
    assert "3:" in "".join(m for _, _, members in origins(made, made[:5]) for m in members)


def test_steps_have_at_most_the_judgements_of_a_batch() -> None:
    made = stream()
    for step in made:
        sizes = [len(made.groups[i].judgements) for i in step.members]
        assert sum(sizes) <= 3


def test_shares_hold_at_every_moment() -> None:
    made = stream(2)
    for step in made:
        drawn = made.state_after(step.number)["counts"]
        assert abs(drawn[0] - 0.3 * sum(drawn)) < 1


def test_only_the_parts_that_are_needed_are_opened_again() -> None:
    whole, opened = stream(buffer=2), []
    for _ in whole[:9]:
        pass
    state = json.loads(json.dumps(whole.state_after(9)))
    parts_in_use = {part for part, _, _ in state["sources"][0]["buffer"]} | {state["sources"][0]["chunk"][0]}
    assert parts_in_use == {2}
    rest = stream(state=state, opened=opened, buffer=2)
    _ = rest[9]
    assert set(opened) == {2}


def test_rows_are_counted_once_also_after_resuming() -> None:
    whole = stream()
    for _ in whole[:7]:
        pass
    rest = stream(state=json.loads(json.dumps(whole.state_after(7))))
    for made in (whole, rest):
        for _ in made[7:12]:
            pass
    assert rest.lines() == whole.lines()
    read = int(whole.lines()[0].split()[1].replace(",", ""))
    assert 20 <= read <= 44


def test_missing_groups_do_not_resume() -> None:
    whole = stream()
    for _ in whole[:7]:
        pass
    state = json.loads(json.dumps(whole.state_after(7)))
    state["sources"][0]["buffer"][0][1] = 400
    with pytest.raises(RunError, match="not in the data any more"):
        stream(state=state)


@pytest.mark.parametrize("sizes", [(), (0,), (0, 0)])
def test_a_source_without_groups_is_an_error(sizes: tuple[int, ...]) -> None:
    source = SourceStream(parts("empty", [], sizes), convert, 0, 0, 5, 1.0)
    with pytest.raises(DataError, match="no row is left to train on"):
        source.draw()


def test_too_many_dropped_rows_stop_the_stream() -> None:
    source = SourceStream(parts("s", [], (1000,)), convert, 0, 0, 400, max_dropped=0.1)
    with pytest.raises(DataError, match=r"rows were dropped \(20%\)"):
        source.draw()
