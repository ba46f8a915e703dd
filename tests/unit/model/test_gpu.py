"""The code path for a GPU, tested without one: dtypes, shapes, and no synchronisation with the device within a step.

The tensors are fake, so an operation that needs a value on the CPU raises an exception."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.attention.varlen
from tests.conftest import make_model, random_groups
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from preftune.config.schema import LossTerm
from preftune.data.layout import Budget, micro_batches
from preftune.lifecycle.task import ResponseTask
from preftune.methods.objective import bind_objective
from preftune.model import flex, segments, token_logprobs
from preftune.model.attention import Visible, segment_attention, use_segments
from preftune.model.head import WideProduct
from preftune.model.logit_chunks import chunk_tokens
from preftune.model.logprobs import Scorer
from preftune.model.reference import Frozen
from preftune.types import Packed, Segment, TokenGroup, to_device


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Use the attention for CUDA with a fake kernel, and record the number of query heads of each call."""
    kernel, heads = torch.nn.attention.varlen.varlen_attn, []

    @functools.wraps(kernel)
    def record(q: Any, k: Any, v: Any, starts_q: Any, starts_k: Any, *lengths: int, **settings: Any) -> Any:
        assert all(x.dtype == torch.bfloat16 and x.is_contiguous() for x in (q, k, v))
        assert all(x.dtype == torch.int32 and x.is_contiguous() for x in (starts_q, starts_k))
        assert all(type(length) is int for length in lengths)
        heads.append(q.shape[1])
        return kernel(q, k, v, starts_q, starts_k, *lengths, **settings)

    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", record)
    monkeypatch.setattr(segments, "fused", segments.varlen)
    segments._ragged.cache_clear()
    yield heads
    segments._ragged.cache_clear()  # it holds fake tensors


def step(loss: str) -> ResponseTask:
    """Run the forward and backward pass of one micro-batch in bf16."""
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


@pytest.mark.parametrize("stored_bytes", [0, 1 << 40])
@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "hinge"])
def test_a_micro_batch_does_not_synchronise_with_the_device(
    loss: str, stored_bytes: int, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_logprobs, "max_stored_bytes", lambda _device: stored_bytes)
    task = step(loss)
    assert calls == [4] * 4  # two layers of two models
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in task.scorer.model.parameters())


@pytest.mark.usefixtures("calls")
def test_a_synchronisation_with_the_device_raises() -> None:
    """BCO checks which labels a batch has."""
    with pytest.raises(DataDependentOutputException):
        step("bco")


def test_torch_has_matrix_products_of_bf16_with_fp32_output() -> None:
    """The kernels exist on CUDA only, but shapes and dtypes can be checked on the meta device."""
    weight, hidden = (torch.empty(n, 8, dtype=torch.bfloat16, device="meta") for n in (32, 5))
    assert torch.mm(hidden, weight.t(), out_dtype=torch.float32).dtype == torch.float32
    total, slope = torch.empty(32, 8, device="meta"), torch.empty(5, 32, dtype=torch.bfloat16, device="meta")
    assert torch.addmm(total, slope.t(), hidden, out_dtype=torch.float32, out=total) is total


