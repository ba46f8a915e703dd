"""Resume a run of an earlier version: settings that its config lacks have their defaults."""

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
    """Create a run whose config was written before the settings in `without` existed."""
    stored = config().model_dump(mode="json")
    stored["data"] = {key: value for key, value in stored["data"].items() if key not in without} | more
    Run.open(folder, run_identity(stored, "x"), Display(quiet=True))


def check(folder: Path, config: DPOConfig) -> None:
    Run.check(folder, run_identity(config.model_dump(mode="json"), "x"), DPOConfig)


def test_a_run_resumes_with_defaults_of_newer_settings(tmp_path: Path) -> None:
    earlier(tmp_path / "run", without=("thinking", "columns", "as_chat", "chat_template_kwargs"))
    check(tmp_path / "run", config())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"thinking": "keep"}, 'data.thinking was "template", is now "keep"'),
        ({"as_chat": True}, 'data.as_chat was "auto", is now true'),
        ({"as_chat": False}, 'data.as_chat was "auto", is now false'),
    ],
)
def test_a_run_does_not_resume_with_other_values_of_newer_settings(
    tmp_path: Path, data: dict[str, Any], message: str
) -> None:
    earlier(tmp_path / "run", without=("thinking", "as_chat"))
    with pytest.raises(RunError) as error:
        check(tmp_path / "run", config(**data))
    assert error.value.why == message


def test_a_run_with_the_earlier_default_of_a_setting_resumes(tmp_path: Path) -> None:
    """The token ids are compared later."""
    earlier(tmp_path / "run", without=(), as_chat=False)
    check(tmp_path / "run", config())
    with pytest.raises(RunError, match=r"data\.as_chat was false, is now true"):
        check(tmp_path / "run", config(as_chat=True))


def test_a_setting_that_no_longer_exists_is_reported(tmp_path: Path) -> None:
    earlier(tmp_path / "run", without=(), shuffle=True)
    with pytest.raises(RunError, match="shuffle"):
        check(tmp_path / "run", config())
