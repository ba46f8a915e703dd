"""Code around the training loop: signals and trackers during training, the final model and the report after it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from preftune import stop
from preftune.chat.template import ChatSettings
from preftune.errors import writing
from preftune.files import sync, write_json
from preftune.lifecycle.advise import advise_at_the_end
from preftune.lifecycle.before_first_step import enough_memory
from preftune.lifecycle.distribute import gather_policy
from preftune.lifecycle.policy import Policy
from preftune.model import load
from preftune.model.adapter import merge_adapter
from preftune.model.attention import restore_attention
from preftune.model.kept_adapter import has_kept, save_joined
from preftune.model.locate import QUANT_RECORD
from preftune.model.precision import cast_to, restore_base
from preftune.model.quantised import dequantise
from preftune.ranks import group
from preftune.report.card import Subject, write_card
from preftune.report.run import write_run_page
from preftune.report.samples import before_and_after
from preftune.report.verdict import closing_lines, data_argument
from preftune.train.full_disk import patiently
from preftune.train.manifest import model_hashes
from preftune.train.optim import Weights
from preftune.train.run import Run
from preftune.train.track import close_trackers

T = TypeVar("T")


@contextmanager
def running(run: Run, policy: Policy, stage: str, steps: int) -> Iterator[None]:
    """Open trackers and progress display. On exit, close them and give the model its own attention implementation back.

    After Ctrl-C or SIGTERM, a checkpoint of the last completed step is saved, and Stopped is raised: an evaluation ends
    at once, a step between two of its micro-batches. Both are repeated when the run is resumed.
    """
    assert run.weights
    with stop.guard(), stop.deferred(), stop.together(group.world() > 1):
        try:
            with enough_memory(), stop.between_checks(run.display.say):
                with stop.interruptible():
                    run.open_trackers()
                with run.display.stage(stage, steps, run.start):
                    yield
        except BaseException as error:
            try:
                if stop.caused(error):
                    raise run.save_reached(steps) from error
            finally:
                run.close()
            raise
        finally:
            close_trackers(run.trackers, run.display.say)
            restore_attention(policy.model)
            run.weights.close()


@contextmanager
def evaluating(run: Run, step: int, *what: object) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM interrupt the evaluation inside this context. Print a line before step 1, unless all of
    `what` is evaluated (held-out data, a monitor) is empty."""
    if step == 0 and any(what):
        run.display.say("evaluating before the first step")
    with stop.interruptible():
        yield


def trained(run: Run, evaluations: Iterator[T]) -> Iterator[T]:
    """Yield the evaluations of a training loop until the last one, or until the run stops early.

    Then save the state at the end, and load the weights of the best evaluation if the config asks for it.
    """
    if not run.stops_early:
        for item in evaluations:
            yield item
            if run.stops_early:
                break
    run.end()


def finish_run(run: Run, policy: Policy, next_command: str, merged: bool = False) -> Path:
    """Write the final model, its model card and the report, mark the run as finished, and return the model's folder.

    `next_command` is printed as a suggestion; FINAL in it is replaced with the model's folder, and DATA with the data.
    """
    assert run.weights
    folder, say = run.folder, run.display.say
    try:
        with stop.guard(), stop.deferred():
            if policy.shards > 1:
                gather_policy(policy, run.weights)
            if group.first():
                _write_results(run, policy, merged)
            group.barrier()
    finally:
        run.close()
    for line in run.stream.lines() if run.stream else ():
        say(line)
    best = run.fact("best")
    final = folder / "final"
    if (folder / "samples").is_dir():
        with _reported("the samples before and after", say):
            for line in before_and_after(folder, last=_shown(best)):
                say(line)
    report = f", report in {folder / 'report.html'}" if (folder / "report.html").is_file() else ""
    words = {"FINAL": shlex.quote(str(final)), "DATA": data_argument(run.identity["config"])}
    command = re.sub("FINAL|DATA", lambda match: words[match[0]], next_command)
    finished_lines(run, f"done: model in {final}{report}. Next: {command}")
    return final


def finished_lines(run: Run, done: str) -> None:
    """Print what the run did, whether it looks healthy and why, and the line `done`."""
    if group.first():
        with _reported("the result", run.display.say):
            for line in closing_lines(run.folder):
                run.display.say(line)
    run.display.say(done)


def _write_results(run: Run, policy: Policy, merged: bool) -> None:
    """Write the final model, its pages and the end of the run to the run folder."""
    assert run.weights
    folder, say = run.folder, run.display.say
    if run.lock:
        run.lock.require()
    final = export(policy, run.weights, folder, merged, say)
    bases = {"base": model_hashes(folder / "base")} if policy.base_unsaved else {}
    hashes = {"final": model_hashes(final), **bases}
    optional_pages(run, final, card_subject(policy, run))
    patiently(lambda: run.note(finished=True, **hashes), say)


