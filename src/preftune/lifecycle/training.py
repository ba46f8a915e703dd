"""One run from config to final model: refuse early, prepare, loop, export."""

from __future__ import annotations

import copy
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from preftune.chat.open import load_renderer
from preftune.config.load import dump
from preftune.config.schema import RunConfig, TunedConfig
from preftune.data.order import Step, size_of, training_steps
from preftune.errors import ConfigError, DataError, PreftuneError, Stopped
from preftune.lifecycle import estimate, prepare
from preftune.lifecycle.monitor import Watched, advise_at_the_end
from preftune.lifecycle.task import ResponseTask
from preftune.model import load
from preftune.model.attention import restore_attention
from preftune.model.logprobs import model_size
from preftune.model.memory import out_of_memory
from preftune.report.run import write_run_page
from preftune.train.display import Display
from preftune.train.loop import fit
from preftune.train.optim import Weights, build_optimizer, warmup_steps
from preftune.train.run import Run, require_packages, run_identity
from preftune.train.track import open_trackers
from preftune.types import TokenGroup

AGAIN_S = 4.0  # long enough to write what has been scored


@dataclass(frozen=True, slots=True)
class Method:
    """What differs between the methods that share this run.

    task        the task, cheaply made from policy and data
    complete    what takes time, once it is clear that the run can start: (task, policy, plans, run)
    reference   its kind
    opening     the kind of model
    finish      called with task and policy after the last step
    merged      whether an adapter is merged into the final model
    watched     what a monitor looks at in every evaluation, None without one: (task, policy)
    """

    task: Callable[[prepare.Policy, prepare.TokenData], ResponseTask]
    complete: Callable[[ResponseTask, prepare.Policy, Sequence[Step], Run], ResponseTask] = lambda task, *_: task
    reference: str = "none"
    opening: prepare.ModelKind = prepare.LANGUAGE_MODEL
    finish: Callable[[ResponseTask, prepare.Policy], None] = lambda *_: None
    merged: bool = False
    watched: Callable[[ResponseTask, prepare.Policy], Watched | None] = lambda *_: None


def train(
    config: RunConfig,
    method: Method,
    *,
    model: Any,
    tokenizer: Any,
    display: Display | None,
    dry_run: bool,
    moment: str | None = None,
) -> Path:
    """Everything that can be refused is refused before the first step, the cheapest checks first.

    `moment` is what a chat template writes as the date. None: when this run began.
    """
    display, began = display or Display(), time.perf_counter()
    folder = Path(config.out)
    if dry_run and model is not None:
        model = copy.deepcopy(model)  # adapters, compiled blocks, frozen weights: nothing of it comes to the caller
    with enough_memory(), stoppable(), attention_returned(model):
        require_packages(list(config.track))
        source = load.locate(config.model.path) if model is None else load.Source(config.model.path)
        text = prepare.read_data(config.data)
        Run.check(folder, run_identity(config.model_dump(mode="json"), text.fingerprint), type(config))
        if finished(config, source, model, tokenizer, method.opening):
            display.say(f"{folder} is finished; its model is {folder / 'final'}")
            return folder / "final"
        moment = (Run.manifest(folder).get("chat") or {}).get("moment") or moment
        renderer = load_renderer(config.data, source, tokenizer, model, moment)
        data = prepare.tokenize_data(text, renderer, config.data)
        for account in text.accounts:
            for line in account.lines():
                display.say(line)
        policy = prepare.load_policy(config, source, renderer, model, method.opening)
        prepare.check_policy(policy, data, source)
        task = method.task(policy, data)
        steps = schedule(config, task)
        found = estimate.footprint(
            policy.scorer, config, method.reference == "frozen", task.groups, policy.budget.layout
        )
        task = sized(config, policy, task, found)
        describe(config, policy, task, steps, display)
        if dry_run:
            watched = method.watched(task, policy)
            time_lines = partial(estimate.time_lines, task, steps, config, method.reference, watched, began)
            say_plan(config, estimate.in_words(found, task, steps, time_lines), display)
            return folder
        run = prepare.open_run(config, text, data, display, policy)
        run.note(model_files=load.file_stamps(source) if model is None else None)
        task = sized(config, policy, task, found, run.tokens)
        weights = Weights(policy.model, policy.precise)
        optimizer = build_optimizer(weights.masters, config.optim.name, config.optim.lr, config.optim.weight_decay)
        task = method.complete(task, policy, steps, run)  # before the weights leave step 0
        optimizer.register_step_post_hook(lambda *_: task.updated())
        run.attach(weights, optimizer)
        if run.start:
            display.say(f"resuming after step {run.start} of {len(steps)}")
    with running(run, policy, weights, "train", len(steps)):
        fit(task, steps, run.start, weights, optimizer, config.optim, config.train, run)
        method.finish(task, policy)
    return conclude(run, policy, weights, len(steps), method.merged)


