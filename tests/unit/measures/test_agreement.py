"""Agreement of annotators against published examples and a simulation of chance."""

from __future__ import annotations

import random

import pytest

from preftune.measures.agreement import agreement, cohen_kappa, krippendorff_alpha

#: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C: four observers, twelve units; a dot is a
#: missing value. The nominal alpha is 0.743.
OBSERVERS = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")


def test_alpha_of_the_published_example() -> None:
    units = [[value for value in unit if value != "."] for unit in zip(*OBSERVERS, strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)


def test_kappa_of_the_textbook_example() -> None:
    """20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: observed 0.7, by chance 0.5, kappa 0.4."""
    pairs = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    assert cohen_kappa(pairs) == pytest.approx(0.4)


def test_perfect_agreement_is_one_and_contradiction_is_negative() -> None:
    same = agreement([["first", "first"], ["second", "second"], ["tie", "tie", "tie"]])
    assert same is not None
    assert (same.items, same.raw, same.alpha) == (3, 1.0, 1.0)
    opposite = agreement([["first", "second"], ["second", "first"]])
    assert opposite is not None
    assert opposite.raw == 0
    assert opposite.alpha == pytest.approx(-0.5)


def test_without_shared_items_or_variation_nothing_is_made_up() -> None:
    assert agreement([["first"], [], ["second"]]) is None
    constant = agreement([["first", "first"], ["first", "first"]])
    assert constant is not None
    assert (constant.raw, constant.alpha) == (1.0, None)
    assert cohen_kappa([("a", "a"), ("a", "a")]) is None


def test_independent_annotators_have_no_agreement_beyond_chance() -> None:
    draw = random.Random(0)
    pairs = [(draw.choice("aab"), draw.choice("abb")) for _ in range(20_000)]
    kappa, alpha = cohen_kappa(pairs), krippendorff_alpha([list(draw.choices("aab", k=3)) for _ in range(20_000)])
    assert kappa == pytest.approx(0, abs=0.02)
    assert alpha == pytest.approx(0, abs=0.02)
