"""The warning about lengths on one side, at its thresholds."""

from __future__ import annotations

import pytest

from preftune.findings import bias
from preftune.findings.kinds import Bias
from preftune.measures import diagnosis


@pytest.mark.parametrize(
    ("longer", "pairs", "text"),
    [
        (29, 29, ""),
        (30, 30, "the chosen response is longer in 100.0% of the pairs that differ"),
        (95, 100, ""),
        (96, 100, "balance the lengths or use loss r_dpo or ld_dpo"),
        (5, 100, ""),
        (4, 100, "the rejected response is longer in 96.0% of the pairs"),
        (50, 100, ""),
        (0, 0, ""),
    ],
)
def test_one_sided_lengths_are_reported_beyond_the_thresholds(longer: int, pairs: int, text: str) -> None:
    warning = bias.one_sided(Bias(None, None, bias.rate(longer, pairs)))
    assert bool(warning) == bool(text)
    assert text in warning


def test_the_thresholds_are_those_of_the_warning_in_a_run() -> None:
    assert (bias.ONE_SIDED, bias.FEW) == (diagnosis.ONE_SIDED, diagnosis.FEW)