def finished(
    config: TunedConfig,
    source: load.Source,
    model: Any,
    tokenizer: Any,
    opening: prepare.ModelKind = prepare.LANGUAGE_MODEL,
) -> bool:
    """Whether the run is finished. Raises RunError for a finished run that started from other weights.

    A model in memory is compared by its weights. A model folder is only loaded for that if its files have changed.
    """
    folder = Path(config.out)
    if not Run.finished(folder):
        return False
    if model is not None:
        Run.require_start(folder, load.weights_hash(model))
    elif Run.manifest(folder).get("model_files") not in (None, load.file_stamps(source)):
        renderer = load_renderer(config.data, source, tokenizer)  # type: ignore[attr-defined]
        Run.require_start(folder, prepare.load_policy(config, source, renderer, None, opening).start_hash)
    return True


@contextmanager
def running(run: Run, policy: prepare.Policy, weights: Weights, stage: str, total: int) -> Iterator[None]:
    """While a loop works: trackers and progress are open, Ctrl-C stops it between two steps, and afterwards the
    model has its own attention again."""
    config = run.identity["config"]
    run.trackers = open_trackers(config["track"], run.folder, config)
    try:
        with enough_memory(), run.signals(), run.display.stage(stage, total, run.start):
            yield
    finally:
        for tracker in run.trackers:
            tracker.close()
        restore_attention(policy.model)
        weights.close()


def conclude(run: Run, policy: prepare.Policy, weights: Weights, steps: int, merged: bool = False) -> Path:
    """Write the final model and the report; the run is finished."""
    final = prepare.export(policy, weights, run.folder, merged)
    advise_at_the_end(run)
    write_run_page(run.folder)
    run.note(finished=True, steps=steps)
    run.display.say(f"done: {final}")
    return final


@contextmanager
def attention_returned(model: Any) -> Iterator[None]:
    """A model given in memory does not keep our attention when its run fails before the first step."""
    try:
        yield
    except BaseException:
        if model is not None:
            restore_attention(model)
        raise


@contextmanager
def stoppable() -> Iterator[None]:
    """Ctrl-C or SIGTERM before the first step: nothing is lost but the time, and the same command goes on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)

    def interrupt(*_: Any) -> None:
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S)  # if a library's import or callback swallows this one
        raise KeyboardInterrupt

    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Stopped("stopped before the first step", fix="rerun the same command") from stop
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def sized(
    config: RunConfig,
    policy: prepare.Policy,
    task: ResponseTask,
    found: estimate.Footprint,
    before: int | None = None,
) -> ResponseTask:
    """The task with micro-batches of `batch.tokens`; auto is what fits.

    `before` is the size at the checkpoint of a resumed run: a larger one would change its last digits, or run out of
    memory again.
    """
    width = policy.model.config.get_text_config().hidden_size
    given = config.batch.tokens
    if given == "auto":
        given = before or estimate.choose_tokens(found, policy.scorer.device, width)
    policy.budget = replace(policy.budget, tokens=min(given, before or given))
    return replace(task, budget=policy.budget)


def say_plan(config: TunedConfig, words: Sequence[str], display: Display) -> None:
    """All that a dry run is for."""
    for line in words:
        display.say(line)
    display.say(dump(config))
    display.say(f"dry run: nothing was trained and nothing written; without --dry-run this makes {config.out}")


@contextmanager
def enough_memory() -> Iterator[None]:
    """What no smaller micro-batch can help is said in a sentence."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, PreftuneError) or not out_of_memory(error):
            raise
        raise ConfigError(
            "out of memory",
            why=str(error).splitlines()[0] if str(error) else "",
            fix="train with lora, set model.gradient_checkpointing=true, lower data.max_length; --dry-run shows more",
        ) from error


def schedule(config: RunConfig, task: ResponseTask) -> list[Step]:
    """All optimizer steps of the run."""
    require_groups(task.groups, config.data.train)
    sizes = [size_of(group) for group in task.groups]
    return list(
        training_steps(sizes, config.batch.pairs, config.train.seed, config.train.epochs, config.train.max_steps)
    )


def require_groups(groups: Sequence[TokenGroup], source: str | Sequence[str]) -> None:
    """Raises DataError if there is nothing to train on."""
    if not groups:
        raise DataError("no group is left for training", where=str(source))


def describe(
    config: RunConfig,
    policy: prepare.Policy,
    task: ResponseTask,
    steps: Sequence[Step],
    display: Display,
) -> None:
    """What is about to happen, in a few lines."""
    everything, trained = model_size(policy.model)
    dtype = str(next(iter(policy.model.parameters())).dtype).removeprefix("torch.")
    where = f"{dtype} on {policy.scorer.device}, layout {policy.budget.layout}"
    display.say(f"model: {everything:,} parameters, {trained:,} trained, {where}")
    if policy.layout_note:
        display.say(policy.layout_note)
    tokens = sum(group.tokens for group in task.groups)
    items = sum(size_of(group) for group in task.groups)
    display.say(
        f"data: {len(task.groups)} groups, {items} judgements or responses, {tokens:,} tokens; "
        f"{len(task.held_out)} groups held out; {len(steps)} steps"
    )
    warmup = warmup_steps(config.optim.warmup, len(steps))
    if warmup >= len(steps):
        display.say(f"note: the warm-up of {warmup} steps is as long as the run: optim.lr is never reached")
