"""What the figures of scored pairs say about losses without a reference, sums of losses and long responses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.unit.report.cards import loaded, write_pairs

from preftune.report.figures import pair_cards
from preftune.report.page import Absent, Card


def test_without_a_reference_the_order_is_that_of_the_log_probs(tmp_path: Path) -> None:
    run = loaded(write_pairs(tmp_path, 40, reference=None), {"name": "simpo", "beta": 2.0})
    per_token = run.logps_KP2[-1] / run.tokens_P2
    right = float((per_token[:, 0] > per_token[:, 1]).mean())
    data = pair_cards.pair_data(run)
    assert data["hist"][-1]["accuracy"] == pytest.approx(right, abs=1e-4)
    card = pair_cards.landscape(run, data)
    assert "than at step 0" in card.read
    assert "shade" not in card.read
    assert f"{round(40 * (1 - right))} of 40" in pair_cards.pairs(run).sentence
    start = pair_cards.landscape_sentence(data, 0)
    assert "reference" not in start


def test_the_rewards_of_tokens_add_up_for_long_responses_and_losses_per_token(tmp_path: Path) -> None:
    write_pairs(tmp_path, 3)
    tokens = [["a", 0.01]] * 900
    row = {"pair": 0, "chosen": tokens, "rejected": [["b", -0.5]]}
    card = pair_cards.tokens(loaded(tmp_path), [row])
    assert isinstance(card, Card)
    assert "add up to +9.000" in card.sentence
    assert card.data["pairs"][0]["chosen"][-1][0] == " [500 more tokens]"
    alone = loaded(write_pairs(tmp_path, 3, reference=None), {"name": "simpo", "beta": 2.0})
    card = pair_cards.tokens(alone, [row])
    assert isinstance(card, Card)
    assert "add up to +0.010" in card.sentence
    assert "reference" not in card.read
    assert "divided by the number of tokens" in card.read


def test_a_sum_of_losses_is_drawn_by_its_term_with_a_margin(tmp_path: Path) -> None:
    run = loaded(write_pairs(tmp_path, 3), [{"name": "nll", "weight": 0.2}, {"name": "sigmoid"}])
    assert (run.loss, run.is_sum) == ("sigmoid", True)
    card = pair_cards.by_hand(run)
    assert isinstance(card, Absent)
    assert "a sum of losses" in card.reason


def test_a_push_that_grows_is_not_said_to_fall(tmp_path: Path) -> None:
    run = loaded(write_pairs(tmp_path, 40))
    run.logps_KP2[-1, :, 0] -= 40
    assert np.all(run.margin_KP[-1] < 0)
    sentence = pair_cards.gradient_sentence(pair_cards.pair_data(run))
    assert "the mean push went from 0.50 to 0.9" in sentence
