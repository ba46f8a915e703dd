"""Each warning appears just outside of its threshold and not just inside, and never for data like people's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from preftune.measures.diagnosis import about_pairs, about_rewards, about_training, about_weights, pair_facts
from preftune.types import Judgement, TokenGroup


def group(number: int, chosen: int, rejected: int, swapped: bool = False) -> TokenGroup:
    """A pair of responses of these lengths; `swapped` exchanges the judgement."""
    prompt = np.array([number], dtype=np.int32)
    texts = tuple(np.arange(n, dtype=np.int32) for n in (chosen, rejected))
    return TokenGroup(prompt, texts, (Judgement(1, 0) if swapped else Judgement(0, 1),))


def pairs_of(lengths: list[tuple[int, int]]) -> dict[str, str]:
    return about_pairs(pair_facts(group(n, *both) for n, both in enumerate(lengths)))


def lines(steps: int, **metrics: Any) -> list[dict[str, float]]:
    """Training lines of an ordinary run, with some metrics replaced; a list gives one value per line."""
    usual = {"grad_norm": 2.0, "rewards/margins": 0.3, "rewards/accuracies": 0.7, "lr": 1e-6, "epoch": 0}
    return [
        {"step": step, **usual, **{k: v[step - 1] if isinstance(v, list) else v for k, v in metrics.items()}}
        for step in range(1, steps + 1)
    ]


def test_an_ordinary_run_and_ordinary_data_have_no_warning() -> None:
    assert about_training(lines(200), 8) == {}
    assert about_training([], 8) == {}
    generator = np.random.default_rng(0)
    for share in (0.5, 0.65, 0.8):  # of longer chosen responses: people to model judges
        longer = generator.random(400) < share
        assert pairs_of([(9, 5) if flag else (5, 9) for flag in longer]) == {}


@pytest.mark.parametrize(("chosen", "warned"), [(97, True), (94, False)])
@pytest.mark.parametrize("which", ["chosen", "rejected"])
def test_one_sided_lengths(chosen: int, warned: bool, which: str) -> None:
    rows = [(9, 5)] * chosen + [(5, 9)] * (100 - chosen) + [(7, 7)] * 50
    texts = pairs_of(rows if which == "chosen" else [(b, a) for a, b in rows])
    assert list(texts) == ["one length"] * warned
    if warned:
        assert texts["one length"].startswith(f"the {which} response is longer in 97% of the pairs of different length")
        assert ("ld_dpo" in texts["one length"]) == (which == "chosen")


def test_a_few_one_sided_pairs_say_nothing() -> None:
    assert pairs_of([(9, 5)] * 29) == {}
    assert list(pairs_of([(9, 5)] * 31)) == ["one length"]


@pytest.mark.parametrize(("twice", "warned"), [(26, True), (24, False)])
def test_pairs_in_both_orders(twice: int, warned: bool) -> None:
    once = [group(n, 9 - 4 * (n % 2), 5 + 4 * (n % 2)) for n in range(100 - twice)]
    facts = pair_facts([*once, *(group(n, 9 - 4 * (n % 2), 5 + 4 * (n % 2), swapped=True) for n in range(twice))])
    assert (facts.pairs, facts.both_orders) == (100, 2 * twice)
    assert list(about_pairs(facts)) == ["both orders"] * warned


@pytest.mark.parametrize(("norms", "warned"), [([1.0, 0.0, 0.0, 0.0], True), ([0.0, 0.0, 0.0, 1e-9], False)])
def test_no_gradient(norms: list[float], warned: bool) -> None:
    texts = about_training(lines(4, grad_norm=norms), 1)
    assert list(texts) == ["no gradient"] * warned


@pytest.mark.parametrize(("steps", "margin", "warned"), [(50, 9e-4, True), (50, 2e-3, False), (49, 0.0, False)])
def test_a_margin_that_stays_at_zero(steps: int, margin: float, warned: bool) -> None:
    texts = about_training(lines(steps, **{"rewards/margins": margin, "lr": 5e-9}), 8)
    assert list(texts) == ["no change"] * warned
    assert not warned or "optim.lr was 5.0e-09" in texts["no change"]


@pytest.mark.parametrize(
    ("accuracies", "pairs", "epoch", "warned"),
    [
        ([0.5, 1, 1, 1], 8, 0, True),
        ([0.5, 1, 1, 1], 7, 0, False),  # one of the four lines that make 24 pairs is not all right
        ([0.5, 0.9, 1, 1], 8, 0, False),
        ([0.5, 1, 1, 1], 8, 1, False),  # pairs that were trained on before
        ([0.5, 1, 1, 1], 1, 0, False),
    ],
)
def test_pairs_that_are_told_apart_at_once(accuracies: list[float], pairs: int, epoch: int, warned: bool) -> None:
    texts = about_training(lines(4, **{"rewards/accuracies": accuracies, "epoch": epoch}), pairs)
    assert list(texts) == ["too easy"] * warned


def test_a_line_counts_the_pairs_of_all_steps_since_the_line_before_it() -> None:
    """With train.log_every=10."""
    [line] = lines(1, **{"rewards/accuracies": 1.0})
    text = about_training([{**line, "step": 10}], 32)["too easy"]
    assert text.startswith("the last 320 pairs up to step 10 were all told apart")


def test_late_success_is_no_leak() -> None:
    late = lines(60, **{"rewards/accuracies": [0.6] * 30 + [1.0] * 30})
    assert about_training(late, 8) == {}


@pytest.mark.parametrize(("growth", "slope", "warned"), [(2.0, 1.0, True), (1.3, 1.0, False), (2.0, 0.0, False)])
def test_a_reward_by_length(growth: float, slope: float, warned: bool) -> None:
    """The reward follows the length, the length does not grow, or the reward is noise."""
    generator = np.random.default_rng(0)
    lengths = 40 * np.linspace(1, growth, 40)
    scores = slope * lengths / 10 + generator.normal(0, 0.3, 40)
    rows = [{"objective/score": s, "responses/tokens": n} for s, n in zip(scores, lengths, strict=True)]
    assert list(about_rewards(rows)) == ["reward by length"] * warned
    assert about_rewards(rows[:9]) == {}


def test_updates_that_saving_rounds_away() -> None:
    assert "only 0.50% of the saved weights" in about_weights(0.005, "bf16")["rounded away"]
    assert about_weights(0.02, "bf16") == {}
