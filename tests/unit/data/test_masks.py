"""Groups of which only some response tokens are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import make_model, random_groups

from preftune.data.layout import LayoutName, batch_of
from preftune.data.loss_items import as_labelled, with_mismatches
from preftune.data.token_file import TokenFile, write_tokens
from preftune.data.tokenize_groups import _up_to_scored
from preftune.formats.values import Drop
from preftune.methods.sft import preferred
from preftune.model.attention import use_segments
from preftune.model.logprobs import Scorer, logps
from preftune.model.reference_cache import response_keys
from preftune.model.scalar import with_reward_slot
from preftune.types import TokenGroup


def masked(groups: Sequence[TokenGroup], seed: int = 0) -> list[TokenGroup]:
    """Return the groups with random masks whose last token is scored; the first group is unchanged."""
    random = np.random.default_rng(seed)
    result = list(groups[:1])
    for group in groups[1:]:
        masks = [random.random(len(ids)) < 0.5 for ids in group.response_ids]
        for mask in masks:
            mask[-1] = True
        result.append(replace(group, masks=tuple(masks)))
    return result


def same(one: TokenGroup, other: TokenGroup) -> bool:
    arrays = [(g.prompt_ids, *g.response_ids, *g.masks) for g in (one, other)]
    return len(arrays[0]) == len(arrays[1]) and all(map(np.array_equal, *arrays))


@pytest.mark.parametrize("layout", ["rows", "packed", "shared"])
def test_masked_log_probs_are_those_of_the_scored_tokens_in_every_layout(layout: LayoutName) -> None:
    whole, model = random_groups(4, responses=3), make_model()
    groups = masked(whole)
    with torch.no_grad():
        expected = logps(Scorer.of(model), batch_of(whole, "rows")).token_N
    mask_N = torch.from_numpy(
        np.concatenate([
            m for g in groups for m in (g.masks or [np.ones(len(ids), dtype=bool) for ids in g.response_ids])
        ])
    )  # fmt: skip
    if layout != "rows":
        assert use_segments(model)
    batch = batch_of(groups, layout)
    with torch.no_grad():
        values = logps(Scorer.of(model), batch)
    assert values.length_S.tolist() == [len(ids) for g in groups for ids in g.scored_ids]
    torch.testing.assert_close(values.token_N, expected[mask_N], rtol=1e-4, atol=1e-5)
    assert len(values.token_N) == int(mask_N.sum()) < len(mask_N)


def test_a_file_of_token_ids_keeps_the_masks(tmp_path: Path) -> None:
    groups = masked(random_groups(5, responses=2))
    write_tokens(tmp_path, groups)
    assert all(same(a, b) for a, b in zip(TokenFile(tmp_path), groups, strict=True))


def test_the_cached_reference_of_a_response_depends_on_its_mask() -> None:
    _, group = masked(random_groups(2, responses=2))
    plain = response_keys(replace(group, masks=()))
    assert set(response_keys(group)).isdisjoint(plain)
    assert response_keys(replace(group, masks=())) == plain


def test_parts_of_a_masked_group_keep_their_masks() -> None:
    groups = masked(random_groups(3, responses=3))
    for one in preferred(groups):
        assert any(
            np.array_equal(one.response_ids[0], ids) and (not g.masks or np.array_equal(one.masks[0], g.masks[i]))
            for g in groups
            for i, ids in enumerate(g.response_ids)
        )
    labelled = as_labelled(groups, "kto")
    for group, more in zip(labelled, with_mismatches(labelled, "kto"), strict=True):
        assert len(more.response_ids) == len(group.response_ids) + 1
        assert not more.masks or [len(m) for m in more.masks] == [len(ids) for ids in more.response_ids]
        assert not more.masks or all(mask[-1] for mask in more.masks)


def test_the_reward_of_a_masked_response_is_read_at_its_last_token() -> None:
    group = masked(random_groups(2, responses=2))[1]
    (longer,) = with_reward_slot([group])
    plain: Any = with_reward_slot([replace(group, masks=())])
    for masked_batch, batch in [(batch_of([longer], "rows"), batch_of(plain, "rows"))]:
        ends, whole = (b.read_N[b.length_S.cumsum(0) - 1] for b in (masked_batch, batch))
        assert ends.tolist() == whole.tolist()


def test_truncated_responses_end_with_a_scored_token() -> None:
    masks = ([False, True, False, True], [True])
    assert _up_to_scored([[1, 2, 3], [4]], masks) == ([[1, 2], [4]], ([False, True], [True]))
    with pytest.raises(Drop, match="no scored token"):
        _up_to_scored([[1], [4]], masks)
