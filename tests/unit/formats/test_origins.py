"""A list of origins in little memory is equal to the list of texts."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from preftune.formats.account import Account, format_origins
from preftune.formats.origins import Origins

ORIGIN = st.one_of(
    st.tuples(st.sampled_from(["f", "g:h", ""]), st.integers(0, 6)).map(lambda a: f"{a[0]}:{a[1]}"),
    st.sampled_from(["", ":", "f", "f:", "f:01", "f:-1", "f:\u0661", "f:1 (record 2)", "data[3]", "f:" + "9" * 30]),
)


@given(st.lists(ORIGIN, max_size=12), st.integers(-13, 13), st.integers(-13, 13))
def test_it_is_equal_to_the_list(texts: list[str], begin: int, end: int) -> None:
    origins = Origins(texts)
    assert list(origins) == texts
    assert origins == texts
    assert len(origins) == len(texts)
    assert [origins[i] for i in range(-len(texts), len(texts))] == texts * 2
    assert origins[begin:end] == texts[begin:end]
    assert origins[:end] == texts[:end]
    assert origins[::2] == texts[::2]
    assert origins.last == (texts[-1] if texts else None)
    assert all((text in origins) == (text in texts) for text in ["f:1", "f", "x"])
    assert (origins == [*texts, "f:1"]) is False
    for source in ("f", "g", "g:h", ""):
        assert format_origins(origins, source) == format_origins(texts, source)


@given(st.lists(ORIGIN, max_size=12))
def test_it_is_stored_as_json(texts: list[str]) -> None:
    account = Account("f", "hh", 20, columns={"a": "used"})
    for text in texts:
        account.drop("why", text)
        account.note("what", text)
    restored = Account.from_record(json.loads(json.dumps(account.record())))
    assert restored == account
    assert restored.lines() == account.lines()
    restored.note("what", "f:7")
    assert list(restored.noted["what"]) == [*account.noted.get("what", []), "f:7"]


def test_consecutive_lines_take_no_memory() -> None:
    origins = Origins()
    for number in range(10_000):
        origins.append(f"file.jsonl:{number}")
    assert len(origins._runs) == 3
    assert origins[9_999] == "file.jsonl:9999"
