"""The run folder: config.yaml, manifest.json, metrics.jsonl, checkpoints/ and final/. Create, resume and write it."""

from __future__ import annotations

import math
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel

from preftune import stop
from preftune.data.stream import Stream
from preftune.errors import Stopped, StorageError, writing
from preftune.files import write_text
from preftune.locks import Lock, lock_folder
from preftune.ranks import group
from preftune.ranks.shard import any_sharded
from preftune.train import checkpoint, manifest
from preftune.train.best import (
    Best,
    Evaluations,
    best_evaluation,
    end_message,
    evaluations_of,
    facts_of,
    folder_of,
    keep_only,
    state_of,
    value_of,
)
from preftune.train.checkpoint import name_of
from preftune.train.display import Display
from preftune.train.finished import set_damaged_aside
from preftune.train.full_disk import patiently
from preftune.train.in_flight import in_background, sizes_of
from preftune.train.loop import stopped
from preftune.train.machine import machine
from preftune.train.metrics import Tally
from preftune.train.metrics_file import MetricsFile
from preftune.train.optim import Weights
from preftune.train.run_folder import check, extends, finished, require_start
from preftune.train.same_run import extension_of, planned_steps
from preftune.train.saving import Saving
from preftune.train.track import Tracked, Tracker, log_metrics, open_trackers

READ = "resume_from start tokens loop_state evaluation_due stream_state evaluations extended earlier_ends"


