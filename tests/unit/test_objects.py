"""Rows and functions in memory: their names, their hashes, and how long a name stands for them."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune import objects
from preftune.errors import ConfigError, DataError
from preftune.objects import as_function, as_rows, holding
from preftune.resolve import bind, inputs_of, resolve
from preftune.sources.read import fingerprint, read

SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=8)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner))
ROWS = st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=4), min_size=1, max_size=4)


@given(ROWS)
def test_rows_are_read_as_a_file_of_them_is(rows: list[dict[str, Any]]) -> None:
    held = as_rows(rows, "data")
    with holding({held.name: held}):
        found = list(read(held.name))
    assert [row.value for row in found] == [json.loads(json.dumps(row)) for row in rows]
    assert [row.origin for row in found] == [f"data[{i}]" for i in range(len(rows))]


@given(ROWS, ROWS)
def test_the_name_is_that_of_the_content(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    same = json.dumps(rows, sort_keys=True) == json.dumps(others, sort_keys=True)
    assert (as_rows(rows, "data").name == as_rows(others, "data").name) == same


def test_tuples_and_numpy_are_plain_values() -> None:
    row = {"a": (1, 2), "b": np.float64(0.5), "c": np.array([1, 2]), "d": np.str_("x"), "e": np.bool_(True), 3: None}
    (found,) = as_rows([row], "data").rows
    assert found == {"a": [1, 2], "b": 0.5, "c": [1, 2], "d": "x", "e": True, "3": None}
    assert [type(value) for value in found.values()] == [list, float, list, str, bool, type(None)]


def test_an_object_of_no_json_type_stays_and_has_a_stable_hash() -> None:
    class Picture:
        pass

    first, second = as_rows([{"a": Picture()}], "data"), as_rows([{"a": Picture()}], "data")
    assert isinstance(first.rows[0]["a"], Picture)
    assert first.digest == second.digest


def test_a_value_that_is_no_row_is_a_bad_row() -> None:
    held = as_rows([{"a": 1}, "text"], "data")
    with holding({held.name: held}):
        assert [bool(row.fault) for row in read(held.name)] == [False, True]


def test_the_fingerprint_is_that_of_the_content() -> None:
    prints = set()
    for rows in ([{"a": 1}], [{"a": 2}], [{"a": 1}, {"a": 1}]):
        held = as_rows(rows, "data")
        with holding({held.name: held}):
            prints.add(fingerprint(held.name))
    assert len(prints) == 3


def test_a_name_stands_for_its_object_only_inside() -> None:
    held = as_rows([{"a": 1}], "data")
    with holding({held.name: held}):
        assert objects.rows(held.name) is held
        seen: list[str] = []

        def elsewhere() -> None:
            try:
                objects.rows(held.name)
            except DataError as error:
                seen.append(str(error))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert "were given in memory" in seen[0]
    with pytest.raises(DataError, match=r"were given in memory[^$]*data.train=FILE"):
        list(read(held.name))
    assert objects.rows("data.jsonl") is None


def plain_loss(policy: Any, *, beta: float = 0.1) -> Any:
    return policy * beta


class Scaled:
    """A loss as an object."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, policy: Any, *, beta: float = 0.1) -> Any:
        return policy * beta * self.scale

    def method(self, policy: Any, *, beta: float = 0.1) -> Any:
        return policy * beta * self.scale


def made(scale: float) -> Callable[..., Any]:
    def inner(policy: Any, *, beta: float = 0.1) -> Any:
        return policy * beta * scale

    return inner


KINDS: dict[str, Callable[[float], Callable[..., Any]]] = {
    "closure": made,
    "object": Scaled,
    "method": lambda scale: Scaled(scale).method,
    "partial": lambda scale: functools.partial(plain_loss, beta=scale),
    "default": lambda scale: eval(f"lambda policy, *, beta={scale}: policy * beta"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_functions_of_every_kind_have_parameters_and_a_hash_of_what_they_were_made_with(kind: str) -> None:
    one, same, other = (as_function(KINDS[kind](scale)) for scale in (0.5, 0.5, 2.0))
    assert one.exact == same.exact != other.exact
    with holding({one.exact: one}):
        found = resolve(one.exact, {}, "loss.name")
        assert inputs_of(found) == ("policy",)
        assert bind(found, {"beta": 3}, "loss", "mine") == {"beta": 3.0}
        assert found(policy=1.0, beta=0.5) == one.call(policy=1.0, beta=0.5)
    if kind != "default":
        assert get_type_hints(found)["beta"] is float


def test_two_sources_have_two_hashes() -> None:
    assert as_function(lambda policy: policy + 1).exact != as_function(lambda policy: policy + 2).exact
    assert as_function(eval("lambda p: p + 1")).exact != as_function(eval("lambda p: p + 2")).exact  # no source text


def test_a_function_of_an_earlier_call_is_named() -> None:
    name = as_function(plain_loss).exact
    with pytest.raises(ConfigError, match=r"was given as a Python function[^$]*file.py:function"):
        resolve(name, {}, "loss.name")


def test_a_file_of_such_a_name_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("memory:data-0").write_text('{"a": 1}\n')
    with pytest.raises(DataError, match="given in memory"):
        list(read("memory:data-0"))
