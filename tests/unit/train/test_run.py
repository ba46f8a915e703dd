"""Resume a run: settings that an earlier version lacked have their defaults, and trackers continue their runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from preftune.config.schema import DataConfig, DPOConfig, ModelConfig
from preftune.errors import RunError
from preftune.train import manifest
from preftune.train import run as run_module
from preftune.train.display import Display
from preftune.train.manifest import run_identity
from preftune.train.run import Run
from preftune.train.track import Tracked


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


class Recorder:
    """A tracker that keeps what it is sent."""

    def __init__(self) -> None:
        self.run = {"id": "abc"}
        self.lines: list[tuple[int, dict[str, float]]] = []

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.lines.append((step, metrics))

    def close(self) -> None: ...


def test_a_resumed_run_continues_its_trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[Tracked]()

    def opened(names: list[str], tracked: Tracked) -> dict[str, Recorder]:
        seen.append(tracked)
        return {name: Recorder() for name in names}

    monkeypatch.setattr(run_module, "open_trackers", opened)
    settings = config().model_copy(update={"track": ["wandb"], "track_names": ["trl"]})
    identity = run_identity(settings.model_dump(mode="json"), "x")
    for _ in range(2):
        run = Run.open(tmp_path / "run", identity, Display(quiet=True))
        run.open_trackers()
        run.log_train(1, {"loss": 0.5, "lr": 1e-6})
        assert run.trackers["wandb"].lines == [  # type: ignore[attr-defined]
            (1, {"train/loss": 0.5, "train/lr": 1e-6, "train/learning_rate": 1e-6, "train/global_step": 1})
        ]
    assert [tracked.earlier for tracked in seen] == [{}, {"wandb": {"id": "abc"}}]
    assert Run.manifest(tmp_path / "run")["trackers"] == {"wandb": {"id": "abc"}}


def test_names_of_metrics_may_change_when_a_run_resumes(tmp_path: Path) -> None:
    Run.open(tmp_path / "run", run_identity(config().model_dump(mode="json"), "x"), Display(quiet=True))
    check(tmp_path / "run", config().model_copy(update={"track_names": ["trl"]}))


def test_files_of_other_commands_in_the_run_folder_are_kept(tmp_path: Path) -> None:
    """For example the answers of an interrupted `preftune sample`, which may be paid."""
    identity = run_identity(config().model_dump(mode="json"), "x")
    Run.open(tmp_path / "run", identity, Display(quiet=True)).close()
    for name in ("samples.jsonl.part", "notes.partial.md", "final.part-7"):
        (tmp_path / "run" / name).write_text("x")
    Run.open(tmp_path / "run", identity, Display(quiet=True)).close()
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"samples.jsonl.part", "notes.partial.md"} <= left
    assert "final.part-7" not in left


def test_a_tracker_that_fails_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        run: ClassVar[dict[str, str]] = {}
        closed = 0

        def log(self, step: int, metrics: dict[str, float]) -> None:
            raise ConnectionError("the server is gone")

        def close(self) -> None:
            Failing.closed += 1

    lines: list[str] = []
    display = Display(quiet=True)
    monkeypatch.setattr(display, "say", lines.append)
    run = Run.open(tmp_path / "run", run_identity(config().model_dump(mode="json"), "x"), display)
    run.trackers = {"mlflow": Failing()}
    for step in (1, 2):
        run.log_train(step, {"loss": 0.5})
    assert [line for line in lines if "loss" not in line] == [
        "warning: mlflow failed, and the run continues without it: ConnectionError: the server is gone"
    ]
    assert (run.trackers, Failing.closed, len(run.metric_lines())) == ({}, 1, 2)


def test_the_copy_of_a_manifest_is_written_first_except_in_a_new_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a kill after the manifest of a finished run leaves no part of the copy, which no later command deletes."""
    names: list[str] = []
    real = manifest.write_json
    monkeypatch.setattr(
        manifest, "write_json", lambda path, *a, **options: (names.append(path.name), real(path, *a, **options))
    )
    for _ in range(2):
        manifest.write(tmp_path, {"finished": True})
    assert names == ["manifest.json", ".manifest.json", ".manifest.json", "manifest.json"]
