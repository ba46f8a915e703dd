"""Progress of a run: a live progress bar on a terminal, plain lines in a file or pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from preftune.errors import printable
from preftune.train.metric_names import by_source

PLAIN_SECONDS = 5.0  # between two plain lines
SHOWN = (  # metric, label, format
    ("loss", "loss", "{:.4f}"),
    ("rewards/margins", "margin", "{:.3f}"),
    ("rewards/accuracies", "accuracy", "{:.2f}"),
    ("objective/score", "score", "{:.3f}"),
    ("objective/kl", "KL", "{:.3f}"),
    ("drift/gap", "gap", "{:.1f}"),
    ("drift/kl", "KL", "{:.3f}"),
    ("pairs_per_s", "pairs/s", "{:.1f}"),
)
WITH_ERROR = ("drift/kl",)  # shown with its standard error: an estimate from few samples may be below 0


class Display:
    """Show messages and the progress of one stage at a time. `quiet` shows nothing."""

    def __init__(self, quiet: bool = False, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stderr, highlight=False, emoji=False, force_jupyter=False)
        self.quiet = quiet
        self._live = self.console.is_terminal and not quiet
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._total, self._name, self._began, self._last = 0, "", 0.0, 0.0

    def say(self, text: str) -> None:
        """Print a line."""
        if not self.quiet:
            self.console.print(printable(text), markup=False, soft_wrap=True)

    def stage(self, name: str, total: int, done: int = 0) -> Display:
        """Begin a stage of `total` steps, `done` of them completed. Use it as a context manager."""
        self._name, self._total, self._began, self._last = name, total, time.monotonic(), time.monotonic()
        if self._live:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[figures]}"),
                TimeRemainingColumn(compact=True),
                console=self.console,
                transient=True,
            )
            self._task = self._progress.add_task(name, total=total, completed=done, figures="")
        return self

    def __enter__(self) -> Display:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress:
            self._progress.stop()
        self._progress = self._task = None

    def advance(self, done: int, figures: str = "") -> None:
        """Show that `done` steps of the stage are completed, with `figures` as text."""
        if self._progress and self._task is not None:
            self._progress.update(self._task, completed=done, figures=figures)
        elif time.monotonic() - self._last >= PLAIN_SECONDS or done >= self._total or not self._last:
            self._last = time.monotonic()
            self.say(f"{self._name} {done}/{self._total} {figures}".rstrip())

    def line(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Show the metrics of a step; `split` is train or eval."""
        figures = _figures(metrics)
        if split == "eval":
            only_monitor = all(name.startswith("drift/") for name in metrics)  # without held-out data
            self.say(f"step {step} {'monitor' if only_monitor else 'held out'}: {figures}")
            for source, own in by_source(metrics).items():
                self.say(f"  {source}: {_figures(own)}")
        else:
            self.advance(step, figures)


def _figures(metrics: Mapping[str, float]) -> str:
    parts = []
    for name, short, form in SHOWN:
        if name in metrics:
            error = metrics.get(f"{name}_se") if name in WITH_ERROR else None
            parts.append(f"{short} {form.format(metrics[name])}" + (f" +- {error:.2g}" if error is not None else ""))
    return " ".join(parts)
