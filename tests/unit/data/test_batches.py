"""From groups to batches: training order, items of a loss, layouts and the audit."""

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
from preftune.data.layout import (
    Budget,
    LayoutName,
    balanced_shares,
    batch_of,
    micro_batches,
    padding_segments,
    rows,
    shared,
    slots_of,
)
from preftune.data.loss_items import as_labelled, as_pairs, as_rankings, require_columns, with_mismatches
from preftune.data.steps import epoch_steps, permutation, size_of, training_steps
from preftune.errors import DataError
from preftune.types import Judgement, Packed, PreferenceGroup, TokenGroup

sizes_and_pairs = st.tuples(st.lists(st.integers(1, 9), min_size=1, max_size=60), st.integers(1, 20))


@given(sizes_and_pairs, st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_has_every_group_exactly_once(data: tuple[list[int], int], seed: int, epoch: int) -> None:
    sizes, pairs = data
    steps = epoch_steps(sizes, pairs, seed, epoch)
    assert sorted(i for step in steps for i in step) == list(range(len(sizes)))
    for step in steps:
        assert sum(sizes[i] for i in step) <= pairs or len(step) == 1
    for step, after in itertools.pairwise(steps):  # no step has room for one more group
        assert sum(sizes[i] for i in step) + sizes[after[0]] > pairs


@given(sizes_and_pairs, st.integers(1, 3), st.integers(1, 30))
def test_max_steps_only_shortens_a_run(data: tuple[list[int], int], epochs: int, max_steps: int) -> None:
    sizes, pairs = data
    whole = list(training_steps(sizes, pairs, 7, epochs))
    assert list(training_steps(sizes, pairs, 7, epochs, max_steps)) == whole[:max_steps]
    assert [step.number for step in whole] == list(range(1, len(whole) + 1))


def test_order_depends_on_seed_and_epoch() -> None:
    orders = {tuple(permutation(20, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_the_size_of_a_group_is_its_judgements_or_labelled_responses() -> None:
    one = np.array([3], dtype=np.int32)
    assert size_of(TokenGroup(one, (one,))) == 1
    assert size_of(TokenGroup(one, (one, one), (Judgement(0, 1),))) == 1
    assert size_of(TokenGroup(one, (one, one, one), labels=(1, -1, 0))) == 2


@pytest.mark.parametrize("responses", [1, 2, 4])
def test_rows_read_the_position_before_each_target_token(responses: int) -> None:
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
def test_a_packed_row_has_every_sequence_once(layout: LayoutName, n: int, responses: int, seed: int) -> None:
    """A slot attends to its own sequence up to itself, in order, and the slots to read predict the targets."""
    groups = random_groups(n, responses, seed)
    batch = batch_of(groups, layout)
    assert isinstance(batch.layout, Packed)
    visible: dict[int, list[int]] = {}
    for s in batch.layout.segments:
        for slot in range(s.begin, s.end):
            visible[slot] = [*range(s.prefix_begin, s.prefix_end), *range(s.begin, slot + 1)]
    assert sorted(visible) == list(range(len(batch.ids_T)))  # every slot is in exactly one segment; there is no padding
    assert len(batch.ids_T) == sum(slots_of(group, layout) for group in groups)
    ids = batch.ids_T.tolist()
    reads = iter(zip(batch.read_N.tolist(), batch.target_N.tolist(), strict=True))
    for group, response in ((g, r) for g in groups for r in g.response_ids):
        sequence = group.prompt_ids.tolist() + response.tolist()
        for place in range(len(group.prompt_ids), len(sequence)):
            slot, target = next(reads)
            assert [ids[i] for i in visible[slot]] == sequence[:place]
            assert [int(batch.positions_T[i]) for i in visible[slot]] == list(range(place))
            assert target == sequence[place]
    assert next(reads, None) is None


@pytest.mark.parametrize("layout", ["rows", "packed", "shared"])
@given(n=st.integers(1, 12), responses=st.integers(1, 3), tokens=st.integers(1, 200))
def test_micro_batches_have_every_group_once_and_stay_within_the_budget(
    layout: LayoutName, n: int, responses: int, tokens: int
) -> None:
    groups = random_groups(n, responses)
    batches = micro_batches(groups, Budget(layout, tokens))
    assert Counter(id(g) for b in batches for g in b.groups) == Counter(map(id, groups))
    for batch in batches:
        assert len(batch.ids_T) <= tokens or len(batch.groups) == 1
    if layout != "rows":  # best fit: no two batches fit into one
        sizes = sorted(len(batch.ids_T) for batch in batches)
        assert len(sizes) < 2 or sizes[0] + sizes[1] > tokens


@pytest.mark.parametrize("layout", ["packed", "shared"])
@given(n=st.integers(1, 12), responses=st.integers(1, 3), tokens=st.integers(1, 900))
def test_constant_lengths_are_quarters_of_the_budget_and_change_no_sequence(
    layout: LayoutName, n: int, responses: int, tokens: int
) -> None:
    """Slots that are read have the same place as without padding, and padding is a separate segment."""
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
        padding = batch.layout.segments[len(bare.layout.segments) :]
        assert [slot for s in padding for slot in range(s.begin, s.end)] == list(range(real, slots))
        assert all(s.prefix_begin == s.prefix_end for s in padding)


def test_padding_attends_to_less_than_the_data() -> None:
    """One long segment of padding would need more attention than all sequences together."""
    [batch] = micro_batches(random_groups(1100, 2), Budget("shared", 16384, constant=True))
    assert isinstance(batch.layout, Packed)
    real = len(shared(batch.groups).ids_T)
    padding = [s for s in batch.layout.segments if s.begin >= real]
    assert sum(s.end - s.begin for s in padding) > 500
    assert max(s.end - s.begin for s in padding) == 128
    assert padding == list(padding_segments(real, len(batch.ids_T)))


def group(n: int, **fields: Any) -> TokenGroup:
    ids = tuple(np.array([10 + i], dtype=np.int32) for i in range(n))
    return TokenGroup(np.array([3], dtype=np.int32), ids, origin="f:1", **fields)


def test_labels_are_derived_from_judgements_and_mixed_responses_left_out() -> None:
    [derived] = as_labelled([group(3, judgements=(Judgement(0, 1), Judgement(0, 2), Judgement(1, 2)))], "kto")
    assert derived.labels == (1, -1)  # response 1 is better than 2 and worse than 0
    assert [r.tolist() for r in derived.response_ids] == [[10], [12]]
    assert derived.judgements == (Judgement(0, 1),)
    [labelled] = as_labelled([group(1, labels=(-1,))], "kto")
    assert labelled.labels == (-1,)


def test_mismatches_are_responses_to_a_different_prompt() -> None:
    groups = [
        TokenGroup(np.array([p], dtype=np.int32), (np.array([r], dtype=np.int32),), labels=(1,), origin="f:1")
        for p, r in ((3, 10), (3, 11), (4, 12))
    ]
    mismatched = with_mismatches(groups, "kto")
    assert [[int(r[0]) for r in g.response_ids] for g in mismatched] == [[10, 12], [11, 12], [12, 10]]
    assert all(g.labels == (1, 0) for g in mismatched)
    with pytest.raises(DataError, match="all prompts are the same"):
        with_mismatches(groups[:2], "kto")


def labelled_group(prompt: int, *responses: list[int]) -> TokenGroup:
    ids = tuple(np.array(r, dtype=np.int32) for r in responses)
    return TokenGroup(np.array([prompt], dtype=np.int32), ids, labels=(1,) * len(ids), origin=f"f:{prompt}")


def test_a_mismatch_is_never_equal_to_a_response_of_the_row() -> None:
    """9 is EOS, which is missing from a truncated response."""
    groups = [labelled_group(1, [5, 9], [6, 9]), labelled_group(2, [5, 9], [6]), labelled_group(3, [7, 9], [6, 9])]
    mismatched = [g.response_ids[-1].tolist() for g in with_mismatches(groups, "kto")]
    assert mismatched == [[7, 9], [7, 9], [5, 9]]  # [6, 9] equals the response [6] of the second row, except for EOS
    with pytest.raises(DataError, match=r"f:1: .*\n.*identical to a response of this row"):
        with_mismatches([labelled_group(1, [5], [6]), labelled_group(2, [6], [5])], "kto")


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(5, 8)), min_size=2, max_size=8))
def test_mismatches_have_a_different_prompt_and_a_different_response(rows: list[tuple[int, int]]) -> None:
    groups = [labelled_group(prompt, [response]) for prompt, response in rows]
    possible = all(any(p != prompt and r != response for p, r in rows) for prompt, response in rows)
    if not possible:
        with pytest.raises(DataError):
            with_mismatches(groups, "kto")
        return
    for (prompt, response), group in zip(rows, with_mismatches(groups, "kto"), strict=True):
        foreign = int(group.response_ids[-1][0])
        assert foreign != response
        assert any(p != prompt and r == foreign for p, r in rows)


def test_mismatches_alternate_and_do_not_exceed_the_longest_sequence() -> None:
    """GPT-2 has a fixed context."""

    def pair(prompt: int, chosen: int, rejected: int, number: int) -> TokenGroup:
        ids = [np.full(n, 10 * number + i, dtype=np.int32) for i, n in enumerate((prompt, chosen, rejected))]
        return TokenGroup(ids[0], (ids[1], ids[2]), (Judgement(0, 1),), labels=(1, -1), origin=f"f:{number}")

    groups = [pair(60, 2, 1, 1), pair(2, 60, 50, 2), pair(5, 3, 4, 3), pair(60, 1, 2, 4)]
    mismatched = with_mismatches(groups, "kto")
    foreign = [g.response_ids[2].tolist() for g in mismatched]
    assert foreign == [[21] * 2, [32] * 4, [41], [12]]  # chosen, rejected, chosen, rejected of the next group
    assert max(len(g.prompt_ids) + len(r) for g in mismatched for r in g.response_ids) == 62
    assert all(g.labels == (1, -1, 0) for g in mismatched)


def test_rankings_need_a_different_rank_for_every_response() -> None:
    [pair] = as_rankings([group(2, judgements=(Judgement(1, 0),))], "plackett_luce")
    assert pair.ranks == (2.0, 1.0)
    with pytest.raises(DataError, match="a different rank for every response"):
        as_rankings([group(3, ranks=(1.0, 1.0, 3.0))], "plackett_luce")
    with pytest.raises(DataError, match="got none"):
        as_rankings([group(3, judgements=(Judgement(0, 1),))], "plackett_luce")


def test_pairwise_losses_refuse_data_without_judgements() -> None:
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
    with pytest.raises(DataError, match=f"the data have a {column}, which 'aot' does not use"):
        require_columns(groups, "aot", frozenset({"policy", "reference"}), weighted=False, log_margin=False)
    inputs = frozenset({"policy", "probability", "margin"})
    if column != "margin":
        groups = [*groups, group(2, judgements=(Judgement(0, 1, margin=2.0),))]
    require_columns(groups, "mine", inputs, weighted=True, log_margin=False)


def test_a_loss_with_margins_refuses_data_without_positive_margins() -> None:
    groups = [group(2, judgements=(Judgement(0, 1),))]
    with pytest.raises(DataError, match="no row has one"):
        require_columns(groups, "odpo", frozenset({"margin"}), weighted=True, log_margin=False)
    with pytest.raises(DataError, match="margins above 0"):
        require_columns(groups, "odpo", frozenset({"margin"}), weighted=True, log_margin=True)


def test_audit_counts_repeats_contradictions_and_leaks() -> None:
    pair = (Judgement(0, 1),)
    groups = [
        PreferenceGroup("p", ("long answer", "short"), pair, origin="f:1"),
        PreferenceGroup("p", ("long answer", "short"), pair, origin="f:2"),
        PreferenceGroup("p", ("short", "long answer"), pair, origin="f:3"),
        PreferenceGroup("q", ("same", "size"), pair, origin="f:4"),
    ]
    result = audit(groups, None, [groups[3]])
    assert (result.groups, result.responses, result.judgements) == (4, 8, 4)
    assert result.chosen_longer == pytest.approx(2.5 / 4)
    assert (result.repeated_prompts, result.repeated_judgements, result.contradictions, result.leaks) == (2, 1, 1, 1)
    assert result.chosen is not None
    assert result.chosen.longest == 11
    assert result.unit == "characters"


def test_judgements_labels_and_ranks_are_in_the_batch() -> None:
    judgements = (Judgement(1, 0, weight=2.0, probability=0.75, margin=0.5),)
    batch = rows([group(2, judgements=judgements, labels=(1, -1), ranks=(2.0, 1.0))])
    result = batch.judged
    assert (result.better_P.tolist(), result.worse_P.tolist()) == ([1], [0])
    assert (result.weight_P.tolist(), result.probability_P.tolist(), result.margin_P.tolist()) == ([2.0], [0.75], [0.5])
    assert (result.label_S.tolist(), result.rank_S.tolist()) == ([1, -1], [2.0, 1.0])
    assert result.weight_P.dtype == torch.float32


@given(st.lists(st.integers(1, 1000), max_size=40), st.integers(1, 8))
def test_balanced_shares_have_similar_sums(costs: list[int], parts: int) -> None:
    """Every index is in one share, and without its smallest item no share exceeds the smallest share."""
    shares = balanced_shares(costs, parts)
    assert len(shares) == parts
    assert sorted(i for share in shares for i in share) == list(range(len(costs)))
    sums = [sum(costs[i] for i in share) for share in shares]
    for share, total in zip(shares, sums, strict=True):
        assert not share or total - min(costs[i] for i in share) <= min(sums)


def test_only_ties_or_only_equal_labels_are_uninformative() -> None:
    tie, won = (Judgement(0, 1, probability=0.5),), (Judgement(0, 1),)
    ties = [PreferenceGroup("p", ("a", "b"), tie), PreferenceGroup("q", ("a", "b"), tie)]
    assert audit(ties).uninformative.startswith("all 2 verdicts are ties")
    assert audit([*ties, PreferenceGroup("r", ("a", "b"), won)]).uninformative == ""
    liked = [PreferenceGroup("p", ("a",), labels=(1,)), PreferenceGroup("q", ("a",), labels=(1,))]
    assert audit(liked).uninformative.startswith("all 2 labels are desirable")
    assert audit([*liked, PreferenceGroup("r", ("a",), labels=(-1,))]).uninformative == ""
