"""All implementations of segment attention agree. Those for CUDA are tested on a CPU where it can run them."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from tests.conftest import random_groups

from preftune.data.layout import batch_of
from preftune.model import segments
from preftune.model.flex import flex
from preftune.types import Packed


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
@pytest.mark.parametrize("grouped", [True, False])
def test_the_inputs_of_varlen_describe_the_same_attention(
    monkeypatch: pytest.MonkeyPatch, layout: str, window: int | None, grouped: bool
) -> None:
    """Replaces the CUDA kernel with its definition: lower-right causal attention for each sequence, with a window of
    keys to the left; with grouped queries, or without (torch 2.11)."""
    import torch.nn.attention.varlen

    def kernel(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts_q: Any, starts_k: Any, longest_q: int, longest_k: int,
        *, scale: float, window_size: tuple[int, int], enable_gqa: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        assert window_size[1] == 0
        assert enable_gqa == grouped == (q.shape[1] != k.shape[1])
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

    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", kernel)
    monkeypatch.setattr(segments, "_settings", lambda _: {"scale", "window_size", *(["enable_gqa"] if grouped else [])})
    qkv, packed = inputs(layout)
    expected = segments.one_by_one(*qkv, packed, window, 0.3)
    assert torch.allclose(segments.varlen(*qkv, packed, window, 0.3), expected, atol=1e-5)
