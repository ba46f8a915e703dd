"""Send metrics to trackers, in addition to metrics.jsonl. Nothing is sent unless `track` is set."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from preftune.errors import ConfigError

CLOSE_S = 30.0  # most seconds to wait until a tracker has sent its last metrics


class Tracker(Protocol):
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


def open_trackers(names: list[str], folder: Path, config: dict[str, Any]) -> list[Tracker]:
    """Return one tracker per name, each initialised with the name of the run and its resolved config."""
    makers: dict[str, Callable[[Path, dict[str, Any]], Tracker]] = {
        "tensorboard": TensorBoard,
        "wandb": Wandb,
        "trackio": Trackio,
        "mlflow": Mlflow,
    }
    return [makers[name](folder, config) for name in names]


def close_trackers(trackers: Sequence[Tracker], say: Callable[[str], None]) -> None:
    """Close the trackers. One that fails, or that is not closed after CLOSE_S seconds, is reported."""
    for tracker in trackers:
        name = type(tracker).__name__
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
    """TensorBoard: writes event files to `tensorboard/` in the run folder."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))
        self._writer.add_text("config", f"```\n{config}\n```")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Weights & Biases. With WANDB_MODE=offline, all files stay in the run folder."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        import wandb

        self._run = wandb.init(project="preftune", name=folder.name, dir=str(folder), config=config, resume="allow")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log(metrics, step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """Trackio, which stores metrics locally and needs no account."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        import trackio

        self._trackio = trackio
        trackio.init(project="preftune", name=folder.name, config=config, resume="allow")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._trackio.log(metrics, step=step)

    def close(self) -> None:
        self._trackio.finish()


class Mlflow:
    """MLflow at MLFLOW_TRACKING_URI, or its local default."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        import mlflow

        self._mlflow = mlflow
        mlflow.set_experiment("preftune")
        mlflow.start_run(run_name=folder.name)
        mlflow.log_dict(config, "config.json")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._mlflow.log_metrics(metrics, step=step)

    def close(self) -> None:
        self._mlflow.end_run()
