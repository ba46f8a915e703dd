"""Numbers as text: the page writes them in the same form before and after its script runs."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.report.figures.words import num, percent, short, signed
from preftune.report.page import asset

NODE = shutil.which("node")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (num(-0.004), "0.00"), (num(-1.005, 2), "\u22121.00"), (num(0.125, 2), "0.13"), (signed(0.0), "0.00"),
        (signed(2.5, 1), "+2.5"), (percent(0.125), "13\u00a0%"), (short(0.0002), "2e\u22124"), (short(1234.5), "1230"),
        (short(-0.5), "\u22120.5"), (short(0), "0"), (short(1.5e7), "1.5e7"),
    ],
)  # fmt: skip
def test_the_form_of_numbers(text: str, expected: str) -> None:
    assert text == expected


@pytest.mark.skipif(NODE is None, reason="node is not installed")
@settings(max_examples=5, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=200, max_size=400))
def test_python_and_the_script_write_the_same_numbers(values: list[float]) -> None:
    source = asset("core.js")
    start, end = source.index("const MINUS"), source.index("/** @param {number} x @param {number} low")
    program = (
        source[start:end]
        + "const v = JSON.parse(require('fs').readFileSync(0, 'utf8'));"
        + "console.log(JSON.stringify(v.map((x) => [num(x), sgn(x, 3), pct(x, 1), short(x)])));"
    )
    assert NODE
    done = subprocess.run([NODE, "-e", program], input=json.dumps(values), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[num(x), signed(x, 3), percent(x, 1), short(x)] for x in values]
