"""Default lengths fit into the model's context; lengths that are set do not change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_jsonl

from preftune.config.load import load
from preftune.config.sampling import IterateConfig, PPOConfig
from preftune.config.schema import DataConfig, DPOConfig, TunedConfig
from preftune.errors import ConfigError
from preftune.lifecycle.context import fitted, within_context
from preftune.methods import dpo
from preftune.train.display import Display
from preftune.workflows.check_data import check

CONTEXT = 256  # of the model in tests/conftest.py


class Listening(Display):
    """Collect the lines that are printed."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def configured(kind: type[TunedConfig], model: Path, **sections: Any) -> Any:
    data = {"train": "prompts.jsonl", **sections.pop("data", {})}
    if kind is not DPOConfig:
        sections["reward"] = "length"
    return kind(model={"path": str(model)}, data=data, **{"out": "none", **sections})


@pytest.mark.parametrize(
    ("kind", "sections", "key", "length"),
    [
        (DPOConfig, {}, "data.max_length", CONTEXT),
        (IterateConfig, {}, "max_length", CONTEXT),
        (PPOConfig, {"rollout": {"max_new_tokens": 50}}, "data.max_prompt_length", CONTEXT - 50),
    ],
)
def test_a_default_length_is_limited_to_the_context_and_the_change_is_printed(
    kind: type[TunedConfig], sections: dict[str, Any], key: str, length: int, model_folder: Path
) -> None:
    display = Listening()
    config: Any = within_context(configured(kind, model_folder, **sections), display)
    for part in key.split("."):
        config = getattr(config, part)
    assert config == length
    (line,) = display.lines
    assert line.startswith(f"{key}: {length} instead of the default ")
    assert f"context has {CONTEXT} tokens" in line


def test_a_length_that_is_set_is_not_changed(model_folder: Path) -> None:
    display = Listening()
    for config in (
        configured(DPOConfig, model_folder, data={"max_length": 1024}),
        configured(IterateConfig, model_folder, max_length=4000),
        configured(PPOConfig, model_folder, data={"max_prompt_length": 512}),
    ):
        assert within_context(config, display) is config
    assert display.lines == []


def test_a_run_keeps_the_default_length_that_it_started_with(tmp_path: Path, model_folder: Path) -> None:
    before = {"identity": {"config": {"data": {"max_length": 1024}}}}
    (tmp_path / "manifest.json").write_text(json.dumps(before))
    config = configured(DPOConfig, model_folder, out=str(tmp_path))
    assert within_context(config) is config


def test_a_run_with_long_rows_needs_no_setting_and_its_config_can_be_run_again(
    tmp_path: Path, model_folder: Path
) -> None:
    rows = [{"prompt": "the", "chosen": " cat" * 300, "rejected": " dog" * 300}] * 2
    source = write_jsonl(tmp_path / "long.jsonl", rows)
    settings = {"monitor": None, "out": str(tmp_path / "run")}
    dpo.run(configured(DPOConfig, model_folder, data={"train": str(source)}, **settings), display=Display(quiet=True))
    written = load(DPOConfig, tmp_path / "run" / "config.yaml")
    assert written.data.max_length == CONTEXT
    dpo.run(written, display=Display(quiet=True))  # finished, and the same run
    stated = configured(DPOConfig, model_folder, data={"train": str(source), "max_length": 1024}, monitor=None)
    with pytest.raises(ConfigError, match="context has 256"):
        dpo.run(stated, display=Display(quiet=True), dry_run=True)


def test_data_check_uses_the_same_length(tmp_path: Path) -> None:
    assert fitted(DataConfig(train="d"), CONTEXT).max_length == CONTEXT
    assert fitted(DataConfig(train="d"), None).max_length == 1024
    assert fitted(DataConfig(train="d", max_length=1024), CONTEXT).max_length == 1024
    assert fitted(DataConfig(train="d"), 4096).max_length == 1024
    rows = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    assert check(DataConfig(train=str(rows)), positions=CONTEXT).refusal is None


def test_a_damaged_model_is_reported_when_it_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    config = configured(DPOConfig, tmp_path)
    assert within_context(config) is config
