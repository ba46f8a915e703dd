"""Compiled blocks: one compilation per constant length, and none for lengths that do not repeat."""

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
from preftune.model.attention import restore_attention
from preftune.model.compile import compile_blocks, uncompiled
from preftune.model.logprobs import Scorer, logps


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Collect the graphs that torch.compile traces. They run without Inductor."""
    graph_modules: list[Any] = []

    def backend(module: Any, _inputs: list[Any]) -> Any:
        graph_modules.append(module)
        return module.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler uses deprecated functions
        yield graph_modules
    torch._dynamo.reset()


def compiled(constant: bool) -> Scorer:
    model = make_model(num_hidden_layers=1)
    scorer = Scorer.of(model)
    assert choose_layout(scorer, "shared")[0] == "shared"
    compile_blocks(model, constant)
    return scorer


def test_each_constant_length_is_compiled_once(graphs: list[Any]) -> None:
    """Twelve different micro-batches of two lengths need twice the graphs of the first one."""
    scorer, budget = compiled(constant=True), Budget("shared", 128, constant=True)
    all_batches = [batch for n in range(1, 13) for batch in micro_batches(random_groups(n, seed=n), budget)]
    batches = [batch for batch in all_batches if len(batch.ids_T) >= 96][:12]
    assert {len(batch.ids_T) for batch in batches} == {96, 128}
    assert len({len(batch.read_N) for batch in batches}) > 4  # the number of scored tokens varies
    for number, batch in enumerate(batches):
        logps(scorer, batch).sum_S.sum().backward()
        if not number:
            graphs_of_first = len(graphs)
    assert graphs_of_first > 0
    assert len(graphs) == 2 * graphs_of_first
    restore_attention(scorer.model)


def test_without_constant_all_lengths_share_one_compilation(graphs: list[Any]) -> None:

    scorer = compiled(constant=False)
    counts = []
    for n in (2, 5, 7):
        [batch] = micro_batches(random_groups(n, seed=n), Budget("shared", 1 << 20))
        logps(scorer, batch).sum_S.sum().backward()
        counts.append(len(graphs))
    assert counts[0] > 0
    assert counts[-1] == counts[0]
    restore_attention(scorer.model)


def test_uncompiled_disables_compilation(graphs: list[Any]) -> None:
    scorer = compiled(constant=True)
    ids = torch.arange(3, 10)[None]
    with uncompiled(scorer.model):
        scorer.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
    assert not graphs
    scorer.model(input_ids=ids)
    assert graphs
    restore_attention(scorer.model)
