"""The steps and the end of a run: signals and trackers while it trains, then the final model and the report."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from preftune.chat.template import ChatSettings
from preftune.errors import writing
from preftune.files import write_json
from preftune.lifecycle.guard import enough_memory
from preftune.lifecycle.monitor import advise_at_the_end
from preftune.lifecycle.policy import Policy
from preftune.model import load
from preftune.model.adapter import merged as merge
from preftune.model.attention import use_own
from preftune.model.precision import exact_base, in_dtypes
from preftune.report.run import write_run_page
from preftune.train.optim import Weights
from preftune.train.run import Run
from preftune.train.track import open_trackers


@contextmanager
def running(run: Run, policy: Policy, stage: str, steps: int) -> Iterator[None]:
    """Open trackers and progress, and let Ctrl-C stop the run between two steps. The model has its own attention
    again at the end."""
    config = run.identity["config"]
    run.trackers = open_trackers(config["track"], run.folder, config)
    try:
        with enough_memory(), run.signals(), run.display.stage(stage, steps, run.start):
            yield
    finally:
        for tracker in run.trackers:
            tracker.close()
        use_own(policy.model)
        _weights(run).close()


def finish_run(run: Run, policy: Policy, steps: int, merged: bool = False) -> Path:
    """Write the final model and the report, mark the run as finished, and return the model's folder."""
    final = export(policy, _weights(run), run.folder, merged)
    advise_at_the_end(run)
    write_run_page(run.folder)
    run.note(finished=True, steps=steps)
    run.display.say(f"done: model in {final}, report in {run.folder / 'report.html'}")
    return final


def _weights(run: Run) -> Weights:
    assert run.weights is not None  # attached before the first step
    return run.weights


def export(policy: Policy, weights: Weights, folder: Path, merged: bool = False) -> Path:
    """Write `folder`/final and return it: a full model in its save dtype, or an adapter in fp32 next to its base.

    `merged`: an adapter is merged into the model's weights.
    """
    final, model = folder / "final", policy.model
    use_own(model)
    part = folder / f"final.part-{os.getpid()}"
    saved = (policy.dtypes, policy.save_dtype, policy.precise)
    for parameter, master in zip(weights.parameters, weights.masters, strict=True):
        parameter.data = master.detach()
    model.config.use_cache = True
    if hasattr(model, "peft_config") and merged:
        model = merge(exact_base(model, policy.precise), str(final))
    if hasattr(model, "peft_config"):
        base = folder / "base" if policy.base_unsaved else Path(model.name_or_path)
        if policy.base_unsaved or base.is_dir():  # a relative path holds only in the folder of this command
            model.peft_config["default"].base_model_name_or_path = str(base.resolve())
        load.save_model(model, policy.tokenizer, part, save_embedding_layers=False)
        if policy.base_unsaved:
            load.save_model(in_dtypes(exact_base(model, policy.precise).unload(), *saved), policy.tokenizer, base)
    else:
        load.save_model(in_dtypes(model, *saved), policy.tokenizer, part)
    record = policy.renderer.settings.record()
    if record != ChatSettings().record():  # the template alone does not show how it was used
        write_json(part / load.CHAT_RECORD, record)
    with writing(final):
        if final.exists():  # a killed run left it before it was marked as finished
            shutil.rmtree(final)
        os.replace(part, final)
    return final
