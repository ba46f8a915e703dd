"""The packing probe with a pretrained chat model in bf16, whose log-probs rounding changes by tenths of a nat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from preftune.data.layout import batch_of
from preftune.lifecycle.packing_probe import choose_layout
from preftune.lifecycle.probe_groups import text_like_groups
from preftune.model.logprobs import Scorer, logps


@pytest.fixture
def chat_model(shared: Path) -> Any:
    folder = shared / "models" / "smollm2"
    if not (folder / "config.json").is_file():
        pytest.skip("the folder shared has no chat model (its models/smollm2.py writes one)")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()


def test_shared_prompts_are_as_close_to_fp32_as_padded_rows(chat_model: Any) -> None:
    """Per-token log-probs. The rounding of padded rows alone exceeds 0.05 nats."""
    groups = text_like_groups(chat_model.config.vocab_size, [1, 2])
    rows = batch_of(groups, "rows")
    scorer = Scorer.of(chat_model)
    with torch.no_grad():
        plain = logps(scorer, rows).token_N
        assert choose_layout(scorer, "auto") == ("shared", "")
        actual = logps(scorer, batch_of(groups, "shared")).token_N
        wide = AutoModelForCausalLM.from_pretrained(chat_model.name_or_path, dtype=torch.float32).eval()
        exact = logps(Scorer.of(wide), rows).token_N
    noise, errors = (plain - exact).abs(), (actual - exact).abs()
    assert noise.max() > 0.05
    assert errors.square().mean().sqrt() < 1.3 * noise.square().mean().sqrt()
    assert errors.max() < 2 * noise.max()
