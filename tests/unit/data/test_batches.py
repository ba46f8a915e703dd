"""Order, layout, items and audit: what groups become on their way to the model."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import random_groups

from preftune.data.audit import audit
from preftune.data.items import as_labelled, as_pairs, as_rankings, require_columns, with_mismatches
from preftune.data.layout import Budget, LayoutName, batch_of, micro_batches, rows, shares, slots_of
from preftune.data.order import epoch_steps, permutation, size_of, training_steps
from preftune.errors import DataError
from preftune.types import Judgement, Packed, PreferenceGroup, Segment, TokenGroup

sizes_and_pairs = st.tuples(st.lists(st.integers(1, 9), min_size=1, max_size=60), st.integers(1, 20))


@given(sizes_and_pairs, st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_has_every_group_once_and_splits_none(data: tuple[list[int], int], seed: int, epoch: int) -> None:
    sizes, pairs = data
    steps = epoch_steps(sizes, pairs, seed, epoch)
    assert sorted(i for step in steps for i in step) == list(range(len(sizes)))
    for step in steps:
        assert sum(sizes[i] for i in step) <= pairs or len(step) == 1
    for step, after in itertools.pairwise(steps):  # no step could have held one more group
        assert sum(sizes[i] for i in step) + sizes[after[0]] > pairs


@given(sizes_and_pairs, st.integers(1, 3), st.integers(1, 30))
def test_a_shorter_run_is_the_beginning_of_a_longer_one(data: tuple[list[int], int], epochs: int, most: int) -> None:
    sizes, pairs = data
    whole = list(training_steps(sizes, pairs, 7, epochs))
    assert list(training_steps(sizes, pairs, 7, epochs, most)) == whole[:most]
    assert [p.number for p in whole] == list(range(1, len(whole) + 1))


def test_order_depends_on_seed_and_epoch() -> None:
    orders = {tuple(permutation(20, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_what_a_group_counts_for() -> None:
    one = np.array([3], dtype=np.int32)
    assert size_of(TokenGroup(one, (one,))) == 1
    assert size_of(TokenGroup(one, (one, one), (Judgement(0, 1),))) == 1
    assert size_of(TokenGroup(one, (one, one, one), labels=(1, -1, 0))) == 2


@pytest.mark.parametrize("responses", [1, 2, 4])
def test_rows_say_which_position_predicts_which_token(responses: int) -> None:
    groups = random_groups(5, responses)
    batch = rows(groups)
    ids = batch.ids_T.view(batch.layout.rows, batch.layout.width)
    n = 0
    for row, (group, response) in enumerate((g, r) for g in groups for r in g.response_ids):
        sequence = group.prompt_ids.tolist() + response.tolist()
        assert ids[row, : len(sequence) - 1].tolist() == sequence[:-1]
        assert int(batch.length_S[row]) == len(response)
        for place in range(len(response)):
            position = len(group.prompt_ids) + place
            assert int(batch.target_N[n]) == sequence[position]
            assert int(batch.read_N[n]) == row * batch.layout.width + position - 1
            n += 1
    assert n == len(batch.target_N)
    assert batch.judged.group_S.tolist() == [i for i in range(5) for _ in range(responses)]
    pairs = list(zip(batch.judged.better_P.tolist(), batch.judged.worse_P.tolist(), strict=True))
    assert pairs == [
        (g * responses + b, g * responses + w)
        for g in range(5)
        for b in range(responses)
        for w in range(b + 1, responses)
    ]


@pytest.mark.parametrize("layout", ["packed", "shared"])
@given(n=st.integers(1, 6), responses=st.integers(1, 4), seed=st.integers(0, 50))
def test_a_packed_row_holds_every_sequence_once(layout: LayoutName, n: int, responses: int, seed: int) -> None:
    """What a slot sees, in order, is its own sequence up to itself; the slot that is read predicts the target."""
    groups = random_groups(n, responses, seed)
    batch = batch_of(groups, layout)
    assert isinstance(batch.layout, Packed)
    seen: dict[int, list[int]] = {}
    for s in batch.layout.segments:
        for slot in range(s.begin, s.end):
            seen[slot] = [*range(s.prefix_begin, s.prefix_end), *range(s.begin, slot + 1)]
    assert sorted(seen) == list(range(len(batch.ids_T)))  # every slot in exactly one segment, none is padding
    assert len(batch.ids_T) == sum(slots_of(group, layout) for group in groups)
    ids = batch.ids_T.tolist()
    reads = iter(zip(batch.read_N.tolist(), batch.target_N.tolist(), strict=True))
    for group, response in ((g, r) for g in groups for r in g.response_ids):
        sequence = group.prompt_ids.tolist() + response.tolist()
        for place in range(len(group.prompt_ids), len(sequence)):
            slot, target = next(reads)
            assert [ids[i] for i in seen[slot]] == sequence[:place]
            assert [int(batch.positions_T[i]) for i in seen[slot]] == list(range(place))
            assert target == sequence[place]
    assert next(reads, None) is None


@pytest.mark.parametrize("layout", ["rows", "packed", "shared"])
@given(n=st.integers(1, 12), responses=st.integers(1, 3), tokens=st.integers(1, 200))
def test_micro_batches_hold_every_group_and_keep_the_budget(
    layout: LayoutName, n: int, responses: int, tokens: int
) -> None:
    groups = random_groups(n, responses)
    batches = micro_batches(groups, Budget(layout, tokens))
    assert Counter(id(g) for b in batches for g in b.groups) == Counter(map(id, groups))
    for batch in batches:
        assert len(batch.ids_T) <= tokens or len(batch.groups) == 1
    if layout != "rows":  # best fit: no two batches could have been one
        sizes = sorted(len(batch.ids_T) for batch in batches)
        assert len(sizes) < 2 or sizes[0] + sizes[1] > tokens


@pytest.mark.parametrize("layout", ["packed", "shared"])
@given(n=st.integers(1, 12), responses=st.integers(1, 3), tokens=st.integers(1, 200))
def test_constant_lengths_are_few_and_change_no_sequence(
    layout: LayoutName, n: int, responses: int, tokens: int
) -> None:
    """Quarters of the budget; what is read lies where it would without padding, and padding is a segment apart."""
    groups = random_groups(n, responses)
    batches = micro_batches(groups, Budget(layout, tokens, constant=True))
    assert Counter(id(g) for b in batches for g in b.groups) == Counter(map(id, groups))
    for batch in batches:
        assert isinstance(batch.layout, Packed)
        bare, slots = batch_of(batch.groups, layout), len(batch.ids_T)
        assert isinstance(bare.layout, Packed)
        real = len(bare.ids_T)
        assert slots % -(-tokens // 4) == 0 or slots == tokens
        assert slots <= tokens or real > tokens
        assert slots - real < max(1, -(-tokens // 4))
        assert batch.ids_T[:real].equal(bare.ids_T)
        assert batch.positions_T[:real].equal(bare.positions_T)
        assert batch.read_N.equal(bare.read_N)
        assert batch.layout.segments[: len(bare.layout.segments)] == bare.layout.segments
        assert batch.layout.segments[len(bare.layout.segments) :] == ((Segment(real, slots),) if slots > real else ())


def group(n: int, **known: Any) -> TokenGroup:
    ids = tuple(np.array([10 + i], dtype=np.int32) for i in range(n))
    return TokenGroup(np.array([3], dtype=np.int32), ids, origin="f:1", **known)


def test_labels_follow_from_judgements_where_they_are_clear() -> None:
    [found] = as_labelled([group(3, judgements=(Judgement(0, 1), Judgement(0, 2), Judgement(1, 2)))], "kto")
    assert found.labels == (1, -1)  # response 1 both won and lost
    assert [r.tolist() for r in found.response_ids] == [[10], [12]]
    assert found.judgements == (Judgement(0, 1),)
    [kept] = as_labelled([group(1, labels=(-1,))], "kto")
    assert kept.labels == (-1,)


def test_mismatches_come_from_another_prompt() -> None:
    groups = [
        TokenGroup(np.array([p], dtype=np.int32), (np.array([r], dtype=np.int32),), labels=(1,), origin="f:1")
        for p, r in ((3, 10), (3, 11), (4, 12))
    ]
    found = with_mismatches(groups, "kto")
    assert [[int(r[0]) for r in g.response_ids] for g in found] == [[10, 12], [11, 12], [12, 10]]
    assert all(g.labels == (1, 0) for g in found)
    with pytest.raises(DataError, match="all prompts are the same"):
        with_mismatches(groups[:2], "kto")


def labelled(prompt: int, *responses: list[int]) -> TokenGroup:
    ids = tuple(np.array(r, dtype=np.int32) for r in responses)
    return TokenGroup(np.array([prompt], dtype=np.int32), ids, labels=(1,) * len(ids), origin=f"f:{prompt}")


def test_a_mismatch_is_never_word_for_word_a_response_of_the_row_itself() -> None:
    """9 is the EOS, which a response loses when it is truncated."""
    groups = [labelled(1, [5, 9], [6, 9]), labelled(2, [5, 9], [6]), labelled(3, [7, 9], [6, 9])]
    found = [g.response_ids[-1].tolist() for g in with_mismatches(groups, "kto")]
    assert found == [[7, 9], [7, 9], [5, 9]]  # of the second row, [6, 9] is its own [6] with the EOS
    with pytest.raises(DataError, match=r"f:1: .*\n.*one of this row's own, word for word"):
        with_mismatches([labelled(1, [5], [6]), labelled(2, [6], [5])], "kto")


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(5, 8)), min_size=2, max_size=8))
def test_mismatches_over_random_rows(rows: list[tuple[int, int]]) -> None:
    """Another prompt, other words; an error only where no response is left."""
    groups = [labelled(prompt, [response]) for prompt, response in rows]
    possible = all(any(p != prompt and r != response for p, r in rows) for prompt, response in rows)
    if not possible:
        with pytest.raises(DataError):
            with_mismatches(groups, "kto")
        return
    for (prompt, response), group in zip(rows, with_mismatches(groups, "kto"), strict=True):
        foreign = int(group.response_ids[-1][0])
        assert foreign != response
        assert any(p != prompt and r == foreign for p, r in rows)


def test_mismatches_alternate_and_make_no_sequence_longer() -> None:
    """GPT-2 has no position beyond the longest sequence that was checked."""

    def pair(prompt: int, chosen: int, rejected: int, number: int) -> TokenGroup:
        ids = [np.full(n, 10 * number + i, dtype=np.int32) for i, n in enumerate((prompt, chosen, rejected))]
        return TokenGroup(ids[0], (ids[1], ids[2]), (Judgement(0, 1),), labels=(1, -1), origin=f"f:{number}")

    groups = [pair(60, 2, 1, 1), pair(2, 60, 50, 2), pair(5, 3, 4, 3), pair(60, 1, 2, 4)]
    found = with_mismatches(groups, "kto")
    foreign = [g.response_ids[2].tolist() for g in found]
    assert foreign == [[21] * 2, [32] * 4, [41], [12]]  # chosen, rejected, chosen, rejected of the next group
    assert max(len(g.prompt_ids) + len(r) for g in found for r in g.response_ids) == 62
    assert all(g.labels == (1, -1, 0) for g in found)


def test_rankings() -> None:
    [pair] = as_rankings([group(2, judgements=(Judgement(1, 0),))], "plackett_luce")
    assert pair.ranks == (2.0, 1.0)
    with pytest.raises(DataError, match="all different"):
        as_rankings([group(3, ranks=(1.0, 1.0, 3.0))], "plackett_luce")
    with pytest.raises(DataError, match="got none"):
        as_rankings([group(3, judgements=(Judgement(0, 1),))], "plackett_luce")


def test_pairs_are_needed_by_pairwise_losses() -> None:
    with pytest.raises(DataError, match=r"use loss\.name=kto or bco"):
        as_pairs([group(1, labels=(1,))], "sigmoid")
    with pytest.raises(DataError, match="preftune sft"):
        as_pairs([group(1)], "sigmoid")


@pytest.mark.parametrize(
    ("judgement", "column"),
    [
        (Judgement(0, 1, probability=0.8), "probability"),
        (Judgement(0, 1, margin=1.0), "margin"),
        (Judgement(0, 1, weight=2.0), "weight"),
    ],
)
def test_columns_that_a_loss_would_ignore_are_refused(judgement: Judgement, column: str) -> None:
    groups = [group(2, judgements=(judgement,))]
    with pytest.raises(DataError, match=f"has no place for a {column}"):
        require_columns(groups, "aot", frozenset({"policy", "reference"}), weighted=False, log_margin=False)
    inputs = frozenset({"policy", "probability", "margin"})
    if column != "margin":
        groups = [*groups, group(2, judgements=(Judgement(0, 1, margin=2.0),))]
    require_columns(groups, "mine", inputs, weighted=True, log_margin=False)


def test_a_loss_that_needs_margins_gets_some() -> None:
    groups = [group(2, judgements=(Judgement(0, 1),))]
    with pytest.raises(DataError, match="no row has one"):
        require_columns(groups, "odpo", frozenset({"margin"}), weighted=True, log_margin=False)
    with pytest.raises(DataError, match="margins above 0"):
        require_columns(groups, "odpo", frozenset({"margin"}), weighted=True, log_margin=True)


def test_audit_counts() -> None:
    pair = (Judgement(0, 1),)
    groups = [
        PreferenceGroup("p", ("long answer", "short"), pair, origin="f:1"),
        PreferenceGroup("p", ("long answer", "short"), pair, origin="f:2"),
        PreferenceGroup("p", ("short", "long answer"), pair, origin="f:3"),
        PreferenceGroup("q", ("same", "size"), pair, origin="f:4"),
    ]
    found = audit(groups, None, [groups[3]])
    assert (found.groups, found.responses, found.judgements) == (4, 8, 4)
    assert found.chosen_longer == pytest.approx(2.5 / 4)
    assert (found.repeated_prompts, found.repeated_judgements, found.contradictions, found.leaks) == (2, 1, 1, 1)
    assert found.chosen is not None
    assert found.chosen.longest == 11
    assert found.unit == "characters"


def test_judged_columns_reach_the_batch() -> None:
    known = (Judgement(1, 0, weight=2.0, probability=0.75, margin=0.5),)
    batch = rows([group(2, judgements=known, labels=(1, -1), ranks=(2.0, 1.0))])
    found = batch.judged
    assert (found.better_P.tolist(), found.worse_P.tolist()) == ([1], [0])
    assert (found.weight_P.tolist(), found.probability_P.tolist(), found.margin_P.tolist()) == ([2.0], [0.75], [0.5])
    assert (found.label_S.tolist(), found.rank_S.tolist()) == ([1, -1], [2.0, 1.0])
    assert found.weight_P.dtype == torch.float32


@given(st.lists(st.integers(1, 1000), max_size=40), st.integers(1, 8))
def test_shares_have_equal_work(costs: list[int], parts: int) -> None:
    """Everything once; and the share with most would have less without its smallest item than any other has."""
    found = shares(costs, parts)
    assert len(found) == parts
    assert sorted(i for share in found for i in share) == list(range(len(costs)))
    sums = [sum(costs[i] for i in share) for share in found]
    for share, total in zip(found, sums, strict=True):
        assert not share or total - min(costs[i] for i in share) <= min(sums)


def test_data_that_say_nothing_are_noticed() -> None:
    """All ties, or labels of one kind."""
    tie, won = (Judgement(0, 1, probability=0.5),), (Judgement(0, 1),)
    ties = [PreferenceGroup("p", ("a", "b"), tie), PreferenceGroup("q", ("a", "b"), tie)]
    assert audit(ties).uninformative.startswith("all 2 verdicts are ties")
    assert audit([*ties, PreferenceGroup("r", ("a", "b"), won)]).uninformative == ""
    liked = [PreferenceGroup("p", ("a",), labels=(1,)), PreferenceGroup("q", ("a",), labels=(1,))]
    assert audit(liked).uninformative.startswith("all 2 labels are desirable")
    assert audit([*liked, PreferenceGroup("r", ("a",), labels=(-1,))]).uninformative == ""
