"""Rewards of packed and shared batches: those of transformers' own classifiers, values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.conftest import random_groups
from tests.equal.test_architectures import EXACT, make
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from preftune.data.layout import batch_of
from preftune.lifecycle.packing_probe import choose_layout, state_values
from preftune.model.attention import use_own
from preftune.model.scalar import readable, reward_logps, scalar_scorer, scalar_twin

CLASSIFIERS = sorted(set(EXACT) & set(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES))


def classifier(architecture: str) -> Any:
    """A classifier on the body of a random language model, with a head that is not 0."""
    twin = scalar_twin(make(architecture, EXACT[architecture]).model)
    torch.nn.init.normal_(twin.score.weight, std=0.5, generator=torch.Generator().manual_seed(0))
    return twin


def test_there_are_many() -> None:
    assert len(CLASSIFIERS) >= 18


@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_rewards_are_those_of_transformers(architecture: str) -> None:
    """Each response alone, unpadded, read by the classifier itself at its last token."""
    model = classifier(architecture)
    groups = random_groups(3, 3, vocabulary=model.config.get_text_config().vocab_size)
    expected = []
    for group in groups:
        for ids in group.response_ids:
            row = torch.tensor([[*group.prompt_ids.tolist(), *ids.tolist()]])
            model.config.pad_token_id = model.config.get_text_config().pad_token_id = -1  # every token is one
            expected.append(model(input_ids=row, use_cache=False).logits.reshape(()))
    reward = torch.stack(expected)
    weights = torch.linspace(-1, 1, len(reward))
    wanted = torch.autograd.grad((weights * reward).sum(), list(model.parameters()), allow_unused=True)
    scorer = scalar_scorer(model)
    assert choose_layout(scorer, "auto", state_values) == ("shared", "")
    for layout in ("shared", "packed", "rows"):
        if layout == "rows":
            use_own(model)
        found = reward_logps(scorer, batch_of(readable(groups), layout)).sum_S  # type: ignore[arg-type]
        assert torch.allclose(found, reward, atol=2e-5), layout
        gradients = torch.autograd.grad((weights * found).sum(), list(model.parameters()), allow_unused=True)
        for ours, theirs in zip(gradients, wanted, strict=True):
            if theirs is not None and ours is not None:
                assert torch.allclose(ours, theirs, atol=1e-4 * max(1.0, float(theirs.abs().max()))), layout