def optional_pages(run: Run, final: Path, subject: Subject, unit: str = "step") -> None:
    """Write the model card and the report. If one of them fails, this is reported, because the model is complete."""
    if unit == "step":
        with _reported("the advice", run.display.say):
            advise_at_the_end(run, final)
    with _reported("the model card", run.display.say):
        write_card(final, subject)
    with _reported("report.html", run.display.say):
        write_run_page(run.folder, unit, finished=True)


@contextmanager
def _reported(what: str, say: Callable[[str], None]) -> Iterator[None]:
    """Report any error inside this context, and continue."""
    try:
        yield
    except Exception as error:
        say(f"{what} could not be written: {type(error).__name__}: {error}\n  the model is complete")


def _shown(best: dict[str, Any] | None) -> int | None:
    """Return the step of the weights in `final`; None for the last one."""
    return best["step"] if best and best.get("final") != "last" else None


def card_subject(policy: Policy, run: Run) -> Subject:
    """Return what the model card of a run is about. A reward model is saved with its adapter merged."""
    kind = "adapter" if hasattr(policy.model, "peft_config") else "model"
    if policy.model.config.architectures and "SequenceClassification" in policy.model.config.architectures[0]:
        kind = "reward"
    return Subject(run.folder.name, kind, str(run.identity["config"]["model"]["path"]), run.folder)


def export(policy: Policy, weights: Weights, folder: Path, merged: bool, say: Callable[[str], None]) -> Path:
    """Write `folder`/final and return it: a full model in its save dtype, or an adapter in fp32.

    The base of an adapter is saved to `folder`/base if it exists only in memory. `merged`: merge an adapter into the
    model's weights. While the disk is full, it waits.
    """
    final, model = folder / "final", policy.model
    restore_attention(model)
    part = folder / f"final.part-{os.getpid()}"
    if policy.shards == 1:
        for parameter, master in zip(weights.parameters, weights.masters, strict=True):
            parameter.data = master.detach()
    model.config.use_cache = True
    if hasattr(model, "peft_config") and merged:
        model = merge_adapter(restore_base(dequantise(model, torch.float32), policy.precise), str(final))
    if hasattr(model, "peft_config"):
        _save_adapter(policy, model, part, folder / "base", say)
    else:
        model = cast_to(model, policy.dtypes, policy.save_dtype, policy.precise)
        patiently(lambda: load.save_model(model, policy.tokenizer, part), say)
    record = policy.renderer.settings.record()
    if record != ChatSettings().record():  # the template does not contain its arguments
        patiently(lambda: write_json(part / load.CHAT_RECORD, record), say)
    patiently(lambda: _replace(part, final), say)
    return final


def _save_adapter(policy: Policy, model: Any, part: Path, own_base: Path, say: Callable[[str], None]) -> None:
    """Write the adapter of `model` to `part`, and its base model to `own_base` if it exists only in memory."""
    base = own_base if policy.base_unsaved else Path(model.name_or_path)
    if policy.base_unsaved or base.is_dir():  # a relative path would depend on the current folder
        model.peft_config["default"].base_model_name_or_path = str(base.resolve())
    if has_kept(model):
        patiently(lambda: save_joined(model, part), say)
        patiently(lambda: load.save_tokenizer(policy.tokenizer, part), say)
    else:
        patiently(lambda: load.save_model(model, policy.tokenizer, part, save_embedding_layers=False), say)
    if policy.quant:
        patiently(lambda: write_json(part / QUANT_RECORD, {"quant": policy.quant}), say)
    if policy.base_unsaved:
        if policy.quant and policy.source:
            plain = load.load_model(policy.source, torch.float32)  # as it was before it was quantised
        else:
            plain = restore_base(model, policy.precise).unload()
        unsaved = cast_to(plain, policy.dtypes, policy.save_dtype, policy.precise)
        draft = own_base.with_name(f"{own_base.name}.part-new")
        patiently(lambda: load.save_model(unsaved, policy.tokenizer, draft), say)
        patiently(lambda: _replace(draft, own_base), say)


def _replace(part: Path, final: Path) -> None:
    """Rename a complete folder to `final`, after the disk has its files. It can be repeated. Raises StorageError."""
    with writing(final):
        if part.exists():  # else an earlier attempt has renamed it
            for path in (*part.rglob("*"), part):
                sync(path)
            if final.exists():  # the run was killed before it was marked as finished, or it was extended
                shutil.rmtree(final)
            os.replace(part, final)
        sync(final.parent)
