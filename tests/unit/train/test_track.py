"""Trackers receive every metric as split/name, through the documented functions of their packages.

A resumed run continues its run in each tracker. These tests use the real packages on local files, where installed.
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from preftune.errors import ConfigError
from preftune.train import track
from preftune.train.track import Tracked, flat, log_metrics, open_trackers, require_packages

VARIABLES: tuple[str, ...] = (
    "WANDB_PROJECT",
    "WANDB_NAME",
    "WANDB_ENTITY",
    "WANDB_RUN_ID",
    "WANDB_RESUME",
    "WANDB_DIR",
    "WANDB_MODE",
)
VARIABLES += ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_TAGS")
VARIABLES += ("TRACKIO_PROJECT", "TENSORBOARD_LOGGING_DIR")


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


class Recorder(ModuleType):
    """A fake package that records every call by its dotted name."""

    def __init__(self, name: str, calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]]) -> None:
        super().__init__(name)
        self.calls = calls

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            return SimpleNamespace(
                id="abc",
                info=SimpleNamespace(run_id="abc"),
                log=lambda *a, **k: self.calls.append(("run.log", a, k)),
                finish=lambda: self.calls.append(("run.finish", (), {})),
                runs=lambda _: [SimpleNamespace(name="taken")],
            )

        return call


@pytest.mark.parametrize(
    ("name", "logged", "closed"),
    [("wandb", "run.log", "run.finish"), ("trackio", "log", "finish"), ("mlflow", "log_metrics", "end_run")],
)
def test_metrics_are_logged_before_the_tracker_is_closed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, logged: str, closed: str
) -> None:
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    monkeypatch.setitem(sys.modules, name, Recorder(name, calls))
    tracker = open_trackers([name], Tracked(tmp_path / "my-run", {"optim": {"lr": 1}}))[name]
    tracker.log(3, {"train/loss": 0.5})
    tracker.close()
    names = [call[0] for call in calls]
    assert names.index(logged) < names.index(closed)
    _, args, kwargs = calls[names.index(logged)]
    assert args == ({"train/loss": 0.5},)
    assert kwargs == {"step": 3}
    assert any("my-run" in map(str, call[2].values()) for call in calls)
    assert any({"optim": {"lr": 1}} in (*call[1], *call[2].values()) for call in calls)


@pytest.mark.parametrize("resumed", [False, True])
def test_environment_variables_set_project_and_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, resumed: bool
) -> None:
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    for name in ("wandb", "trackio", "mlflow"):
        monkeypatch.setitem(sys.modules, name, Recorder(name, calls))
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_NAME", "first")
    monkeypatch.setenv("TRACKIO_PROJECT", "mine")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    earlier = {"wandb": {"id": "xyz", "project": "mine", "entity": ""}, "trackio": {"project": "mine", "name": "old"}}
    opened = open_trackers(
        ["wandb", "trackio", "mlflow"], Tracked(tmp_path / "run", {}, earlier=earlier if resumed else {})
    )
    inits = [call[2] for call in calls if call[0] == "init"]
    assert [init["project"] for init in inits] == ["mine", "mine"]
    assert [init["name"] for init in inits] == ["first", "old" if resumed else "run"]
    assert inits[0]["id"] == ("xyz" if resumed else None)
    assert inits[1]["resume"] == ("allow" if resumed else "never")
    assert ("set_experiment", ("mine",), {}) in calls
    assert opened["wandb"].run == {"id": "abc", "project": "mine", "entity": ""}


def test_a_run_in_another_project_is_a_new_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, Recorder(name, calls))
    earlier = {"wandb": {"id": "xyz", "project": "old", "entity": ""}, "trackio": {"project": "old", "name": "old"}}
    open_trackers(["wandb", "trackio"], Tracked(tmp_path / "taken", {}, earlier=earlier))
    wandb, trackio = (call[2] for call in calls if call[0] == "init")
    assert wandb["id"] is None
    assert (trackio["name"], trackio["resume"]) == ("taken-2", "never")


def in_two_parts(name: str, folder: Path) -> list[dict[str, str]]:
    """Log steps 1 to 4 of a run that is killed at step 4, resume it from the checkpoint of step 2, and log 3 to 5."""
    opened = open_trackers([name], Tracked(folder, {"optim": {"lr": 1e-6}}))
    first = opened[name].run
    for step in range(5):
        log_metrics(opened, [], "train" if step else "eval", step, {"loss": float(step)}, pytest.fail)
    track.close_trackers(opened, pytest.fail)
    opened = open_trackers([name], Tracked(folder, {"optim": {"lr": 1e-6}}, 2, {name: first}))
    second = opened[name].run
    for step in range(3, 6):
        log_metrics(opened, [], "train", step, {"loss": float(step)}, pytest.fail)
    log_metrics(opened, [], "eval", 5, {"loss": 9.0}, pytest.fail)
    track.close_trackers(opened, pytest.fail)
    return [first, second]


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_shows_every_step_once_after_a_run_is_resumed(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    in_two_parts("tensorboard", tmp_path)
    assert len(list((tmp_path / "tensorboard").glob("events.*"))) == 2
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(n, n) for n in range(1, 6)]
    assert [(event.step, event.value) for event in events.Scalars("eval/loss")] == [(0, 0), (5, 9)]


@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_every_step_once_after_a_run_is_resumed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    monkeypatch.setenv("MLFLOW_TAGS", '{"team": "a"}')
    monkeypatch.chdir(tmp_path)
    first, second = in_two_parts("mlflow", tmp_path / "run")
    assert first == second
    client = mlflow.MlflowClient()
    [run] = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert run.info.run_id == first["run_id"]
    assert (run.info.status, run.data.tags["team"], run.data.params) == ("FINISHED", "a", {"optim.lr": "1e-06"})
    history = client.get_metric_history(first["run_id"], "train/loss")
    assert sorted((metric.step, metric.value) for metric in history) == [(n, n) for n in range(1, 6)]
    # the run was deleted in MLflow: a new one, not an error
    client.delete_run(first["run_id"])
    opened = open_trackers(["mlflow"], Tracked(tmp_path / "run", {}, 2, {"mlflow": first}))
    assert opened["mlflow"].run["run_id"] != first["run_id"]
    track.close_trackers(opened, pytest.fail)


@pytest.mark.filterwarnings("ignore")
def test_wandb_continues_a_run_with_its_id(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    folder = tmp_path / "run"
    folder.mkdir()
    first, second = in_two_parts("wandb", folder)
    assert first == second
    parts = sorted((folder / "wandb").glob("offline-run-*"))
    assert parts
    assert all(part.name.endswith(f"-{first['id']}") for part in parts)
    assert all(list(part.glob("*.wandb")) for part in parts)


@pytest.mark.filterwarnings("ignore")
def test_trackio_has_every_step_after_a_run_is_resumed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    from trackio import sqlite_storage

    monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", tmp_path / "trackio")
    first, second = in_two_parts("trackio", tmp_path / "run")
    assert first == second == {"project": "preftune", "name": "run"}
    rows = sqlite_storage.SQLiteStorage.get_logs("preftune", "run")
    losses = [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert sorted(set(losses)) == [(n, n) for n in range(1, 6)]
    assert len(losses) <= 6  # at most the last step of the first part is there twice
    # another run in a folder of the same name
    opened = open_trackers(["trackio"], Tracked(tmp_path / "other" / "run", {}))
    assert opened["trackio"].run["name"] == "run-2"
    track.close_trackers(opened, pytest.fail)


def test_settings_are_flat_for_mlflow() -> None:
    assert flat({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}


def test_a_tracker_that_is_not_installed_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing-like-it is not installed"):
        require_packages(["nothing-like-it"])


class Slow:
    """A tracker that cannot reach its server."""

    run: dict[str, str] = {}  # noqa: RUF012

    def log(self, step: int, metrics: dict[str, float]) -> None: ...

    def close(self) -> None:
        threading.Event().wait(3600)


class Broken(Slow):
    def close(self) -> None:
        raise OSError("no route to host")


def test_a_tracker_that_cannot_be_closed_is_reported_and_the_others_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(track, "CLOSE_S", 0.05)
    messages, closed = list[str](), list[bool]()

    class Good(Slow):
        def close(self) -> None:
            closed.append(True)

    handler = signal.getsignal(signal.SIGALRM)
    track.close_trackers({"slow": Slow(), "broken": Broken(), "good": Good()}, messages.append)
    assert closed == [True]
    assert messages == [
        "warning: slow did not close within 0.05 s, so its last metrics may be missing there",
        "warning: broken could not be closed: OSError: no route to host",
    ]
    assert signal.getsignal(signal.SIGALRM) is handler
