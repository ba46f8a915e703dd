"""A finished LoRA run with a chat template, on a base model in bf16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.conftest import PAIRS, make_model, make_tokenizer, write_jsonl

from preftune.config.schema import DPOConfig
from preftune.methods import dpo
from preftune.train.display import Display

CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<s>system\nBe nice</s>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<s>' + m['role'] + '\n' + m['content'] + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-base"
    make_model().to(torch.bfloat16).save_pretrained(folder)
    tokenizer = make_tokenizer(bos=False)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def lora_run(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a learning rate at which the adapter changes the outputs clearly."""
    folder = tmp_path_factory.mktemp("runs")
    data = write_jsonl(folder / "secret-place.jsonl", PAIRS)
    config = DPOConfig.model_validate(
        {
            "model": {"path": str(base_model), "dtype": "fp32"},
            "data": {"train": str(data), "eval": 0.25, "as_chat": True},
            "lora": {"rank": 4, "alpha": 8},
            "optim": {"lr": 2e-2, "warmup": 0},
            "batch": {"pairs": 3},
            "train": {"epochs": 2, "save_every": 2},
            "monitor": None,
            "out": str(folder / "my-run"),
        }
    )
    dpo.run(config, display=Display(quiet=True))
    return folder / "my-run"
