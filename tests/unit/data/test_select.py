"""What is kept of scored responses: every selection, by hand and by its distribution."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import write_jsonl

from preftune.cli.main import run as cli
from preftune.data.select import SELECTIONS, Selecting, Selection, accepted, choose
from preftune.formats.values import Drop

TEXTS = ("a", "b", "c", "d")
SCORES = (0.1, 0.9, 0.4, 0.4)


def test_best_and_worst() -> None:
    found = choose(TEXTS, SCORES, Selecting("best-worst", soft=True), "p")
    assert found.members == (0, 1)
    (judgement,) = found.judgements
    assert (judgement.better, judgement.worse, judgement.weight) == (1, 0, 1.0)
    assert judgement.probability == pytest.approx(1 / (1 + math.exp(-0.8)))


def test_all_pairs_weigh_one_prompt() -> None:
    found = choose(TEXTS, SCORES, Selecting("all"), "p")
    assert found.members == (0, 1, 2, 3)
    assert found.left_out == {"without a reward": 0, "copies": 0, "not accepted": 0, "ties": 1, "below the gap": 0}
    assert len(found.judgements) == 5
    assert sum(j.weight for j in found.judgements) == pytest.approx(1)
    assert all(j.probability == 1 for j in found.judgements)


def test_the_gap() -> None:
    found = choose(TEXTS, SCORES, Selecting("all", gap=0.45), "p")
    assert {(found.members[j.better], found.members[j.worse]) for j in found.judgements} == {(1, 0), (1, 2), (1, 3)}
    assert found.left_out == {"without a reward": 0, "copies": 0, "not accepted": 0, "ties": 1, "below the gap": 2}
    with pytest.raises(Drop, match=r"no gap of 0\.9 or more"):
        choose(TEXTS, SCORES, Selecting("best-worst", gap=0.9), "p")


def test_best_of_k() -> None:
    assert choose(TEXTS, SCORES, Selecting("top-k", k=2), "p").members == (1, 2)
    assert choose(TEXTS, SCORES, Selecting("top-k"), "p").judgements == ()


@pytest.mark.parametrize("select", SELECTIONS)
def test_a_response_without_a_reward_is_never_chosen(select: Selection) -> None:
    texts, scores = ("a", "b", "c", "d"), (0.0, math.nan, 1.0, math.nan)
    found = choose(texts, scores, Selecting(select, beta=1e6, k=4), "p")
    assert set(found.members) == {0, 2}
    assert (found.left_out["without a reward"], found.left_out["not accepted"]) == (2, 0)
    if select != "top-k":
        with pytest.raises(Drop, match="fewer than two different responses got a reward"):
            choose(("a", "b"), (1.0, math.nan), Selecting(select), "p")
    with pytest.raises(Drop, match="no response got a reward"):
        choose(("a", "b"), (math.nan, math.nan), Selecting(select), "p")


def test_ties_and_copies() -> None:
    with pytest.raises(Drop, match="all scores are tied"):
        choose(("a", "b"), (1.0, 1.0), Selecting("all"), "p")
    with pytest.raises(Drop, match="fewer than two different responses"):
        choose(("a", "a", "a"), (1.0, 2.0, 3.0), Selecting("best-worst"), "p")


def test_another_at_random() -> None:
    """Every other response is drawn about equally often; the same seed and prompt draw the same."""
    worse = [
        found.members[found.judgements[0].worse]
        for i in range(900)
        for found in [choose(TEXTS, (0.1, 0.9, 0.4, 0.3), Selecting("best-random"), f"prompt {i}")]
    ]
    assert all(240 < worse.count(i) < 360 for i in (0, 2, 3))
    assert choose(TEXTS, SCORES, Selecting("best-random"), "p") == choose(TEXTS, SCORES, Selecting("best-random"), "p")


def test_accepted_responses_are_samples_of_the_optimal_policy() -> None:
    """Among accepted responses of two kinds, their odds are tilted by exp((r1 - r2) / beta)."""
    beta, scores = 0.5, [0.0, 0.6, 1.0]
    counts = [0, 0, 0]
    for i in range(4000):
        for member in accepted([2, 1, 0], scores, Selecting("rso", beta=beta), f"prompt {i}"):
            counts[member] += 1
    for i in (0, 1):
        assert counts[i] / counts[2] == pytest.approx(math.exp((scores[i] - 1.0) / beta), abs=0.04)
    assert counts[2] == 4000


def test_copies_are_counted_and_stand_for_as_many_samples() -> None:
    """Nine of ten samples say `a`: among what is accepted it weighs nine times as much as `b`, and a pair both."""
    texts, scores = ("a",) * 9 + ("b", "c"), (1.0,) * 9 + (0.9999, 0.9998)
    found = choose(texts, scores, Selecting("rso", beta=1000.0), "p")
    weights = {(texts[found.members[j.better]], texts[found.members[j.worse]]): j.weight for j in found.judgements}
    assert weights == {("a", "b"): 9 / 19, ("a", "c"): 9 / 19, ("b", "c"): 1 / 19}
    assert found.left_out["copies"] == 8
    assert choose(texts, scores, Selecting("all"), "p").left_out["copies"] == 8
    strict = choose(("a", "b", "c"), (0.0, 1.0, 0.99), Selecting("rso", beta=0.01), "q")
    assert strict.left_out["not accepted"] == 1


@given(
    st.lists(st.tuples(st.text(max_size=2), st.floats(-5, 5)), min_size=1, max_size=7),
    st.sampled_from(SELECTIONS),
    st.booleans(),
    st.floats(0, 2),
)
def test_whatever_is_chosen_is_sound(items: list[tuple[str, float]], select: str, soft: bool, gap: float) -> None:
    texts, scores = [t for t, _ in items], [s for _, s in items]
    try:
        found = choose(texts, scores, Selecting(select, gap, soft), "p")  # type: ignore[arg-type]
    except Drop:
        return
    assert len({texts[i] for i in found.members}) == len(found.members)
    for j in found.judgements:
        difference = scores[found.members[j.better]] - scores[found.members[j.worse]]
        assert difference > 0
        assert difference >= gap
        assert j.probability == (pytest.approx(1 / (1 + math.exp(-difference))) if soft else 1)


def test_what_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of prompts that are kept; a prompt of which nothing is left is dropped with its reason."""
    rows = [
        {"prompt": "p", "responses": ["x", "x", "y", "z"], "scores": [1.0, 1.0, 0.8, 0.0]},
        {"prompt": "q", "responses": ["x", "y"], "scores": [1.0, 1.0]},
        {"prompt": "r", "responses": ["x", "y", "z"], "scores": [-1.0, None, -2.0]},
    ]
    samples = write_jsonl(tmp_path / "s.jsonl", rows)
    out = ["--out", str(tmp_path / "p.jsonl")]
    assert cli(["pairs", str(samples), "--select", "all", "--gap", "0.5", *out]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "dropped 1 (line 2): all scores are tied" in said
    assert "2 groups, 5 responses, 3 judgements" in said
    assert "left out: 1 without a reward, 1 copies, 1 below the gap" in said
    for option in (["--k", "2"], ["--beta", "0.3"]):
        assert cli(["pairs", str(samples), "--select", "all", *option, *out]) == 2
        assert "means nothing to all" in capsys.readouterr().err
    for option in (["--gap", "0.3"], ["--soft"]):
        assert cli(["pairs", str(samples), "--select", "top-k", *option, *out]) == 2
        assert "means nothing to top-k" in capsys.readouterr().err