@dataclass
class Run:
    """An open run folder. It implements `Log`, which the training loop reports to.

    resume_from, start, tokens   the checkpoint to resume from, if any, its step, and its size of micro-batches
    tally, loop_state            from the checkpoint: metrics that were not logged, and PPO's KL coefficient
    evaluation_due               the checkpoint was saved before the evaluation of its step
    stream, stream_state         the data that are read while training, and its state in the checkpoint to resume from
    evaluations                  step and value of the metric of `best`, for each evaluation so far
    extended                     the run was finished, and the config now asks for more steps
    earlier_ends                 the ends of the run before it was extended, from the manifest
    """

    folder: Path
    identity: dict[str, Any]
    display: Display
    lock: Lock | None = None
    trackers: dict[str, Tracker] = field(default_factory=dict)
    resume_from: Path | None = None
    start: int = 0
    tokens: int | None = None
    weights: Weights | None = None
    optimizer: torch.optim.Optimizer | None = None
    tally: Tally = field(default_factory=Tally)
    loop_state: dict[str, float] = field(default_factory=dict)
    evaluation_due: bool = False
    stream: Stream | None = None
    stream_state: dict[str, Any] | None = None
    evaluations: Evaluations = ()
    extended: bool = False
    earlier_ends: Sequence[Mapping[str, Any]] = ()
    saving: Saving = field(default_factory=lambda: Saving(None, 0, 0))
    _writing: checkpoint.Writing | None = None
    _reached: tuple[int, Tally, int, bool, Evaluations] | None = None
    _has_best_weights: bool = False

    def __post_init__(self) -> None:
        self.metrics = MetricsFile(self.folder, self.display.say)

    finished, extends = staticmethod(finished), staticmethod(extends)
    check, require_start = staticmethod(check), staticmethod(require_start)

    @staticmethod
    def manifest(folder: Path) -> dict[str, Any]:
        """Return the manifest of the run in `folder`; empty if there is no run. Raises RunError if it is damaged."""
        return manifest.read(folder)

    @staticmethod
    def open(
        folder: Path,
        identity: dict[str, Any],
        display: Display,
        schema: type[BaseModel] | None = None,
        *,
        extendable: bool = False,
    ) -> Run:
        """Create and lock the run folder, or open it to resume from its newest checkpoint.

        Raises the errors of `check`.
        """
        run = Run(folder, identity, display)
        group.from_first(lambda: run._open(schema, extendable))
        group.share(run, READ.split())  # without the metrics that were not logged
        return run

    def _open(self, schema: type[BaseModel] | None, extendable: bool) -> None:
        """Check, lock and write the run folder, and read its newest checkpoint."""
        Run.check(self.folder, self.identity, schema, extendable=extendable)
        self.lock = lock_folder(self.folder)
        try:
            manifest.repair(self.folder, self.display.say)
            self._begin(extendable and Run.extends(self.folder, self.identity))
        except BaseException:
            self.lock.release()
            raise

    def _begin(self, extended: bool) -> None:
        """Read the newest checkpoint, and write manifest and config."""
        folder, facts = self.folder, Run.manifest(self.folder)
        self.extended = extended
        checkpoint.recover(folder / "checkpoints")
        self.resume_from, state, damaged = checkpoint.newest(folder / "checkpoints", facts)
        for description in damaged:
            self.display.say(f"skipped damaged checkpoint {description}")
        with writing(folder):
            if Run.finished(folder):
                set_damaged_aside(folder, self.display.say)
            if extended:
                facts = {**extension_of(facts), "identity": self.identity}
                manifest.write(folder, facts)
            self.earlier_ends = facts.get("extended") or ()
            # write the manifest first: without it, the folder is not recognised as a run
            started = facts.get("started") or time.strftime("%Y-%m-%dT%H:%M:%S%z")
            self.note(run=facts.get("run") or secrets.token_hex(8), started=started, **machine())
            config = yaml.safe_dump(self.identity["config"], sort_keys=False, allow_unicode=True)
            write_text(folder / "config.yaml", [config])
            surplus = [] if damaged else checkpoint.surplus(folder / "checkpoints")
            for partial in [*folder.glob("*.part-*"), *folder.glob("checkpoints/*.part-*"), *surplus]:
                shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)
        if self.resume_from:
            self.start, self.tally, self.tokens = int(state["step"]), Tally.of(state["tally"]), int(state["tokens"])
            self.loop_state = dict(state["facts"])
            self.evaluation_due = not state.get("evaluated", True)
            self.stream_state = state.get("stream")
        self.metrics.rewind(state.get("metrics"), self.start, self.evaluation_due)
        if self.best_config and self.start:
            self.evaluations = evaluations_of(state, self.best_config, self.metric_lines)
            if self.best and self.best_config["final"] == "best":
                checkpoint.require_intact(folder_of(folder / "checkpoints", self.best.step))

    def close(self) -> None:
        """Unlock the run folder, which no thread writes to any more. Of several ranks, one may have failed alone."""
        if group.world() == 1:
            self.settle()
        if self.lock:
            self.lock.release()

    def note(self, **facts: Any) -> None:
        """Add entries to manifest.json, on rank 0. Raises StorageError."""
        if not group.first():
            return
        manifest.write(self.folder, {**Run.manifest(self.folder), "identity": self.identity, **facts})

    def fact(self, name: str) -> Any:
        """Return an entry of manifest.json, or None."""
        return Run.manifest(self.folder).get(name)

    def open_trackers(self) -> None:
        """Open the trackers of the config. They continue their runs if this run is resumed."""
        config, earlier = self.identity["config"], self.fact("trackers") or {}
        names = config["track"] if group.first() else []
        self.trackers = open_trackers(names, Tracked(self.folder, config, self.start, earlier))
        if self.trackers:
            self.note(trackers=earlier | {name: tracker.run for name, tracker in self.trackers.items()})

    @contextmanager
    def optional(self, what: str) -> Iterator[None]:
        """Report a StorageError inside this context, and continue: training does not depend on `what`."""
        try:
            yield
        except StorageError as error:
            self.display.say(f"{what}: {error}\n  the run continues without it")

    def attach(self, weights: Weights, optimizer: torch.optim.Optimizer, steps: int, moments: int = 8) -> None:
        """Set the weights and optimizer that checkpoints contain, and restore them if the run is resumed.

        `steps` is the number of steps that the config asks for, and `moments` the bytes of optimizer state per weight.
        """
        self.weights, self.optimizer = weights, optimizer
        if self.resume_from:
            checkpoint.restore(self.resume_from, weights, optimizer)
        sizes = sizes_of(weights.masters, 4 + moments)
        self.saving = Saving(self.identity["config"]["train"]["save_every"], *sizes)
        if self.fact("planned") != steps:
            self.note(planned=steps)

    def planned(self, step: int, total: int) -> int:
        """Return the number of steps of the schedule that the learning rate of `step` follows: `total`, or for the
        steps of a run before it was extended, the number that was planned then."""
        return planned_steps(self.earlier_ends, step, total)

    def log_train(self, step: int, metrics: dict[str, float]) -> None:
        self._write_line(step, "train", metrics)

    def log_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Write the metrics of an evaluation. With the section `best`, save the weights of the best one."""
        config = self.best_config
        if config:
            value = group.from_first(lambda: value_of(metrics, config, required=True))
            self.evaluations = (*(e for e in self.evaluations if e[0] != step), (step, value))
        if metrics:
            self._write_line(step, "eval", metrics)
        if config and self.best and self.best.step == step and not self._save_best(step, self.best.value):
            self.evaluations = (*self.evaluations[:-1], (step, math.nan))  # it cannot be the result

    @property
    def best_config(self) -> dict[str, Any] | None:
        """The section `best` of the config."""
        section: dict[str, Any] | None = self.identity["config"].get("best")
        return section

    @property
    def best(self) -> Best | None:
        """The best evaluation so far; None without the section `best`."""
        return best_evaluation(self.evaluations, self.best_config) if self.best_config else None

    @property
    def last_step(self) -> int:
        """The last completed step."""
        return self._reached[0] if self._reached else self.start

    @property
    def stops_early(self) -> bool:
        """Whether as many evaluations as `best.patience` have passed since the best one."""
        best, patience = self.best, (self.best_config or {}).get("patience")
        return bool(best and patience and best.since >= patience)

    def _save_best(self, step: int, value: float) -> bool:
        """Save the weights of the best evaluation, and return whether the disk took them. Those that were best at a
        checkpoint are kept."""
        assert self.weights is not None
        checkpoints = self.folder / "checkpoints"
        state = {"step": step, "metric": value, "run": self.fact("run"), "identity": self.identity}
        path, weights = folder_of(checkpoints, step), self.weights
        with self.optional("the weights of the best evaluation were not saved"):
            group.on_first(lambda: checkpoint.save_weights(path, weights, state), any_sharded(weights.masters))
            keep_only(checkpoints, [step])
            return True
        return False

    def _write_line(self, step: int, split: str, metrics: dict[str, float]) -> None:
        if group.first():
            self.metrics.add({"step": step, "split": split, **metrics})
        self.display.line(step, split, metrics)
        aliases = self.identity["config"].get("track_names", ())
        log_metrics(self.trackers, aliases, split, step, metrics, self.display.say)

    def metric_lines(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl."""
        return self.metrics.lines()

    def log_halved(self, step: int, tokens: int) -> None:
        """Print the new size of micro-batches after memory ran out."""
        self.display.say(f"step {step}: out of memory; repeating it with micro-batches of up to {tokens} token slots")

    def save(
        self,
        step: int,
        tally: Tally,
        tokens: int,
        *,
        evaluated: bool = True,
        evaluations: Evaluations | None = None,
        may_continue: bool = False,
    ) -> None:
        """Save a checkpoint of `step`. `evaluated`: no evaluation is due after this step. Raises StorageError.

        `may_continue`: if it is large, only copy the state to memory. A thread then writes it; see `settle`.
        """
        assert self.weights
        assert self.optimizer
        self.settle()
        began, folder = time.monotonic(), self.folder / "checkpoints"
        weights, optimizer, sums = self.weights, self.optimizer, tally.over_ranks()
        is_split = any_sharded(weights.masters)
        try:
            state = group.from_first(lambda: self._state(step, sums, tokens, evaluated, evaluations))
            if may_continue and in_background(self.saving.size, self.saving.copied):
                self._writing = checkpoint.begin(folder, step, weights, optimizer, state)
                return
            path = group.on_first(lambda: checkpoint.save(folder, step, weights, optimizer, state), is_split)
        finally:
            self.saving.saved(time.monotonic() - began)
        self._saved(path)

    def settle(self) -> None:
        """Complete the checkpoint that a thread writes, if any, or report that it failed. All ranks must call it."""
        writing, self._writing = self._writing, None
        if writing is None or self.weights is None:
            return
        try:
            self._saved(group.on_first(lambda: checkpoint.complete(writing), any_sharded(self.weights.masters)))
        except StorageError as error:
            self._report_unsaved(writing.step, error)

    def _saved(self, path: Path) -> None:
        """Note that a checkpoint is complete."""
        self.display.say(f"saved checkpoint {path}")
        with self.optional("manifest.json"):
            self.note(checkpoints=checkpoint.seals(self.folder / "checkpoints"))
        if self.best_config:
            keep_only(self.folder / "checkpoints", [self.best.step] if self.best else [])

    def _state(
        self, step: int, tally: Tally, tokens: int, evaluated: bool, evaluations: Evaluations | None
    ) -> dict[str, Any]:
        """Return the content of state.json, and write the metrics to disk."""
        if self.lock:
            self.lock.require()
        with self.optional("metrics"):
            self.metrics.flush()
        state: dict[str, Any] = {"run": self.fact("run"), "identity": self.identity, "tally": tally.state()}
        state |= {"tokens": tokens, "facts": self.loop_state, "evaluated": evaluated}
        state["metrics"] = self.metrics.position()
        if self.stream:
            state["stream"] = self.stream.state_after(step)
        return state | state_of(self.evaluations if evaluations is None else evaluations, self.best_config)

    def save_if_due(self, step: int, tally: Tally, tokens: int) -> None:
        """Save a checkpoint if one is due. If the disk does not take it, report this and continue."""
        is_busy = self._writing is not None and group.any_rank(self._writing.running())
        if not is_busy:
            self.settle()
        if group.from_first(lambda: self.saving.due(step, is_busy)):
            self._try_to_save(step, tally, tokens, may_continue=True)

    def _try_to_save(self, step: int, tally: Tally, tokens: int, *, may_continue: bool = False) -> bool:
        try:
            self.save(step, tally, tokens, may_continue=may_continue)
        except StorageError as error:
            self._report_unsaved(step, error)
            return False
        return True

    def _report_unsaved(self, step: int, error: StorageError) -> None:
        saved = checkpoint.saved(self.folder / "checkpoints")
        newest = f"the newest checkpoint is {saved[-1].name}" if saved else "there is no checkpoint yet"
        self.display.say(f"step {step}: no checkpoint was saved. {error}\n  the run continues; {newest}")

    def stop_requested(self) -> bool:
        return group.any_rank(stop.requested())

    def reached(self, step: int, tally: Tally, tokens: int, *, evaluated: bool) -> None:
        self._reached = step, tally, tokens, evaluated, self.evaluations

    def end(self) -> None:
        """Save the checkpoint of the end, and load the weights of the best evaluation if the config asks for them."""
        assert self.weights is not None
        self.settle()
        step, tally, tokens, *_ = self._reached or (self.start, self.tally, self.tokens or 0)
        checkpoints = self.folder / "checkpoints"
        is_saved = group.from_first(lambda: checkpoint.saved(checkpoints)[-1:] == [checkpoints / name_of(step)])
        keeps_end = self.identity["config"]["train"].get("save_end", True) and not is_saved
        if keeps_end and not self._try_to_save(step, tally, tokens):
            self.display.say("  the run cannot be extended later, because its end was not saved")
        best, config = self.best, self.best_config
        facts = {"steps": step, **facts_of(best, config, self.stops_early)}
        if group.first():
            patiently(self.metrics.flush, self.display.say)
            facts["metrics"] = patiently(self.metrics.position, self.display.say)
            patiently(lambda: self.note(**facts), self.display.say)
        self._reached = step, tally, tokens, True, self.evaluations
        if not best or not config:
            return
        self.display.say(end_message(best, config, step, self.stops_early))
        if config["final"] == "best" and best.step != step:
            checkpoint.restore_weights(checkpoint.require_intact(folder_of(checkpoints, best.step)), self.weights)
            self._has_best_weights = True

    def save_reached(self, total: int) -> Stopped:
        """Save a checkpoint of the last completed step, unless there is one. Return the exception for a stopped run."""
        return stopped(self._save_reached(), total)

    def _save_reached(self) -> int:
        self.settle()
        if self._has_best_weights:  # a checkpoint of the last step must not contain them
            saved = checkpoint.saved(self.folder / "checkpoints")
            return checkpoint.step_of(saved[-1]) if saved else 0
        default = (self.start, self.tally, self.tokens or 0, True, self.evaluations)
        step, tally, tokens, evaluated, evaluations = self._reached or default
        if step > self.start:
            self.save(step, tally, tokens, evaluated=evaluated, evaluations=evaluations)
        return step

    def keep_last_state(self) -> None:
        """Save a checkpoint of the last completed step, because the next one failed before it changed the weights."""
        assert self.weights is not None
        self.settle()
        self.weights.clear_gradients()
        last = self.folder / "checkpoints" / name_of(self.last_step)
        if group.from_first(lambda: checkpoint.saved(last.parent)[-1:] == [last]):
            return
        with self.optional("the last state was not saved"):
            self._save_reached()
