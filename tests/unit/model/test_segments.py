"""All implementations of segment attention agree. Those for CUDA are tested on a CPU where it can run them."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import random_groups
from torch.nn.attention.flex_attention import BlockMask

from preftune.data.layout import batch_of
from preftune.model import flex as flex_module
from preftune.model import segments
from preftune.model.compiler import compiler_settings
from preftune.model.flex import BLOCK, block_mask, flex
from preftune.types import Packed

CPU = torch.device("cpu")


def inputs(layout: str, value_size: int = 8) -> tuple[tuple[torch.Tensor, ...], Packed]:
    batch = batch_of(random_groups(4, responses=3, seed=2), layout)  # type: ignore[arg-type]
    assert isinstance(batch.layout, Packed)
    generator = torch.Generator().manual_seed(1)
    slots = len(batch.ids_T)
    shapes = ((1, 4, slots, 8), (1, 2, slots, 8), (1, 2, slots, value_size))
    return tuple(torch.randn(shape, generator=generator) for shape in shapes), batch.layout


@pytest.mark.parametrize("layout", ["packed", "shared"])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize(("softcap", "sinks"), [(None, False), (2.0, False), (None, True), (3.0, True)])
def test_flex_equals_one_by_one(layout: str, window: int | None, softcap: float | None, sinks: bool) -> None:
    """Values only: torch has no FlexAttention backward on a CPU."""
    qkv, packed = inputs(layout, value_size=6)
    sinks_H = torch.tensor([0.5, -1.0, 2.0, 0.0]) if sinks else None
    expected = segments.one_by_one(*qkv, packed, window, 0.3, softcap, sinks_H)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warns that it is not compiled
        actual = flex(*qkv, packed, window, 0.3, softcap, sinks_H)
    assert torch.allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("layout", ["packed", "shared"])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("has_setting", [True, False])
def test_the_inputs_of_varlen_describe_the_same_attention(
    monkeypatch: pytest.MonkeyPatch, layout: str, window: int | None, has_setting: bool
) -> None:
    """Replaces the CUDA kernel with its definition: lower-right causal attention for each sequence, with a window of
    keys to the left. It takes grouped queries with a setting, or without one (torch 2.11)."""
    import torch.nn.attention.varlen

    def kernel(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts_q: Any, starts_k: Any, longest_q: int, longest_k: int,
        *, scale: float, window_size: tuple[int, int],
    ) -> torch.Tensor:  # fmt: skip
        assert window_size[1] == 0
        assert q.shape[1] == 2 * k.shape[1]
        out = []
        for i in range(len(starts_q) - 1):
            queries, keys = slice(starts_q[i], starts_q[i + 1]), slice(starts_k[i], starts_k[i + 1])
            n, m = int(starts_q[i + 1] - starts_q[i]), int(starts_k[i + 1] - starts_k[i])
            assert n <= longest_q
            assert m <= longest_k
            distance = torch.arange(n)[:, None] + (m - n) - torch.arange(m)[None]
            seen = (distance >= 0) & ((distance <= window_size[0]) | (window_size[0] < 0))
            parts = (x.transpose(0, 1)[None] for x in (q[queries], k[keys], v[keys]))
            out.append(segments.attend(*parts, seen, scale)[0])
        return torch.cat(out)

    def kernel_of_2_13(*args: Any, enable_gqa: bool = False, **settings: Any) -> torch.Tensor:
        assert enable_gqa
        return kernel(*args, **settings)

    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", kernel_of_2_13 if has_setting else kernel)
    qkv, packed = inputs(layout)
    expected = segments.one_by_one(*qkv, packed, window, 0.3)
    assert torch.allclose(segments.varlen(*qkv, packed, window, 0.3), expected, atol=1e-5)


layouts = st.builds(
    lambda n, responses, longest, layout: batch_of(random_groups(n, responses, seed=n, longest=longest), layout).layout,
    st.integers(1, 12),
    st.integers(1, 4),
    st.sampled_from([1, 8, 150]),
    st.sampled_from(["packed", "shared"]),
)
windows = st.sampled_from([None, 1, 5, 100, 300])


@given(layouts)
def test_the_keys_of_varlen_are_the_prompt_and_the_segment_of_each_segment(layout: Packed) -> None:
    gather, starts_q, starts_k, longest_q, longest_k = segments._ragged(layout, CPU)
    expected = [[*range(s.prefix_begin, s.prefix_end), *range(s.begin, s.end)] for s in layout.segments]
    assert gather.tolist() == [*itertools.chain(*expected)]
    assert starts_k.tolist() == [0, *np.cumsum([len(keys) for keys in expected])]
    assert starts_q.tolist() == [0, *(s.end for s in layout.segments)]
    assert (longest_q, longest_k) == (max(s.end - s.begin for s in layout.segments), max(map(len, expected)))


def visibility(layout: Packed, window: int | None) -> torch.Tensor:
    """Return a (T, T) mask of which slots see which, one segment at a time. Slots of padding see themselves."""
    used = layout.segments[-1].end
    seen = torch.eye(used + -used % BLOCK, dtype=torch.bool)
    for s in layout.segments:
        keys = [*range(s.prefix_begin, s.prefix_end), *range(s.begin, s.end)]
        part = segments._seen(s.end - s.begin, s.prefix_end - s.prefix_begin, window, CPU)
        seen[s.begin : s.end, torch.tensor(keys)] = part
    return seen


@given(layouts, windows)
def test_the_block_mask_of_flex_equals_the_dense_mask(layout: Packed, window: int | None) -> None:
    """Its blocks are exactly those with a visible slot, and its function is the mask inside of them."""
    mask, expected = block_mask(layout, window, CPU), visibility(layout, window)
    blocks = len(expected) // BLOCK
    assert mask.seq_lengths == (len(expected), len(expected))
    by_block = expected.view(blocks, BLOCK, blocks, BLOCK).any(3).any(1)
    assert mask.to_dense()[0, 0].bool().equal(by_block)
    for row, count in enumerate(mask.kv_num_blocks[0, 0].tolist()):
        assert mask.kv_indices[0, 0, row, :count].tolist() == by_block[row].nonzero().flatten().tolist()
    same = BlockMask.from_kv_blocks(mask.kv_num_blocks, mask.kv_indices)
    assert mask.q_num_blocks.equal(same.q_num_blocks)
    assert mask.q_indices.equal(same.q_indices)
    assert mask.BLOCK_SIZE == (BLOCK, BLOCK)
    zero, slots = torch.tensor(0), torch.arange(len(expected))
    assert mask.mask_mod(zero, zero, slots[:, None], slots[None]).equal(expected)


@pytest.mark.filterwarnings("ignore")  # the compiler uses deprecated functions
def test_flex_is_not_compiled_again_for_other_lengths_windows_and_softcaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second length makes it dynamic. Window and softcap are inputs of the graph, and the scale is a constant."""
    graphs: list[Any] = []

    def backend(module: Any, _inputs: list[Any]) -> Any:
        graphs.append(module)
        return module.forward

    compiled = torch.compile(flex_module.flex_attention, backend=backend, **compiler_settings(dynamic=None))
    monkeypatch.setattr(flex_module, "flex_attention", compiled)
    generator, counts = torch.Generator().manual_seed(0), []
    for n, window, softcap in ((3, 5, 2.0), (8, 9, 50.0), (13, 7, 3.0), (30, 11, 20.0)):
        batch = batch_of(random_groups(n, 3, longest=40), "shared")
        assert isinstance(batch.layout, Packed)
        qkv = [torch.randn(1, heads, len(batch.ids_T), 16, generator=generator) for heads in (4, 2, 2)]
        with torch.no_grad():
            actual = flex(*qkv, batch.layout, window, 0.3, softcap)
        assert torch.allclose(actual, segments.one_by_one(*qkv, batch.layout, window, 0.3, softcap), atol=1e-5)
        counts.append(len(graphs))
    assert counts[0] == 1
    assert counts[1] == counts[-1] <= 2
    for graph in graphs:
        inputs = [node.meta["example_value"] for node in graph.graph.nodes if node.op == "placeholder"]
        scalars = [x for x in inputs if not isinstance(x, torch.SymInt) and x.dim() == 0]
        assert {x.dtype for x in scalars} == {torch.float32, torch.int32}  # the softcap and the window
    torch._dynamo.reset()


