"""References: all kinds have the log-probs of the policy at step 0, and the store detects changes and damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import make_model, random_groups

from preftune.data.layout import Budget, micro_batches, rows
from preftune.model.adapter import add_lora
from preftune.model.load import weights_hash
from preftune.model.logprobs import Scorer, logps
from preftune.model.reference import AdapterOff, Cached, Frozen, Live, batch_keys, fill, store_key
from preftune.model.reference_cache import Store, response_key


def layout(groups: Any) -> Any:
    return micro_batches(groups, Budget("rows", 100))


def test_frozen_is_a_copy_of_the_current_weights(model: Any) -> None:
    """Also of weights that were changed in memory. It does not change with the policy."""
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    reference, policy = Frozen.copy_of(model), Scorer.of(model)
    batch = rows(random_groups(3))
    before = logps(policy, batch).sum_S.detach()
    assert torch.equal(reference.logps(batch).sum_S, before)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.5)
    assert torch.equal(reference.logps(batch).sum_S, before)
    assert not torch.equal(logps(policy, batch).sum_S, before)
    assert not any(p.requires_grad for p in reference.scorer.model.parameters())


def test_adapter_off_has_the_log_probs_of_the_base_model(model: Any) -> None:
    base = make_model()
    batch = rows(random_groups(3))
    expected = logps(Scorer.of(base), batch).sum_S
    tuned = Scorer.of(add_lora(model, 4, 8.0, "all-linear"))
    reference = AdapterOff.of(tuned)
    assert torch.equal(logps(tuned, batch).sum_S, expected)  # a new adapter does not change outputs
    with torch.no_grad():
        for name, parameter in tuned.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    assert torch.equal(reference.logps(batch).sum_S, expected)
    assert not torch.allclose(logps(tuned, batch).sum_S, expected)
    assert isinstance(reference, Live)


def filled(model: Any, groups: Any) -> Store:
    store = Store(store_key(weights_hash(model), model.dtype, "rows"))
    assert fill(store, Scorer.of(model), groups, layout) == len(groups)
    return store


def test_cached_log_probs_equal_computed_ones(model: Any) -> None:
    groups = random_groups(12, responses=3)
    reference = Cached(filled(model, groups), torch.device("cpu"))
    for batch in micro_batches(list(reversed(groups)), Budget("rows", 60)):
        live, cached = logps(Scorer.of(model), batch), reference.logps(batch)
        assert torch.allclose(cached.token_N, live.token_N, atol=1e-5)
        assert torch.allclose(cached.sum_S, live.sum_S, atol=1e-5)


def test_a_second_run_scores_only_new_groups(model: Any) -> None:
    groups = random_groups(6)
    filled(model, groups)
    again = Store(store_key(weights_hash(make_model()), model.dtype, "rows"))
    assert fill(again, Scorer.of(model), groups, layout) == 0
    assert fill(again, Scorer.of(model), [*groups, *random_groups(2, seed=9)], layout) == 2


def test_the_key_depends_on_weights_dtype_layout_prompt_and_response(model: Any) -> None:

    key = store_key(weights_hash(model), torch.float32, "rows")
    changed = make_model()
    with torch.no_grad():
        changed.lm_head.weight[0, 0] += 1e-3
    assert store_key(weights_hash(changed), torch.float32, "rows") != key
    assert store_key(weights_hash(model), torch.bfloat16, "rows") != key
    assert store_key(weights_hash(model), torch.float32, "packed") != key
    assert store_key(weights_hash(make_model()), torch.float32, "rows") == key

    def ids(*values: int) -> Any:
        return np.array(values, dtype=np.int32)

    keys = {
        response_key(ids(1, 2), ids(3)),
        response_key(ids(1), ids(2, 3)),
        response_key(ids(1, 2), ids(4)),
        response_key(ids(2, 1), ids(3)),
    }
    assert len(keys) == 4


@pytest.mark.parametrize("change", ["config", "buffer", "weight", "dtype"])
def test_any_change_of_the_model_changes_its_hash(change: str) -> None:
    model = make_model()
    before = weights_hash(model)
    if change == "config":
        model.config.rms_norm_eps *= 2
    elif change == "buffer":
        model.model.rotary_emb.inv_freq.mul_(2)
    elif change == "weight":
        model.lm_head.weight.data[0, 0] += 1e-6
    else:
        model.to(torch.bfloat16)
    assert weights_hash(model) != before
    assert weights_hash(make_model()) == before


def test_a_lora_run_shares_the_store_of_its_base_model(model: Any) -> None:
    before = weights_hash(model)
    assert weights_hash(add_lora(model, 4, 8.0, "all-linear")) == before


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_a_damaged_file_is_reported_and_not_used(model: Any, damage: str) -> None:
    groups = random_groups(4)
    store = filled(model, groups)
    [path] = store.folder.glob("*.safetensors")
    blob = bytearray(path.read_bytes())
    if damage == "flip":
        blob[len(blob) // 2] ^= 1
    path.write_bytes({"flip": bytes(blob), "truncate": bytes(blob[:-7]), "empty": b""}[damage])
    again = Store(store.folder.name)
    assert again.damaged == [str(path)]
    assert fill(again, Scorer.of(model), groups, layout) == 4
    batch = rows(groups)
    actual = Cached(again, torch.device("cpu")).logps(batch).sum_S
    assert torch.allclose(actual, logps(Scorer.of(model), batch).sum_S, atol=1e-5)


def test_all_flushed_entries_are_read_back(tmp_path: Path) -> None:
    store = Store("k", tmp_path)
    for i in range(3):
        store.put(bytes([i]) * 32, np.arange(i + 1, dtype=np.float32))
        store.flush()
    store.flush()
    again = Store("k", tmp_path)
    assert [again.get(bytes([i]) * 32).tolist() for i in range(3)] == [[0.0], [0.0, 1.0], [0.0, 1.0, 2.0]]
    assert len(list(store.folder.iterdir())) == 3
    assert bytes([0]) * 32 in again
    assert bytes([7]) * 32 not in again


def test_keys_follow_the_order_of_responses() -> None:
    groups = random_groups(3, responses=2)
    assert batch_keys(rows(groups)) == [response_key(g.prompt_ids, r) for g in groups for r in g.response_ids]
