"""Metrics to the trackers that people use, besides metrics.jsonl. Nothing is sent unless `track` names one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    def log(self, step: int, metrics: dict[str, float]) -> None: ...

    def close(self) -> None: ...


def open_trackers(names: list[str], folder: Path, config: dict[str, Any]) -> list[Tracker]:
    """One tracker for each name; each is told the run's name and its resolved config."""
    makers: dict[str, Callable[[Path, dict[str, Any]], Tracker]] = {
        "tensorboard": TensorBoard,
        "wandb": Wandb,
        "trackio": Trackio,
        "mlflow": Mlflow,
    }
    return [makers[name](folder, config) for name in names]


class TensorBoard:
    """Event files in `tensorboard/` of the run folder."""

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
    """Weights & Biases; WANDB_MODE=offline keeps everything in the run folder."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        import wandb

        self._run = wandb.init(project="preftune", name=folder.name, dir=str(folder), config=config, resume="allow")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log(metrics, step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """Trackio: local first, no account."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        import trackio

        self._trackio = trackio
        trackio.init(project="preftune", name=folder.name, config=config, resume="allow")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._trackio.log(metrics, step=step)

    def close(self) -> None:
        self._trackio.finish()


class Mlflow:
    """MLflow; MLFLOW_TRACKING_URI says where, else its local default."""

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
