"""The gradient of a step does not depend on micro-batches, layouts, padding, or groups versus pairs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.conftest import make_model, random_groups

from preftune.config.schema import LossTerm
from preftune.data.layout import Budget, LayoutName, batch_of
from preftune.data.loss_items import as_labelled, with_mismatches
from preftune.lifecycle.packing_probe import choose_layout
from preftune.lifecycle.task import ResponseTask
from preftune.losses import PREFERENCE_LOSSES
from preftune.methods.objective import bind_objective
from preftune.model.attention import restore_attention, use_segments
from preftune.model.compile import compile_blocks
from preftune.model.logprobs import Scorer, logps
from preftune.model.reference import Frozen
from preftune.train.loop import _accumulate
from preftune.types import Judgement, TokenGroup


def task(name: str, groups: list[TokenGroup], budget: Budget, policy: Any, reference: Any) -> ResponseTask:
    objective = bind_objective([LossTerm(name=name)])
    return ResponseTask(Scorer.of(policy), Frozen(Scorer.of(reference)), objective, groups, groups, budget)


def gradients(
    name: str, groups: list[TokenGroup], slots: int, layout: LayoutName = "rows", constant: bool = False
) -> tuple[list[torch.Tensor], dict[str, float], int]:
    policy, reference = make_model(seed=1), make_model(seed=2).requires_grad_(False)
    running = task(name, groups, Budget(layout, slots, constant), policy, reference)
    if layout != "rows":
        assert use_segments(policy)
        assert use_segments(reference)
    batches = running.micro_batches(groups)
    count = sum(running.count(batch) for batch in batches)
    tally = _accumulate(running, batches, count)
    return [p.grad for p in policy.parameters() if p.grad is not None], tally.means(), len(batches)


def groups_for_loss(name: str, groups: list[TokenGroup]) -> list[TokenGroup]:
    if name in ("kto", "bco"):
        labelled = as_labelled(groups, name)
        return with_mismatches(labelled, name) if name == "kto" else labelled
    if name == "odpo":
        return [replace(g, judgements=tuple(replace(j, margin=0.5) for j in g.judgements)) for g in groups]
    return groups


@pytest.mark.parametrize("name", sorted(PREFERENCE_LOSSES))
def test_the_gradient_does_not_depend_on_micro_batches(name: str) -> None:
    """Metrics and gradients of every loss, including those that sort or average over the whole step."""
    groups = groups_for_loss(name, random_groups(7, responses=3))
    whole, metrics, one = gradients(name, groups, 100_000)
    assert one == 1
    for slots in (150, 20):
        parts, part_metrics, several = gradients(name, groups, slots)
        assert several > 1
        assert part_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-5)
        largest = max(float(g.abs().max()) for g in whole)
        for a, b in zip(whole, parts, strict=True):
            assert torch.allclose(a, b, atol=1e-5 * largest, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(PREFERENCE_LOSSES))
@pytest.mark.parametrize("layout", ["packed", "shared"])
def test_the_gradient_does_not_depend_on_the_layout(name: str, layout: LayoutName) -> None:
    """Metrics and gradients of packed and shared layouts, in one batch and in several, equal those of padded rows."""
    groups = groups_for_loss(name, random_groups(5, responses=3))
    whole, metrics, _ = gradients(name, groups, 100_000)
    for slots in (100_000, 60):
        other, other_metrics, _ = gradients(name, groups, slots, layout)
        assert other_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-5)
        largest = max(float(g.abs().max()) for g in whole)
        for a, b in zip(whole, other, strict=True):
            assert torch.allclose(a, b, atol=1e-5 * largest, rtol=1e-4)


@pytest.mark.parametrize("layout", ["packed", "shared"])
def test_the_gradient_does_not_depend_on_padding_to_constant_lengths(layout: LayoutName) -> None:
    """With rows that are mostly padding, and with rows that have a few slots of padding."""
    groups = random_groups(5, responses=3)
    whole, metrics, _ = gradients("sigmoid", groups, 100_000, layout)
    for slots in (4000, 60):
        padded, padded_metrics, _ = gradients("sigmoid", groups, slots, layout, constant=True)
        assert padded_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-5)
        for a, b in zip(whole, padded, strict=True):
            assert torch.allclose(a, b, atol=1e-5 * float(a.abs().max()), rtol=1e-4)


def test_one_batch_of_8_groups_equals_8_batches_of_one_group() -> None:

    groups = random_groups(8)
    once, _, _ = gradients("sigmoid", groups, 100_000)
    single, _, batches = gradients("sigmoid", groups, 1)
    assert batches == 8
    for a, b in zip(once, single, strict=True):
        assert torch.allclose(a, b, atol=1e-7)


def test_the_gradient_of_a_group_is_that_of_its_pairs() -> None:
    """Groups of four responses with six judgements, compared with six pairs each."""
    groups = random_groups(3, responses=4)
    pairs = [
        TokenGroup(
            g.prompt_ids, (g.response_ids[j.better], g.response_ids[j.worse]), (Judgement(0, 1),), origin=g.origin
        )
        for g in groups
        for j in g.judgements
    ]
    together, _, _ = gradients("sigmoid", groups, 100_000)
    apart, _, _ = gradients("sigmoid", pairs, 100_000)
    for a, b in zip(together, apart, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_pair_of_weight_2_equals_the_pair_twice() -> None:
    groups = random_groups(3)
    doubled = [*groups, groups[0]]
    weighted = [replace(groups[0], judgements=(Judgement(0, 1, weight=2.0),)), *groups[1:]]
    twice, metrics, _ = gradients("sigmoid", doubled, 100_000)
    once, weighted_metrics, _ = gradients("sigmoid", weighted, 100_000)
    assert weighted_metrics["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
    for a, b in zip(twice, once, strict=True):
        assert torch.allclose(a, b, atol=1e-7)


def test_evaluation_metrics_equal_training_metrics() -> None:
    groups = random_groups(6, responses=3)
    for name in ("sigmoid", "aot"):
        running = task(name, groups, Budget("rows", 60), make_model(seed=1), make_model(seed=2))
        _, metrics, _ = gradients(name, groups, 100_000)
        evaluation_only = ("calibration/", "loss_se")
        evaluated = running.evaluate()
        actual = {name: value for name, value in evaluated.items() if not name.startswith(evaluation_only)}
        assert actual == pytest.approx(metrics, rel=1e-4, abs=1e-6)


def test_the_gradient_of_dpo_equals_its_formula_in_fp64() -> None:

    groups = random_groups(4)
    actual, _, _ = gradients("sigmoid", groups, 100_000)
    policy, reference = make_model(seed=1).double(), make_model(seed=2).double()

    def logp(model: Any, group: TokenGroup, response_index: int) -> torch.Tensor:
        response = torch.tensor(group.response_ids[response_index].tolist())
        ids = torch.cat([torch.tensor(group.prompt_ids.tolist()), response])[None]
        scored = model(input_ids=ids).logits[0, len(group.prompt_ids) - 1 : -1].log_softmax(-1)
        return scored.gather(1, response[:, None]).sum()

    losses = []
    for group in groups:
        with torch.no_grad():
            offset = logp(reference, group, 0) - logp(reference, group, 1)
        margin = logp(policy, group, 0) - logp(policy, group, 1) - offset
        losses.append(-torch.nn.functional.logsigmoid(0.1 * margin))
    torch.stack(losses).mean().backward()
    for a, b in zip(actual, (p.grad for p in policy.parameters()), strict=True):
        assert b is not None
        assert torch.allclose(a.double(), b, atol=1e-6, rtol=1e-4)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.filterwarnings("ignore")  # the compiler uses deprecated functions
def test_compiled_blocks_have_the_same_log_probs_and_gradients() -> None:
    """Up to rounding, for batches of several sizes with segment attention."""
    results = []
    for compiled in (False, True):
        model = make_model()
        scorer = Scorer.of(model)
        assert choose_layout(scorer, "shared")[0] == "shared"
        if compiled:
            compile_blocks(model)
        values = [logps(scorer, batch_of(random_groups(n), "shared")).sum_S for n in (3, 5)]
        torch.cat(values).square().sum().backward()
        results.append([torch.cat(values).detach(), *(p.grad for p in model.parameters())])
        restore_attention(model)
    for expected, actual in zip(*results, strict=True):
        assert torch.allclose(expected, actual, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
