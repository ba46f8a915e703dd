"""Rows and functions passed in memory: their names, their hashes, and how long the names are valid."""

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

from preftune import in_memory
from preftune.errors import ConfigError, DataError
from preftune.in_memory import as_function, as_rows, holding
from preftune.resolve import bind, inputs_of, resolve
from preftune.sources.read import fingerprint, read

SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=8)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner))
ROWS = st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=4), min_size=1, max_size=4)


@given(ROWS)
def test_rows_in_memory_are_read_like_a_jsonl_file(rows: list[dict[str, Any]]) -> None:
    held = as_rows(rows, "data")
    with holding({held.name: held}):
        read_rows = list(read(held.name))
    assert [row.value for row in read_rows] == [json.loads(json.dumps(row)) for row in rows]
    assert [row.origin for row in read_rows] == [f"data[{i}]" for i in range(len(rows))]


@given(ROWS, ROWS)
def test_names_are_equal_exactly_if_the_rows_are(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    same = json.dumps(rows, sort_keys=True) == json.dumps(others, sort_keys=True)
    assert (as_rows(rows, "data").name == as_rows(others, "data").name) == same


def test_tuples_and_numpy_values_become_json_types() -> None:
    row = {"a": (1, 2), "b": np.float64(0.5), "c": np.array([1, 2]), "d": np.str_("x"), "e": np.bool_(True), 3: None}
    (converted,) = as_rows([row], "data").rows
    assert converted == {"a": [1, 2], "b": 0.5, "c": [1, 2], "d": "x", "e": True, "3": None}
    assert [type(value) for value in converted.values()] == [list, float, list, str, bool, type(None)]


def test_an_object_without_a_json_type_is_unchanged_and_has_a_stable_hash() -> None:
    class Picture:
        pass

    first, second = as_rows([{"a": Picture()}], "data"), as_rows([{"a": Picture()}], "data")
    assert isinstance(first.rows[0]["a"], Picture)
    assert first.digest == second.digest


def test_a_value_that_is_not_a_row_is_a_bad_row() -> None:
    held = as_rows([{"a": 1}, "text"], "data")
    with holding({held.name: held}):
        assert [bool(row.fault) for row in read(held.name)] == [False, True]


def test_different_rows_have_different_fingerprints() -> None:
    fingerprints = set()
    for rows in ([{"a": 1}], [{"a": 2}], [{"a": 1}, {"a": 1}]):
        held = as_rows(rows, "data")
        with holding({held.name: held}):
            fingerprints.add(fingerprint(held.name))
    assert len(fingerprints) == 3


def test_a_name_is_valid_only_inside_holding_and_in_the_same_thread() -> None:
    held = as_rows([{"a": 1}], "data")
    with holding({held.name: held}):
        assert in_memory.rows(held.name) is held
        messages: list[str] = []

        def in_other_thread() -> None:
            try:
                in_memory.rows(held.name)
            except DataError as error:
                messages.append(str(error))

        thread = threading.Thread(target=in_other_thread)
        thread.start()
        thread.join()
        assert "were passed in memory" in messages[0]
    with pytest.raises(DataError, match=r"were passed in memory[^$]*data.train=FILE"):
        list(read(held.name))
    assert in_memory.rows("data.jsonl") is None


def plain_loss(policy: Any, *, beta: float = 0.1) -> Any:
    return policy * beta


class Scaled:
    """A loss that is a callable object."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, policy: Any, *, beta: float = 0.1) -> Any:
        return policy * beta * self.scale

    def method(self, policy: Any, *, beta: float = 0.1) -> Any:
        return policy * beta * self.scale


def closure(scale: float) -> Callable[..., Any]:
    def inner(policy: Any, *, beta: float = 0.1) -> Any:
        return policy * beta * scale

    return inner


KINDS: dict[str, Callable[[float], Callable[..., Any]]] = {
    "closure": closure,
    "object": Scaled,
    "method": lambda scale: Scaled(scale).method,
    "partial": lambda scale: functools.partial(plain_loss, beta=scale),
    "default": lambda scale: eval(f"lambda policy, *, beta={scale}: policy * beta"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_callable_has_parameters_and_a_hash_of_its_captured_values(kind: str) -> None:
    one, same, other = (as_function(KINDS[kind](scale)) for scale in (0.5, 0.5, 2.0))
    assert one.name_with_hash == same.name_with_hash != other.name_with_hash
    with holding({one.name_with_hash: one}):
        function = resolve(one.name_with_hash, {}, "loss.name")
        assert inputs_of(function) == ("policy",)
        assert bind(function, {"beta": 3}, "loss", "mine") == {"beta": 3.0}
        assert function(policy=1.0, beta=0.5) == one.call(policy=1.0, beta=0.5)
    if kind != "default":
        assert get_type_hints(function)["beta"] is float


def test_functions_with_different_sources_have_different_hashes() -> None:
    assert (
        as_function(lambda policy: policy + 1).name_with_hash != as_function(lambda policy: policy + 2).name_with_hash
    )
    assert (
        as_function(eval("lambda p: p + 1")).name_with_hash != as_function(eval("lambda p: p + 2")).name_with_hash
    )  # no source text


def test_a_function_of_an_earlier_call_is_a_config_error() -> None:
    name = as_function(plain_loss).name_with_hash
    with pytest.raises(ConfigError, match=r"was passed as a Python function[^$]*file.py:function"):
        resolve(name, {}, "loss.name")


def test_a_memory_name_never_reads_a_file_with_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("memory:data-0").write_text('{"a": 1}\n')
    with pytest.raises(DataError, match="passed in memory"):
        list(read("memory:data-0"))
