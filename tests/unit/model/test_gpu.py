"""The path of a GPU, as far as a machine without one can follow it: dtypes and shapes, and that nothing is asked of the
device in the middle of a step. Tensors have no contents here: what would have to wait for a number raises."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.attention.varlen
from tests.conftest import make_model, random_groups
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from preftune.config.schema import LossTerm
from preftune.data.layout import Budget, micro_batches
from preftune.lifecycle.task import ResponseTask
from preftune.methods.objective import bind_objective
from preftune.model import segments, token_logprobs
from preftune.model.attention import use_segments
from preftune.model.logprobs import Scorer
from preftune.model.reference import Frozen


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Attention as on CUDA, by torch's description of its kernel; the heads of queries of each call."""
    kernel, seen = torch.nn.attention.varlen.varlen_attn, []

    @functools.wraps(kernel)
    def watch(q: Any, k: Any, v: Any, starts_q: Any, starts_k: Any, *lengths: int, **settings: Any) -> Any:
        assert all(x.dtype == torch.bfloat16 and x.is_contiguous() for x in (q, k, v))
        assert all(x.dtype == torch.int32 and x.is_contiguous() for x in (starts_q, starts_k))
        assert all(type(length) is int for length in lengths)
        seen.append(q.shape[1])
        return kernel(q, k, v, starts_q, starts_k, *lengths, **settings)

    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", watch)
    monkeypatch.setattr(segments, "fused", segments.varlen)
    segments._ragged.cache_clear()
    yield seen
    segments._ragged.cache_clear()  # its tensors have no contents


def step(loss: str) -> ResponseTask:
    """Forward and backward pass of one micro-batch in bf16."""
    policy = Scorer.of(make_model().bfloat16())
    reference = Frozen.copy_of(policy.model)
    groups = random_groups(3, 3)
    task = ResponseTask(policy, reference, bind_objective([LossTerm(name=loss)]), groups, [], Budget("shared", 4096))
    assert use_segments(policy.model)
    assert use_segments(reference.scorer.model)
    with FakeTensorMode(allow_non_fake_inputs=True):
        [batch] = micro_batches(groups, task.budget)
        out = task.loss_of(batch)
        out.loss_sum.backward()
    assert out.loss_sum.dtype == torch.float32
    return task


@pytest.mark.parametrize("kept", [0, 1 << 40])
@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "hinge"])
def test_a_micro_batch_asks_the_device_for_nothing(
    loss: str, kept: int, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_logprobs, "keep_bytes", lambda _device: kept)
    task = step(loss)
    assert calls == [4] * 4  # two layers of two models
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in task.scorer.model.parameters())


@pytest.mark.usefixtures("calls")
def test_what_waits_would_be_noticed() -> None:
    """BCO looks whether a batch has labels of both kinds."""
    with pytest.raises(DataDependentOutputException):
        step("bco")


def test_products_to_fp32_are_ones_that_torch_has() -> None:
    """bf16 times bf16 to fp32 exists on CUDA alone; its shapes and dtypes are known everywhere."""
    weight, hidden = (torch.empty(n, 8, dtype=torch.bfloat16, device="meta") for n in (32, 5))
    assert torch.mm(hidden, weight.t(), out_dtype=torch.float32).dtype == torch.float32
    total, slope = torch.empty(32, 8, device="meta"), torch.empty(5, 32, dtype=torch.bfloat16, device="meta")
    assert torch.addmm(total, slope.t(), hidden, out_dtype=torch.float32, out=total) is total


def test_torch_has_the_attention_that_is_asked_for() -> None:
    assert segments.has_varlen()
