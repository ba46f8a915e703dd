"""Rewards and their gradients in packed and shared batches equal those of transformers' classifiers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.conftest import random_groups
from tests.equal.test_architectures import SUPPORTED, make_scorer
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from preftune.data.layout import batch_of
from preftune.lifecycle.packing_probe import choose_layout
from preftune.model.attention import restore_attention
from preftune.model.scalar import reward_logps, scalar_scorer, scalar_twin, with_reward_slot

CLASSIFIERS = sorted(set(SUPPORTED) & set(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES))


def classifier(architecture: str) -> Any:
    """Return a classifier with a random head on the body of a random language model."""
    twin = scalar_twin(make_scorer(architecture, SUPPORTED[architecture]).model)
    torch.nn.init.normal_(twin.score.weight, std=0.5, generator=torch.Generator().manual_seed(0))
    return twin


def test_at_least_18_architectures_are_tested() -> None:
    assert len(CLASSIFIERS) >= 18


@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_rewards_and_gradients_equal_those_of_transformers(architecture: str) -> None:
    """The classifier computes each response alone, without padding."""
    model = classifier(architecture)
    groups = random_groups(3, 3, vocabulary=model.config.get_text_config().vocab_size)
    expected = []
    for group in groups:
        for ids in group.response_ids:
            row = torch.tensor([[*group.prompt_ids.tolist(), *ids.tolist()]])
            model.config.pad_token_id = model.config.get_text_config().pad_token_id = -1  # no token is padding
            expected.append(model(input_ids=row, use_cache=False).logits.reshape(()))
    reward = torch.stack(expected)
    weights = torch.linspace(-1, 1, len(reward))
    expected_gradients = torch.autograd.grad((weights * reward).sum(), list(model.parameters()), allow_unused=True)
    scorer = scalar_scorer(model)
    assert choose_layout(scorer, "auto") == ("shared", "")
    for layout in ("shared", "packed", "rows"):
        if layout == "rows":
            restore_attention(model)
        actual = reward_logps(scorer, batch_of(with_reward_slot(groups), layout)).sum_S  # type: ignore[arg-type]
        assert torch.allclose(actual, reward, atol=2e-5), layout
        gradients = torch.autograd.grad((weights * actual).sum(), list(model.parameters()), allow_unused=True)
        for actual_gradient, gradient in zip(gradients, expected_gradients, strict=True):
            if gradient is not None and actual_gradient is not None:
                tolerance = 1e-4 * max(1.0, float(gradient.abs().max()))
                assert torch.allclose(actual_gradient, gradient, atol=tolerance), layout
