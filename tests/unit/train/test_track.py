"""Trackers receive every metric as split/name, through the documented functions of their packages."""

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
from preftune.train.track import open_trackers, require_packages


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
                log=lambda *a, **k: self.calls.append(("run.log", a, k)),
                finish=lambda: self.calls.append(("run.finish", (), {})),
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
    [tracker] = open_trackers([name], tmp_path / "my-run", {"optim": {"lr": 1}})
    tracker.log(3, {"train/loss": 0.5})
    tracker.close()
    names = [call[0] for call in calls]
    assert names.index(logged) < names.index(closed)
    _, args, kwargs = calls[names.index(logged)]
    assert args == ({"train/loss": 0.5},)
    assert kwargs == {"step": 3}
    assert any("my-run" in map(str, call[2].values()) for call in calls)
    assert any({"optim": {"lr": 1}} in (*call[1], *call[2].values()) for call in calls)


def test_tensorboard_writes_event_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    [tracker] = open_trackers(["tensorboard"], tmp_path, {"a": 1})
    tracker.log(1, {"train/loss": 0.5})
    tracker.close()
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_a_tracker_that_is_not_installed_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing-like-it is not installed"):
        require_packages(["nothing-like-it"])


class Slow:
    """A tracker that cannot reach its server."""

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
    track.close_trackers([Slow(), Broken(), Good()], messages.append)
    assert closed == [True]
    assert messages == [
        "warning: Slow did not close within 0.05 s, so its last metrics may be missing there",
        "warning: Broken could not be closed: OSError: no route to host",
    ]
    assert signal.getsignal(signal.SIGALRM) is handler
