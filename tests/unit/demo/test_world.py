"""The demo's grammar and reward."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.demo.run import sparkline
from preftune.demo.world import ADJECTIVES, ASPECTS, FACTS, THINGS, kind_of, prompts, true_reward, write


def test_the_reward_of_some_reviews_computed_by_hand() -> None:
    assert true_reward(" the plot was good .") == pytest.approx(math.tanh(1.0 / 3))
    assert true_reward(" the plot was not good .") == pytest.approx(math.tanh(-0.6 / 3))
    assert true_reward(" the plot was really awful and i loved the music .") == pytest.approx(
        math.tanh((-2.8 + 1.8) / 3)
    )
    assert true_reward(" i disliked the plot . worth every penny .") == pytest.approx(math.tanh((-1.2 + 1.6) / 3))
    assert true_reward(" not worth the money .") == pytest.approx(math.tanh(-1.4 / 3))
    assert true_reward("anything else") == 0.0


@given(st.text())
def test_any_text_has_a_reward_between_minus_1_and_1(text: str) -> None:
    assert -1 <= true_reward(text) <= 1


def test_the_frequency_of_a_review_is_its_probability() -> None:
    prompt = prompts()[0]
    rng = random.Random(0)
    n = 60_000
    reviews = [write(prompt, rng) for _ in range(n)]
    counts = Counter(r.text for r in reviews)
    logp = {r.text: r.logp for r in reviews}
    for text, count in counts.most_common(12):
        expected = n * math.exp(logp[text])
        assert abs(count - expected) < 5 * math.sqrt(expected)


def test_positive_and_negative_reviews_are_balanced() -> None:
    rng = random.Random(1)
    rewards = [true_reward(write(rng.choice(prompts()), rng).text) for _ in range(4000)]
    assert abs(sum(rewards) / len(rewards)) < 0.05
    assert sum(r > 0.3 for r in rewards) > 800
    assert sum(r < -0.3 for r in rewards) > 800


def test_reviews_are_varied() -> None:
    assert len(prompts()) == 100
    assert {kind_of(p) for p in prompts()} == set(THINGS) == set(ASPECTS)
    rng = random.Random(2)
    assert len({write(rng.choice(prompts()), rng).text for _ in range(3000)}) > 2500
    assert len(ADJECTIVES) >= 15
    assert len(FACTS) >= 8


def test_a_sparkline_has_a_mark_per_value() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([1.0, 1.0]) == "▁▁"
