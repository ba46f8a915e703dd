"""One gradient, however the step is cut: micro-batches, accumulation, joint losses, layouts, groups or pairs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.conftest import make_model, random_groups

from preftune.config.schema import LossTerm
from preftune.data.items import as_labelled, with_mismatches
from preftune.data.layout import Budget, LayoutName, batch_of
from preftune.lifecycle.packing_probe import admit
from preftune.lifecycle.task import ResponseTask
from preftune.losses import PREFERENCE_LOSSES
from preftune.methods.objective import bind_objective
from preftune.model.attention import use_own, use_segments
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


def shaped(name: str, groups: list[TokenGroup]) -> list[TokenGroup]:
    if name in ("kto", "bco"):
        labelled = as_labelled(groups, name)
        return with_mismatches(labelled, name) if name == "kto" else labelled
    if name == "odpo":
        return [replace(g, judgements=tuple(replace(j, margin=0.5) for j in g.judgements)) for g in groups]
    return groups


@pytest.mark.parametrize("name", sorted(PREFERENCE_LOSSES))
def test_the_split_into_micro_batches_does_not_matter(name: str) -> None:
    """Every loss, those that sort or average over the whole step included: values, metrics and gradients."""
    groups = shaped(name, random_groups(7, responses=3))
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
def test_the_layout_does_not_matter(name: str, layout: LayoutName) -> None:
    """Packed and shared prompts, in one batch and in several: the values and gradients of padded rows."""
    groups = shaped(name, random_groups(5, responses=3))
    whole, metrics, _ = gradients(name, groups, 100_000)
    for slots in (100_000, 60):
        other, other_metrics, _ = gradients(name, groups, slots, layout)
        assert other_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-5)
        largest = max(float(g.abs().max()) for g in whole)
        for a, b in zip(whole, other, strict=True):
            assert torch.allclose(a, b, atol=1e-5 * largest, rtol=1e-4)


@pytest.mark.parametrize("layout", ["packed", "shared"])
def test_padding_to_constant_lengths_does_not_matter(layout: LayoutName) -> None:
    """Values and gradients of all weights, whether padding is the most of a row or a few slots of it."""
    groups = random_groups(5, responses=3)
    whole, metrics, _ = gradients("sigmoid", groups, 100_000, layout)
    for slots in (4000, 60):
        padded, padded_metrics, _ = gradients("sigmoid", groups, slots, layout, constant=True)
        assert padded_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-5)
        for a, b in zip(whole, padded, strict=True):
            assert torch.allclose(a, b, atol=1e-5 * float(a.abs().max()), rtol=1e-4)


def test_both_layouts_of_accumulation_agree() -> None:
    """One batch of 8 groups, and 8 batches of one group: the same gradient as a single mean over all pairs."""
    groups = random_groups(8)
    once, _, _ = gradients("sigmoid", groups, 100_000)
    single, _, batches = gradients("sigmoid", groups, 1)
    assert batches == 8
    for a, b in zip(once, single, strict=True):
        assert torch.allclose(a, b, atol=1e-7)


def test_a_group_is_its_pairs() -> None:
    """Four responses with six judgements give the gradient of the six pairs one by one."""
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


def test_weight_two_is_the_pair_twice() -> None:
    groups = random_groups(3)
    doubled = [*groups, groups[0]]
    weighted = [replace(groups[0], judgements=(Judgement(0, 1, weight=2.0),)), *groups[1:]]
    twice, metrics, _ = gradients("sigmoid", doubled, 100_000)
    once, weighted_metrics, _ = gradients("sigmoid", weighted, 100_000)
    assert weighted_metrics["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
    for a, b in zip(twice, once, strict=True):
        assert torch.allclose(a, b, atol=1e-7)


def test_evaluation_equals_the_training_loss() -> None:
    groups = random_groups(6, responses=3)
    for name in ("sigmoid", "aot"):
        running = task(name, groups, Budget("rows", 60), make_model(seed=1), make_model(seed=2))
        _, metrics, _ = gradients(name, groups, 100_000)
        own = ("calibration/", "loss_se")  # of evaluations alone
        found = {name: value for name, value in running.evaluate().items() if not name.startswith(own)}
        assert found == pytest.approx(metrics, rel=1e-4, abs=1e-6)


def test_the_gradient_against_fp64() -> None:
    """DPO's gradient from the whole path, in fp32, against the formula in fp64."""
    groups = random_groups(4)
    ours, _, _ = gradients("sigmoid", groups, 100_000)
    policy, reference = make_model(seed=1).double(), make_model(seed=2).double()

    def logp(model: Any, group: TokenGroup, which: int) -> torch.Tensor:
        response = torch.tensor(group.response_ids[which].tolist())
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
    for a, b in zip(ours, (p.grad for p in policy.parameters()), strict=True):
        assert b is not None
        assert torch.allclose(a.double(), b, atol=1e-6, rtol=1e-4)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.filterwarnings("ignore")  # the compiler reads deprecated things
def test_compiled_blocks_change_nothing_but_rounding() -> None:
    """Values and gradients, for batches of several sizes, through segment attention."""
    found = []
    for compiled in (False, True):
        model = make_model()
        scorer = Scorer.of(model)
        assert admit(scorer, "shared")[0] == "shared"
        if compiled:
            compile_blocks(model)
        values = [logps(scorer, batch_of(random_groups(n), "shared")).sum_S for n in (3, 5)]
        torch.cat(values).square().sum().backward()
        found.append([torch.cat(values).detach(), *(p.grad for p in model.parameters())])
        use_own(model)
    for plain, fast in zip(*found, strict=True):
        assert torch.allclose(plain, fast, rtol=1e-4, atol=1e-5 * float(plain.abs().max()))
