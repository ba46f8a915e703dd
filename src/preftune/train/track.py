"""Send metrics to trackers, in addition to metrics.jsonl. Nothing is sent unless `track` is set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    def log(self, step: int, metrics: dict[str, float]) -> None: ...

    def close(self) -> None: ...


def open_trackers(names: list[str], folder: Path, config: dict[str, Any]) -> list[Tracker]:
    """Return one tracker per name, each initialised with the name of the run and its resolved config."""
    makers: dict[str, Callable[[Path, dict[str, Any]], Tracker]] = {
        "tensorboard": TensorBoard,
        "wandb": Wandb,
        "trackio": Trackio,
        "mlflow": Mlflow,
    }
    return [makers[name](folder, config) for name in names]


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
