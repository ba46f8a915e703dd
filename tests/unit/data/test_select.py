"""Selections from scored responses, checked by hand and by their distribution."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import write_jsonl

from preftune.cli.main import run as cli
from preftune.data.select import SELECTIONS, Selection, SelectionOptions, rso_sample, select_responses
from preftune.formats.values import Drop

TEXTS = ("a", "b", "c", "d")
SCORES = (0.1, 0.9, 0.4, 0.4)


def test_best_worst_makes_one_pair() -> None:
    selected = select_responses(TEXTS, SCORES, SelectionOptions("best-worst", soft=True), "p")
    assert selected.members == (0, 1)
    (judgement,) = selected.judgements
    assert (judgement.better, judgement.worse, judgement.weight) == (1, 0, 1.0)
    assert judgement.probability == pytest.approx(1 / (1 + math.exp(-0.8)))


def test_all_pairs_of_a_prompt_have_a_total_weight_of_1() -> None:
    selected = select_responses(TEXTS, SCORES, SelectionOptions("all"), "p")
    assert selected.members == (0, 1, 2, 3)
    assert selected.left_out == {"without a reward": 0, "copies": 0, "not accepted": 0, "ties": 1, "below the gap": 0}
    assert len(selected.judgements) == 5
    assert sum(j.weight for j in selected.judgements) == pytest.approx(1)
    assert all(j.probability == 1 for j in selected.judgements)


def test_pairs_below_the_gap_are_left_out_and_counted() -> None:
    selected = select_responses(TEXTS, SCORES, SelectionOptions("all", gap=0.45), "p")
    assert {(selected.members[j.better], selected.members[j.worse]) for j in selected.judgements} == {
        (1, 0),
        (1, 2),
        (1, 3),
    }
    assert selected.left_out == {"without a reward": 0, "copies": 0, "not accepted": 0, "ties": 1, "below the gap": 2}
    with pytest.raises(Drop, match=r"no pair has a gap of 0\.9 or more"):
        select_responses(TEXTS, SCORES, SelectionOptions("best-worst", gap=0.9), "p")


def test_top_k_selects_the_best_responses_without_judgements() -> None:
    assert select_responses(TEXTS, SCORES, SelectionOptions("top-k", k=2), "p").members == (1, 2)
    assert select_responses(TEXTS, SCORES, SelectionOptions("top-k"), "p").judgements == ()


@pytest.mark.parametrize("select", SELECTIONS)
def test_a_response_without_a_reward_is_never_selected(select: Selection) -> None:
    texts, scores = ("a", "b", "c", "d"), (0.0, math.nan, 1.0, math.nan)
    selected = select_responses(texts, scores, SelectionOptions(select, beta=1e6, k=4), "p")
    assert set(selected.members) == {0, 2}
    assert (selected.left_out["without a reward"], selected.left_out["not accepted"]) == (2, 0)
    if select != "top-k":
        with pytest.raises(Drop, match="fewer than two different responses got a reward"):
            select_responses(("a", "b"), (1.0, math.nan), SelectionOptions(select), "p")
    with pytest.raises(Drop, match="no response got a reward"):
        select_responses(("a", "b"), (math.nan, math.nan), SelectionOptions(select), "p")


def test_a_prompt_with_only_ties_or_copies_is_dropped() -> None:
    with pytest.raises(Drop, match="all scores are tied"):
        select_responses(("a", "b"), (1.0, 1.0), SelectionOptions("all"), "p")
    with pytest.raises(Drop, match="fewer than two different responses"):
        select_responses(("a", "a", "a"), (1.0, 2.0, 3.0), SelectionOptions("best-worst"), "p")


def test_best_random_draws_the_other_response_uniformly_and_reproducibly() -> None:
    worse = [
        selected.members[selected.judgements[0].worse]
        for i in range(900)
        for selected in [select_responses(TEXTS, (0.1, 0.9, 0.4, 0.3), SelectionOptions("best-random"), f"prompt {i}")]
    ]
    assert all(240 < worse.count(i) < 360 for i in (0, 2, 3))
    assert select_responses(TEXTS, SCORES, SelectionOptions("best-random"), "p") == select_responses(
        TEXTS, SCORES, SelectionOptions("best-random"), "p"
    )


def test_accepted_responses_are_samples_of_the_optimal_policy() -> None:
    """The ratio of accepted responses of two kinds is exp((r1 - r2) / beta)."""
    beta, scores = 0.5, [0.0, 0.6, 1.0]
    counts = [0, 0, 0]
    for i in range(4000):
        for member in rso_sample([2, 1, 0], scores, SelectionOptions("rso", beta=beta), f"prompt {i}"):
            counts[member] += 1
    for i in (0, 1):
        assert counts[i] / counts[2] == pytest.approx(math.exp((scores[i] - 1.0) / beta), abs=0.04)
    assert counts[2] == 4000


def test_accepted_copies_multiply_the_weight_of_a_pair() -> None:
    """`a` is accepted nine times, `b` and `c` once, so the pairs with `a` have nine times the weight of (b, c)."""
    texts, scores = ("a",) * 9 + ("b", "c"), (1.0,) * 9 + (0.9999, 0.9998)
    selected = select_responses(texts, scores, SelectionOptions("rso", beta=1000.0), "p")
    weights = {
        (texts[selected.members[j.better]], texts[selected.members[j.worse]]): j.weight for j in selected.judgements
    }
    assert weights == {("a", "b"): 9 / 19, ("a", "c"): 9 / 19, ("b", "c"): 1 / 19}
    assert selected.left_out["copies"] == 8
    assert select_responses(texts, scores, SelectionOptions("all"), "p").left_out["copies"] == 8
    strict = select_responses(("a", "b", "c"), (0.0, 1.0, 0.99), SelectionOptions("rso", beta=0.01), "q")
    assert strict.left_out["not accepted"] == 1


@given(
    st.lists(st.tuples(st.text(max_size=2), st.floats(-5, 5)), min_size=1, max_size=7),
    st.sampled_from(SELECTIONS),
    st.booleans(),
    st.floats(0, 2),
)
def test_selected_responses_are_distinct_and_pairs_exceed_the_gap(
    items: list[tuple[str, float]], select: str, soft: bool, gap: float
) -> None:
    texts, scores = [t for t, _ in items], [s for _, s in items]
    try:
        selected = select_responses(texts, scores, SelectionOptions(select, gap, soft), "p")  # type: ignore[arg-type]
    except Drop:
        return
    assert len({texts[i] for i in selected.members}) == len(selected.members)
    for j in selected.judgements:
        difference = scores[selected.members[j.better]] - scores[selected.members[j.worse]]
        assert difference > 0
        assert difference >= gap
        assert j.probability == (pytest.approx(1 / (1 + math.exp(-difference))) if soft else 1)


def test_pairs_reports_dropped_prompts_and_left_out_responses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": "p", "responses": ["x", "x", "y", "z"], "scores": [1.0, 1.0, 0.8, 0.0]},
        {"prompt": "q", "responses": ["x", "y"], "scores": [1.0, 1.0]},
        {"prompt": "r", "responses": ["x", "y", "z"], "scores": [-1.0, None, -2.0]},
    ]
    samples = write_jsonl(tmp_path / "s.jsonl", rows)
    out = ["--out", str(tmp_path / "p.jsonl")]
    assert cli(["pairs", str(samples), "--select", "all", "--gap", "0.5", *out]) == 0
    stderr = " ".join(capsys.readouterr().err.split())
    assert "dropped 1 (line 2): all scores are tied" in stderr
    assert "2 groups, 5 responses, 3 judgements" in stderr
    assert "not used in these groups: 1 without a reward, 1 copies, 1 below the gap" in stderr
    for option in (["--k", "2"], ["--beta", "0.3"]):
        assert cli(["pairs", str(samples), "--select", "all", *option, *out]) == 2
        assert "the option is not used by 'all'" in capsys.readouterr().err
    for option in (["--gap", "0.3"], ["--soft"]):
        assert cli(["pairs", str(samples), "--select", "top-k", *option, *out]) == 2
        assert "the option is not used by 'top-k'" in capsys.readouterr().err