def test_a_product_with_fp32_output_has_the_gradients_of_the_bf16_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is replaced, because torch has it on CUDA only. Its result is not rounded to bf16."""
    plain = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, out_dtype: plain(a.to(out_dtype), b.to(out_dtype)))
    generator = torch.Generator().manual_seed(0)
    results = []
    for wide in (False, True):
        hidden, weight = (torch.randn(n, 16, generator=generator.manual_seed(n)).bfloat16() for n in (7, 30))
        hidden.requires_grad_()
        weight.requires_grad_()
        out = WideProduct.apply(hidden, weight) if wide else (hidden.float() @ weight.float().t())
        assert out.dtype == torch.float32
        out.square().sum().backward()
        results.append((out, hidden.grad, weight.grad))
    assert results[0][0].equal(results[1][0])
    for expected, actual in zip(results[0][1:], results[1][1:], strict=True):
        assert actual.dtype == torch.bfloat16
        assert torch.allclose(actual.float(), expected.float(), rtol=2e-2, atol=1e-2 * float(expected.abs().max()))


CUDA = torch.device("cuda", 0)


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Tensor]]:
    """Allow tensors on a GPU without contents. Collect the tensors that are pinned before they are copied to it."""
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor)
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)  # fake tensors do not have it
    caches = (segments._ragged, flex.block_mask, flex.scalar)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield pinned
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize(
    ("dtype", "size", "softcap", "expected"),
    [
        (torch.bfloat16, 64, None, "varlen"),
        (torch.bfloat16, 8, None, "varlen"),
        (torch.bfloat16, 20, None, "flex"),  # not a multiple of 8
        (torch.bfloat16, 512, None, "flex"),
        (torch.bfloat16, 64, 2.0, "flex"),
        (torch.bfloat16, 8, 2.0, "one_by_one"),  # too small for Triton
        (torch.float32, 16, None, "flex"),
        (torch.float32, 8, None, "one_by_one"),
    ],
)
@pytest.mark.usefixtures("fake_cuda")
def test_attention_on_a_gpu_uses_a_kernel_that_takes_the_head_size(
    dtype: torch.dtype, size: int, softcap: float | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []
    for module, name in ((segments, "varlen"), (segments, "one_by_one"), (flex, "flex")):
        monkeypatch.setattr(module, name, lambda *_, name=name: used.append(name))
    qkv = (torch.empty(1, heads, 10, size, dtype=dtype, device=CUDA) for heads in (4, 2, 2))
    visible = Visible(Packed((Segment(0, 10),)), None)
    segment_attention(None, *qkv, visible, softcap=softcap)  # type: ignore[arg-type]
    assert used == [expected]


def test_a_batch_is_pinned_before_it_is_copied_to_a_gpu(fake_cuda: list[torch.Tensor]) -> None:
    """A copy from pageable memory may wait for the GPU."""
    groups = [TokenGroup(np.arange(3, 8, dtype=np.int32), (np.arange(4, dtype=np.int32),) * 2)]
    [batch] = micro_batches(groups, Budget("shared", 100))
    moved = batch.to(CUDA)
    assert moved.ids_T.device.type == moved.judged.group_S.device.type == "cuda"
    names = ("ids_T", "positions_T", "read_N", "target_N", "length_S")
    assert {id(getattr(batch, name)) for name in names} <= set(map(id, fake_cuda))
    count = len(fake_cuda)
    assert to_device(moved.ids_T, CUDA).device.type == "cuda"  # already there
    assert len(fake_cuda) == count


@pytest.mark.parametrize("window", [None, 7])
def test_masks_for_a_gpu_are_made_without_waiting_for_it(fake_cuda: list[torch.Tensor], window: int | None) -> None:
    """A fake tensor raises if its contents are read. The number of a window is a tensor on the GPU."""
    layout = Packed((Segment(0, 150), Segment(150, 190, 0, 100)))
    mask = flex.block_mask(layout, window, CUDA)
    assert mask.q_indices is not None
    assert mask.q_indices.device.type == mask.kv_indices.device.type == "cuda"
    assert mask.seq_lengths == (256, 256)
    captured = [cell.cell_contents for cell in mask.mask_mod.__closure__ or ()]
    assert all(x is None or x.device.type == "cuda" for x in captured)
    assert len([x for x in captured if x is not None]) == (4 if window is None else 5)
    gather, starts_q, starts_k, *lengths = segments._ragged(layout, CUDA)
    assert gather.shape == (290,)
    assert starts_q.dtype == starts_k.dtype == torch.int32
    assert lengths == [150, 150]


@pytest.mark.usefixtures("fake_cuda")
def test_attention_with_a_mask_on_a_gpu_has_as_many_key_heads_as_query_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory-efficient kernel needs that; keys are not repeated."""
    shapes: list[tuple[int, ...]] = []

    def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_mask: Any, scale: float) -> torch.Tensor:
        shapes.extend((tuple(q.shape), tuple(k.shape), tuple(attn_mask.shape)))
        return q

    monkeypatch.setattr(segments, "scaled_dot_product_attention", kernel)
    q, k = (torch.empty(3, heads, slots, 64, device=CUDA) for heads, slots in ((8, 1), (2, 50)))
    out = segments.attend(q, k, k, torch.empty(3, 1, 1, 50, dtype=torch.bool, device=CUDA), 0.1)
    assert shapes == [(3, 2, 4, 64), (3, 2, 50, 64), (3, 1, 4, 50)]
    assert out.shape == (3, 1, 8, 64)


def test_chunks_on_a_gpu_are_multiples_of_128_tokens() -> None:
    for vocabulary in (1000, 32000, 128256, 151936, 4_000_000):
        with FakeTensorMode():
            tokens = chunk_tokens(torch.empty(vocabulary, 1, device=CUDA))
        assert tokens % 128 == 0
        assert 4 * vocabulary * tokens <= 512_000_000 or tokens == 128
