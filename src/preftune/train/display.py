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
KL = ("drift/kl", "objective/kl")
WITH_ERROR = ("drift/kl",)  # shown with its standard error: an estimate from few samples may be below 0


class Display:
    """Show messages and the progress of one stage at a time. `quiet` shows nothing."""

    def __init__(self, quiet: bool = False, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stderr, highlight=False, emoji=False, force_jupyter=False)
        self.quiet = quiet
        self._live = self.console.is_terminal and not quiet
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._total, self._name, self._began, self._last, self._done = 0, "", 0.0, 0.0, 0
        self._kl = ""  # of the last evaluation, which training lines repeat

    def say(self, text: str) -> None:
        """Print a line."""
        if not self.quiet:
            self.console.print(printable(text), markup=False, soft_wrap=True)

    def stage(self, name: str, total: int, done: int = 0) -> Display:
        """Begin a stage of `total` steps, `done` of them completed. Use it as a context manager."""
        self._name, self._total, self._began, self._last = name, total, time.monotonic(), time.monotonic()
        self._done = done
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
            self.say(f"{self._name} {done}/{self._total} {figures}{self._remaining(done)}".rstrip())

    def _remaining(self, done: int) -> str:
        """Return how long the stage will take at its mean speed so far; "" at its ends."""
        if not self._done < done < self._total:
            return ""
        seconds = (time.monotonic() - self._began) / (done - self._done) * (self._total - done)
        return f" {duration(seconds)} left"

    def line(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Show the metrics of a step; `split` is train or eval."""
        figures = _figures(metrics)
        if split == "eval":
            only_monitor = all(name.startswith("drift/") for name in metrics)  # without held-out data
            self.say(f"step {step} {'monitor' if only_monitor else 'held out'}: {figures}")
            for source, own in by_source(metrics).items():
                self.say(f"  {source}: {_figures(own)}")
            self._kl = next((f" KL {metrics[name]:.2f}" for name in KL if name in metrics), self._kl)
        else:
            self.advance(step, f"{figures}{'' if ' KL ' in figures else self._kl} {used_memory()}".rstrip())


def duration(seconds: float) -> str:
    """Return a duration as text: 40 s, 12 min, 3 h 5 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def used_memory() -> str:
    """Return the peak memory so far, of the GPU if there is one; "" where the system does not tell."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB on the GPU"
    peak = peak_bytes()
    return f"{peak / 1e9:.1f} GB" if peak else ""


def peak_bytes() -> int:
    """Return the peak memory of this process; 0 on Windows, where Python has no `resource` module."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _figures(metrics: Mapping[str, float]) -> str:
    parts = []
    for name, short, form in SHOWN:
        if name in metrics:
            error = metrics.get(f"{name}_se") if name in WITH_ERROR else None
            parts.append(f"{short} {form.format(metrics[name])}" + (f" +- {error:.2g}" if error is not None else ""))
    return " ".join(parts)
