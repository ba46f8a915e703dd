"""Send metrics to trackers, in addition to metrics.jsonl. Nothing is sent unless `track` is set.

The trackers read their usual environment variables. A resumed run continues its run in each tracker: `Tracker.run` is
what identifies it, and the manifest of the run stores it.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from preftune.errors import ConfigError
from preftune.train.metric_names import renamed

CLOSE_S = 30.0  # most seconds to wait until a tracker has sent its last metrics


@dataclass(frozen=True, slots=True)
class Tracked:
    """What a tracker is told about a run.

    folder   the run folder, whose name is the name of the run unless an environment variable sets it
    config   the resolved config
    start    the step after which metrics are logged: 0, or the step of the checkpoint that the run resumes from
    earlier  by tracker, what identifies the run of an earlier part of this run; empty for a new run
    """

    folder: Path
    config: Mapping[str, Any]
    start: int = 0
    earlier: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


class Tracker(Protocol):
    """A tracker with an open run. `run` identifies the run, so that it can be continued."""

    run: dict[str, str]

    def log(self, step: int, metrics: dict[str, float]) -> None: ...

    def close(self) -> None: ...


def require_packages(names: list[str]) -> None:
    """Raise ConfigError for a tracker whose package is not installed."""
    for name in names:
        try:
            version(name)
        except PackageNotFoundError:
            raise ConfigError(
                f"{name} is not installed", where="track", fix=f"pip install 'preftune[{name}]'"
            ) from None


def open_trackers(names: Sequence[str], tracked: Tracked) -> dict[str, Tracker]:
    """Return the trackers by name, each with the run that it continues, or with a new one."""
    makers: dict[str, Callable[[Tracked], Tracker]] = {
        "tensorboard": TensorBoard,
        "wandb": Wandb,
        "trackio": Trackio,
        "mlflow": Mlflow,
    }
    return {name: makers[name](tracked) for name in names}


def log_metrics(
    trackers: dict[str, Tracker],
    aliases: Sequence[str],
    split: str,
    step: int,
    metrics: Mapping[str, float],
    say: Callable[[str], None],
) -> None:
    """Log metrics as split/name, and under the names that the programs in `aliases` give them.

    A tracker that fails is reported, closed and removed from `trackers`: metrics.jsonl has its metrics, too.
    """
    own = {f"{split}/{name}": value for name, value in metrics.items()}
    for name, tracker in list(trackers.items()):
        try:
            tracker.log(step, renamed(aliases, name, split, step, metrics) | own)
        except Exception as error:  # of the library, or of its server
            say(f"warning: {name} failed, and the run continues without it: {type(error).__name__}: {error}")
            close_trackers({name: trackers.pop(name)}, say)


def close_trackers(trackers: Mapping[str, Tracker], say: Callable[[str], None]) -> None:
    """Close the trackers. One that fails, or that is not closed after CLOSE_S seconds, is reported."""
    for name, tracker in trackers.items():
        try:
            with _time_limit(CLOSE_S):
                tracker.close()
        except TimeoutError:
            say(f"warning: {name} did not close within {CLOSE_S:g} s, so its last metrics may be missing there")
        except Exception as error:
            say(f"warning: {name} could not be closed: {type(error).__name__}: {error}")


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after `seconds`. No limit on Windows and outside of the main thread."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(*_: object) -> None:
        raise TimeoutError

    handler = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


class TensorBoard:
    """TensorBoard: writes event files to `tensorboard/` in the run folder, or to TENSORBOARD_LOGGING_DIR.

    The event file of a resumed run tells TensorBoard to hide what earlier files have after the checkpoint.
    """

    def __init__(self, tracked: Tracked) -> None:
        from torch.utils.tensorboard import SummaryWriter

        directory = os.environ.get("TENSORBOARD_LOGGING_DIR")
        folder = Path(directory) / tracked.folder.name if directory else tracked.folder / "tensorboard"
        self.run = {"folder": str(folder)}
        earlier = tracked.earlier.get("tensorboard")
        resumed = earlier is not None and earlier.get("folder") == str(folder)
        self._writer: Any = SummaryWriter(str(folder), purge_step=tracked.start + 1 if resumed else None)
        if not resumed:
            self._writer.add_text("config", f"```\n{dict(tracked.config)}\n```")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Weights & Biases. With WANDB_MODE=offline, all files stay in the run folder, or in WANDB_DIR.

    WANDB_PROJECT, WANDB_NAME, WANDB_RUN_ID and WANDB_RESUME have precedence; the package reads all other variables.
    """

    def __init__(self, tracked: Tracked) -> None:
        import wandb

        project = os.environ.get("WANDB_PROJECT") or "preftune"
        entity = os.environ.get("WANDB_ENTITY", "")
        earlier = tracked.earlier.get("wandb", {})
        same = earlier.get("project") == project and earlier.get("entity", "") == entity
        self._run = wandb.init(
            project=project,
            name=os.environ.get("WANDB_NAME") or tracked.folder.name,
            dir=os.environ.get("WANDB_DIR") or str(tracked.folder),
            config=dict(tracked.config),
            id=os.environ.get("WANDB_RUN_ID") or (earlier.get("id") if same else None),
            resume=os.environ.get("WANDB_RESUME") or "allow",
        )
        self.run = {"id": str(self._run.id), "project": project, "entity": entity}
        self._first = int(getattr(self._run, "step", 0) or 0)  # W&B drops steps below the last one that it has

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if step >= self._first:
            self._run.log(metrics, step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """Trackio, which stores metrics locally and needs no account. TRACKIO_PROJECT sets the project.

    Trackio finds a run by its name. A run with a name that the project has already gets a number after its name.
    """

    def __init__(self, tracked: Tracked) -> None:
        import trackio

        self._trackio = trackio
        project = os.environ.get("TRACKIO_PROJECT") or "preftune"
        earlier = tracked.earlier.get("trackio", {})
        resumed = earlier.get("project") == project
        name = earlier["name"] if resumed else self._free_name(project, tracked.folder.name)
        run = trackio.init(
            project=project, name=name, config=dict(tracked.config), resume="allow" if resumed else "never"
        )
        self.run = {"project": project, "name": name}
        self._first = int(getattr(run, "_next_step", 0) or 0) if resumed else 0

    def _free_name(self, project: str, name: str) -> str:
        """Return a name that no run of the project has: trackio would merge two runs with the same name."""
        try:
            taken = {run.name for run in self._trackio.Api().runs(project)}
        except Exception:  # the project does not exist yet
            return name
        numbers = (name if number == 1 else f"{name}-{number}" for number in range(1, len(taken) + 2))
        return next(free for free in numbers if free not in taken)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if step >= self._first - 1:  # the last step may have no evaluation yet
            self._trackio.log(metrics, step=step)

    def close(self) -> None:
        self._trackio.finish()


class Mlflow:
    """MLflow at MLFLOW_TRACKING_URI, or its local default. Metrics that it already has are not logged twice.

    MLFLOW_EXPERIMENT_NAME or MLFLOW_EXPERIMENT_ID set the experiment, MLFLOW_RUN_ID the run (not for a resumed run,
    which continues its own), and MLFLOW_TAGS (a JSON object) its tags.
    """

    PARAMS = 100  # most parameters that MLflow accepts in one request

    def __init__(self, tracked: Tracked) -> None:
        import mlflow

        self._mlflow: Any = mlflow
        uri = str(mlflow.get_tracking_uri())
        earlier = tracked.earlier.get("mlflow", {})
        run_id = earlier.get("run_id") if earlier.get("uri") == uri and self._has(earlier["run_id"]) else None
        if run_id is None and not os.environ.get("MLFLOW_EXPERIMENT_ID"):
            mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or "preftune")
        elsewhere = os.environ.get("MLFLOW_RUN_ID")
        run = mlflow.start_run(run_id=run_id) if run_id else mlflow.start_run(run_name=tracked.folder.name)
        self.run = {"run_id": str(run.info.run_id), "uri": uri}
        self._last: dict[str, int] | None = {} if run_id else None
        if run_id or elsewhere:
            return
        mlflow.log_dict(dict(tracked.config), "config.json")
        tags = os.environ.get("MLFLOW_TAGS")
        if tags:
            mlflow.set_tags(json.loads(tags))
        items = list(flat(tracked.config).items())
        for first in range(0, len(items), self.PARAMS):
            mlflow.log_params(dict(items[first : first + self.PARAMS]))

    def _has(self, run_id: str) -> bool:
        try:
            return bool(self._mlflow.get_run(run_id).info.lifecycle_stage == "active")
        except self._mlflow.exceptions.MlflowException:  # another store, or a run that was deleted
            return False

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._mlflow.log_metrics({n: v for n, v in metrics.items() if step > self._last_step(n)}, step=step)

    def _last_step(self, name: str) -> int:
        """Return the last step that an earlier part of the run has logged; -1 without one."""
        if self._last is None:
            return -1
        if name not in self._last:
            history = self._mlflow.MlflowClient().get_metric_history(self.run["run_id"], name)
            self._last[name] = max((metric.step for metric in history), default=-1)
        return self._last[name]

    def close(self) -> None:
        self._mlflow.end_run()


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as {section.key: value}."""
    result: dict[str, Any] = {}
    for key, value in config.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return result
