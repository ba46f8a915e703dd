"""Compiled blocks: few compilations for many batches, and none where lengths never come again."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from tests.conftest import make_model, random_groups

from preftune.data.layout import Budget, micro_batches
from preftune.lifecycle.packing_probe import choose_layout
from preftune.model.attention import use_own
from preftune.model.compile import compile_blocks, uncompiled
from preftune.model.logprobs import Scorer, logps


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The graphs that are traced meanwhile; they run as they are, without Inductor."""
    seen: list[Any] = []

    def backend(module: Any, _inputs: list[Any]) -> Any:
        seen.append(module)
        return module.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler reads deprecated things
        yield seen
    torch._dynamo.reset()


def compiled(constant: bool) -> Scorer:
    model = make_model(num_hidden_layers=1)
    scorer = Scorer.of(model)
    assert choose_layout(scorer, "shared")[0] == "shared"
    compile_blocks(model, constant)
    return scorer


def test_constant_lengths_are_compiled_once_each(graphs: list[Any]) -> None:
    """Twelve micro-batches that differ in all else: a second length costs what the first one did, and no batch more."""
    scorer, budget = compiled(constant=True), Budget("shared", 128, constant=True)
    laid = [batch for n in range(1, 13) for batch in micro_batches(random_groups(n, seed=n), budget)]
    batches = [batch for batch in laid if len(batch.ids_T) >= 96][:12]
    assert {len(batch.ids_T) for batch in batches} == {96, 128}
    assert len({len(batch.read_N) for batch in batches}) > 4  # what the head reads has any size
    for number, batch in enumerate(batches):
        logps(scorer, batch).sum_S.sum().backward()
        if not number:
            first = len(graphs)
    assert first > 0
    assert len(graphs) == 2 * first
    use_own(scorer.model)


def test_other_lengths_share_one_compilation(graphs: list[Any]) -> None:
    """Padded rows keep their lengths: there, blocks are compiled for all of them at once."""
    scorer = compiled(constant=False)
    counts = []
    for n in (2, 5, 7):
        [batch] = micro_batches(random_groups(n, seed=n), Budget("shared", 1 << 20))
        logps(scorer, batch).sum_S.sum().backward()
        counts.append(len(graphs))
    assert counts[0] > 0
    assert counts[-1] == counts[0]
    use_own(scorer.model)


def test_nothing_is_compiled_for_lengths_that_never_come_again(graphs: list[Any]) -> None:
    scorer = compiled(constant=True)
    ids = torch.arange(3, 10)[None]
    with uncompiled(scorer.model):
        scorer.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
    assert not graphs
    scorer.model(input_ids=ids)
    assert graphs
    use_own(scorer.model)
