"""The run folder: a config of an earlier version lacks newer settings, which then had their defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from preftune.config.schema import DataConfig, DPOConfig, ModelConfig
from preftune.errors import RunError
from preftune.train.display import Display
from preftune.train.run import Run, run_identity


def config(**data: Any) -> DPOConfig:
    return DPOConfig(model=ModelConfig(path="m"), data=DataConfig(train="d", **data))


def earlier(folder: Path, *, without: tuple[str, ...], **more: Any) -> None:
    """A run that was begun before the settings in `without` existed."""
    stored = config().model_dump(mode="json")
    stored["data"] = {key: value for key, value in stored["data"].items() if key not in without} | more
    Run.open(folder, run_identity(stored, "x"), Display(quiet=True))


def check(folder: Path, wanted: DPOConfig) -> None:
    Run.check(folder, run_identity(wanted.model_dump(mode="json"), "x"), DPOConfig)


def test_settings_that_are_newer_than_a_run_may_have_their_defaults(tmp_path: Path) -> None:
    earlier(tmp_path / "run", without=("thinking", "columns", "as_chat", "chat_template_kwargs"))
    check(tmp_path / "run", config())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"thinking": "keep"}, 'data.thinking was "template", is "keep"'),
        ({"as_chat": True}, "data.as_chat was false, is true"),
    ],
)
def test_other_values_of_newer_settings_are_another_run(tmp_path: Path, data: dict[str, Any], message: str) -> None:
    earlier(tmp_path / "run", without=("thinking", "as_chat"))
    with pytest.raises(RunError) as error:
        check(tmp_path / "run", config(**data))
    assert error.value.why == message


def test_a_setting_that_no_longer_exists_is_named(tmp_path: Path) -> None:
    earlier(tmp_path / "run", without=(), shuffle=True)
    with pytest.raises(RunError, match="shuffle"):
        check(tmp_path / "run", config())
