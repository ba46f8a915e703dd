"""A run that fails before its first step leaves a model in memory as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import PAIRS, make_model, write_jsonl

from preftune.config.schema import DataConfig, ModelConfig, SFTConfig
from preftune.errors import RunError
from preftune.methods import sft
from preftune.ranks import group
from preftune.train.display import Display
from preftune.train.run import Run


def test_a_failed_start_leaves_no_gradient_hooks(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bf16 model has a hook per parameter while it is trained: its gradients are added up in fp32."""

    def fail(self: Run, *_: Any) -> None:
        raise RunError("the checkpoint is damaged", where="run", fix="choose another folder")

    monkeypatch.setattr(Run, "attach", fail)
    config = SFTConfig(
        model=ModelConfig(path="toy"),
        data=DataConfig(train=str(write_jsonl(tmp_path / "pairs.jsonl", PAIRS))),
        out=str(tmp_path / "run"),
    )
    model = make_model().to(torch.bfloat16)
    with pytest.raises(RunError, match="damaged"):
        sft.run(config, model=model, tokenizer=tokenizer, display=Display(quiet=True))
    model(torch.tensor([[1, 2, 3]])).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_ranks_with_different_layouts_do_not_train(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rank computes its share of a step from the layout, so that groups would be lost or counted twice."""

    def gather(value: Any) -> list[Any]:
        return [value, ("rows", value[1]) if isinstance(value, tuple) else value]

    monkeypatch.setattr(group, "gather", gather)
    config = SFTConfig(
        model=ModelConfig(path="toy"),
        data=DataConfig(train=str(write_jsonl(tmp_path / "pairs.jsonl", PAIRS))),
        out=str(tmp_path / "run"),
    )
    with pytest.raises(RunError, match="the layout or the precision of rank 1 differs from that of rank 0"):
        sft.run(config, model=make_model(), tokenizer=tokenizer, display=Display(quiet=True))
    assert not (tmp_path / "run").exists()