@pytest.mark.parametrize("rows", [None, 3])
def test_attention_for_a_gpu_with_a_mask_equals_attention_on_a_cpu(rows: int | None) -> None:
    """With grouped queries, for one mask or one per row, and keys that are longer than the queries, as in sampling."""
    generator = torch.Generator().manual_seed(2)
    query, key, value = (
        torch.randn(rows or 1, heads, slots, 8, generator=generator) for heads, slots in ((6, 5), (2, 9), (2, 9))
    )
    seen = torch.rand(rows or 1, 1, 5, 9, generator=generator) < 0.5
    seen[..., 0] = True
    seen = seen if rows else seen[0, 0]
    expected = segments.attend(query, key, value, seen, 0.3)
    assert torch.allclose(segments.attend_grouped(query, key, value, seen, 0.3), expected, atol=1e-6)


def test_only_small_masks_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long responses would otherwise keep gigabytes."""
    segments._kept.cache_clear()
    monkeypatch.setattr(segments, "KEPT_BYTES", 4 * 4 * 12)
    small, large = ((n, 8, None, torch.float32, torch.device("cpu")) for n in (4, 5))
    assert segments._additive(*small) is segments._additive(*small)
    torch.testing.assert_close(segments._additive(*large), segments._kept.__wrapped__(*large))
    assert segments._kept.cache_info().currsize == 1
