"""Code around the training loop: signals and trackers during training, the final model and the report after it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from preftune import stop
from preftune.chat.template import ChatSettings
from preftune.errors import writing
from preftune.files import write_json
from preftune.lifecycle.before_first_step import enough_memory
from preftune.lifecycle.distribute import gather_policy
from preftune.lifecycle.monitor import advise_at_the_end
from preftune.lifecycle.policy import Policy
from preftune.model import load
from preftune.model.adapter import merge_adapter
from preftune.model.attention import restore_attention
from preftune.model.precision import cast_to, restore_base
from preftune.ranks import group
from preftune.report.card import Subject, write_card
from preftune.report.run import write_run_page
from preftune.report.samples import before_and_after
from preftune.train.optim import Weights
from preftune.train.run import Run
from preftune.train.track import close_trackers, open_trackers


@contextmanager
def running(run: Run, policy: Policy, stage: str, steps: int) -> Iterator[None]:
    """Open trackers and progress display. On exit, close them and give the model its own attention implementation back.

    After Ctrl-C or SIGTERM, a checkpoint of the last completed step is saved, and Stopped is raised: an evaluation ends
    at once, a step between two of its micro-batches. Both are repeated when the run is resumed.
    """
    config = run.identity["config"]
    assert run.weights
    with stop.guard(), stop.deferred(), stop.together(group.world() > 1):
        try:
            with enough_memory(), stop.between_checks(run.display.say):
                with stop.interruptible():
                    run.trackers = open_trackers(config["track"] if group.first() else [], run.folder, config)
                with run.display.stage(stage, steps, run.start):
                    yield
        except BaseException as error:
            if stop.caused(error):
                raise run.save_reached(steps) from error
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


def finish_run(run: Run, policy: Policy, steps: int, next_command: str, merged: bool = False) -> Path:
    """Write the final model, its model card and the report, mark the run as finished, and return the model's folder.

    `next_command` is printed as a suggestion; FINAL in it is replaced with the model's folder.
    """
    assert run.weights
    with stop.guard(), stop.deferred():
        final = run.folder / "final"
        if policy.shards > 1:
            gather_policy(policy, run.weights)
        if group.first():
            export(policy, run.weights, run.folder, merged)
            advise_at_the_end(run)
            run.note(steps=steps)
            write_card(final, card_subject(policy, run))
            write_run_page(run.folder)
            run.note(finished=True, steps=steps)
        group.barrier()
    for line in before_and_after(run.folder):
        run.display.say(line)
    next_command = next_command.replace("FINAL", str(final))
    run.display.say(f"done: model in {final}, report in {run.folder / 'report.html'}. Next: {next_command}")
    return final


def card_subject(policy: Policy, run: Run) -> Subject:
    """Return what the model card of a run is about. A reward model is saved with its adapter merged."""
    kind = "adapter" if hasattr(policy.model, "peft_config") else "model"
    if policy.model.config.architectures and "SequenceClassification" in policy.model.config.architectures[0]:
        kind = "reward"
    return Subject(run.folder.name, kind, str(run.identity["config"]["model"]["path"]), run.folder)


def export(policy: Policy, weights: Weights, folder: Path, merged: bool) -> Path:
    """Write `folder`/final and return it: a full model in its save dtype, or an adapter in fp32.

    The base of an adapter is saved to `folder`/base if it exists only in memory. `merged`: merge an adapter into the
    model's weights.
    """
    final, model = folder / "final", policy.model
    restore_attention(model)
    part = folder / f"final.part-{os.getpid()}"
    saved = (policy.dtypes, policy.save_dtype, policy.precise)
    if policy.shards == 1:
        for parameter, master in zip(weights.parameters, weights.masters, strict=True):
            parameter.data = master.detach()
    model.config.use_cache = True
    if hasattr(model, "peft_config") and merged:
        model = merge_adapter(restore_base(model, policy.precise), str(final))
    if hasattr(model, "peft_config"):
        base = folder / "base" if policy.base_unsaved else Path(model.name_or_path)
        if policy.base_unsaved or base.is_dir():  # a relative path would depend on the current folder
            model.peft_config["default"].base_model_name_or_path = str(base.resolve())
        load.save_model(model, policy.tokenizer, part, save_embedding_layers=False)
        if policy.base_unsaved:
            load.save_model(cast_to(restore_base(model, policy.precise).unload(), *saved), policy.tokenizer, base)
    else:
        load.save_model(cast_to(model, *saved), policy.tokenizer, part)
    record = policy.renderer.settings.record()
    if record != ChatSettings().record():  # the template does not contain its arguments
        write_json(part / load.CHAT_RECORD, record)
    with writing(final):
        if final.exists():  # the run was killed before it was marked as finished
            shutil.rmtree(final)
        os.replace(part, final)
    return final
