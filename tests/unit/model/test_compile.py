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
from preftune.errors import ModelError
from preftune.lifecycle.packing_probe import choose_layout
from preftune.model.attention import restore_attention
from preftune.model.compile import blocks, compile_blocks, needs_constant_lengths, uncompiled
from preftune.model.load import checkpoint_activations
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


@pytest.mark.parametrize(("dtype", "more"), [(torch.bfloat16, False), (torch.float32, True)])
def test_16_bit_blocks_run_the_code_of_training_without_gradients(
    graphs: list[Any], dtype: torch.dtype, more: bool
) -> None:
    model = make_model(num_hidden_layers=1).to(dtype)
    scorer = Scorer.of(model)
    assert choose_layout(scorer, "shared")[0] == "shared"
    compile_blocks(model)
    [batch] = micro_batches(random_groups(4), Budget("shared", 1 << 20))
    trained = logps(scorer, batch)
    trained.sum_S.sum().backward()
    number = len(graphs)
    with torch.no_grad():
        scored = logps(scorer, batch)
    assert (len(graphs) > number) == more
    assert trained.sum_S.requires_grad
    assert not scored.token_N.requires_grad
    assert torch.equal(scored.token_N, trained.token_N.detach())
    restore_attention(model)


def test_uncompiled_disables_compilation(graphs: list[Any]) -> None:
    scorer = compiled(constant=True)
    ids = torch.arange(3, 10)[None]
    with uncompiled(scorer.model):
        scorer.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
    assert not graphs
    scorer.model(input_ids=ids)
    assert graphs
    restore_attention(scorer.model)


@pytest.mark.parametrize("call", ["forward", "__call__"])
def test_with_gradient_checkpointing_all_blocks_and_lengths_share_one_compilation(
    graphs: list[Any], call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers 5.21 puts the call of a layer into the checkpoint, later versions its forward."""
    plain, results = make_model(), []
    if call == "__call__":
        use_layers_of_5_21(type(blocks(plain)[0]), monkeypatch)
    for compiled in (False, True):
        model = make_model()
        model.load_state_dict(plain.state_dict())
        scorer = Scorer.of(model)
        assert choose_layout(scorer, "shared")[0] == "shared"
        checkpoint_activations(model)
        if compiled:
            compile_blocks(model)
        counts = []
        for n in (2, 5, 7):
            [batch] = micro_batches(random_groups(n, seed=n), Budget("shared", 1 << 20))
            logps(scorer, batch).sum_S.sum().backward()
            counts.append(len(graphs))
        assert (counts[0] > 0) == compiled
        assert counts[-1] == counts[0]
        results.append([p.grad for p in model.parameters()])
        restore_attention(model)
    for expected, actual in zip(*results, strict=True):
        assert torch.allclose(actual, expected, atol=1e-5 * float(expected.abs().max()))


def use_layers_of_5_21(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change a class of layers to checkpoint its call, as transformers 5.21 does, instead of its forward."""

    def call(self: Any, *args: Any, **settings: Any) -> Any:
        inner = partial(super(layer, self).__call__, **settings)
        return self._gradient_checkpointing_func(inner, *args) if self.gradient_checkpointing else inner(*args)

    monkeypatch.setattr(layer, "forward", layer.forward.__wrapped__)
    monkeypatch.setattr(layer, "__call__", call, raising=False)


def test_uncompiled_disables_compilation_inside_checkpoints(graphs: list[Any]) -> None:
    model = make_model()
    checkpoint_activations(model)
    compile_blocks(model)
    ids = torch.arange(3, 10)[None]
    with uncompiled(model):
        model(input_ids=ids)
    assert not graphs
    model(input_ids=ids)
    assert graphs


def test_a_block_that_cannot_be_checkpointed_and_compiled_is_refused() -> None:
    model = make_model()
    for number, block in enumerate(blocks(model)):
        other = torch.nn.Module()
        other.gradient_checkpointing = block is not None
        model.model.layers[number] = other
    with pytest.raises(ModelError, match=r"Module cannot be compiled and use gradient checkpointing"):
        compile_blocks(model)


def test_torch_without_a_limit_per_compilation_gets_a_global_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.11."""
    received: list[dict[str, Any]] = []

    def old_compile(model: Any, *, dynamic: bool | None = None) -> Any:
        received.append({"dynamic": dynamic})
        return model

    monkeypatch.setattr(torch, "compile", old_compile)
    with torch._dynamo.config.patch(recompile_limit=8):  # monkeypatch would delete the setting when it restores it
        compile_blocks(make_model())
        assert received == [{"dynamic": True}] * 2
        assert torch._dynamo.config.recompile_limit == 64


def test_rows_are_padded_to_constant_lengths_only_on_a_cpu() -> None:
    assert needs_constant_lengths("shared", torch.device("cpu"), torch.float32)
    assert not needs_constant_lengths("shared", torch.device("cpu"), torch.bfloat16)
    assert not needs_constant_lengths("rows", torch.device("cpu"), torch.float32)
    assert not needs_constant_lengths("shared", torch.device("cuda"), torch.float32)
