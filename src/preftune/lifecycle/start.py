"""Start a run: check the config, data and run folder, cheapest checks first, then open the run folder."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from preftune import in_memory
from preftune.chat.open import load_renderer
from preftune.chat.render import Renderer
from preftune.config.sampling import PPOConfig, PromptConfig
from preftune.config.schema import DataConfig, RunConfig
from preftune.data.subset import joined
from preftune.errors import RunError
from preftune.lifecycle.compute import training_flops
from preftune.lifecycle.data import TextData, TokenData, read_data, read_prompt_data, report_accounts, tokenize_data
from preftune.lifecycle.mixture_plan import SourceUse, mixture_record
from preftune.lifecycle.policy import Policy, check_policy, device_of, load_policy
from preftune.lifecycle.shards import require_joined
from preftune.lifecycle.sources import source_paths
from preftune.lifecycle.streamed_rows import read_sample
from preftune.model import load
from preftune.model.weight_files import shortened
from preftune.ranks import group
from preftune.ranks.shard import reshard
from preftune.train.display import Display
from preftune.train.finished import is_complete
from preftune.train.machine import use_threads_of
from preftune.train.manifest import run_identity
from preftune.train.optim import Weights, build_optimizer, moment_bytes
from preftune.train.run import Run
from preftune.train.track import require_packages


@dataclass(frozen=True, slots=True)
class Start:
    """A run whose data have been read, but whose model has not been loaded.

    text         the rows of the data
    identity     config and fingerprints; a resumed run must have the same
    model        the model that the caller passed; None: load it from `source`
    moment       the date for the chat template, in ISO format; None: now
    began        time.perf_counter() when the command started
    is_finished  the folder contains this run, finished
    """

    config: RunConfig | PPOConfig
    scalar: bool
    source: load.Source
    text: TextData
    identity: dict[str, Any]
    display: Display
    model: Any
    tokenizer: Any
    moment: str | None
    began: float
    is_finished: bool

    @property
    def folder(self) -> Path:
        return Path(self.config.out)

    @property
    def final(self) -> Path:
        """The folder of the final model."""
        return self.folder / "final"

    def renderer(self) -> Renderer:
        """Return the tokenizer with its chat template and the config's chat settings."""
        if self.tokenizer is None:
            self.display.say("loading transformers and the tokenizer")
        return load_renderer(self.config.data, self.source, self.tokenizer, self.model, self.moment)

    def policy(self, renderer: Renderer, flops: Callable[[int], float] = lambda parameters: 0.0) -> Policy:
        """Load the policy at step 0. `flops` returns the operations of the run for a number of parameters."""
        if self.model is None:
            probe = " and testing packed batches" if self.config.model.attention != "rows" else ""
            self.display.say(f"loading the model {self.config.model.path}{probe}")
        return load_policy(self.config, self.source, renderer, self.model, self.scalar, self._precision, flops)

    @property
    def _precision(self) -> str | None:
        """The precision of the run that is resumed; None for a new run."""
        manifest = Run.manifest(self.folder)
        before_bf16_on_cpus = "fp32" if "start_weights" in manifest and device_of(self.model).type == "cpu" else None
        recorded: str | None = manifest.get("precision", before_bf16_on_cpus)
        return recorded


def start_run(
    config: RunConfig | PPOConfig,
    *,
    scalar: bool = False,
    model: Any = None,
    tokenizer: Any = None,
    display: Display | None = None,
    dry_run: bool = False,
    moment: str | None = None,
    fingerprints: Mapping[str, str] | None = None,
) -> Start:
    """Read the data and check the run folder. No model is loaded and nothing is written.

    `scalar`: the model is a reward model, with a scalar head. `fingerprints` are hashes, by name, of other models that
    must not change when the run is resumed. A dry run works on a copy of a model in memory, so the caller's model does
    not change. Raises RunError if the folder holds a different run, or is finished and started from different weights.
    """
    display, began, folder = display or Display(), time.perf_counter(), Path(config.out)
    if dry_run and model is not None:
        model = copy.deepcopy(model)
    require_packages(list(config.track))
    require_joined(config)
    source = load.locate(config.model.path) if model is None else load.Source(config.model.path)
    display.say(f"reading {shown_sources(config.data)}")
    text = _read(config, load.has_chat_template(source, tokenizer, config.data.chat_template))
    identity = run_identity(config.model_dump(mode="json"), text.fingerprint, fingerprints)
    group.from_first(lambda: Run.check(folder, identity, type(config), extendable=True))
    moment = (Run.manifest(folder).get("chat") or {}).get("moment") or moment
    if group.world() > 1:  # all ranks must render the same date
        moment = group.from_first(lambda: moment or datetime.now().isoformat())
    finished = group.from_first(lambda: not Run.extends(folder, identity) and is_complete(folder, display.say))
    if not finished and group.world() == 1:
        use_threads_of(Run.manifest(folder), display.say)
    start = Start(config, scalar, source, text, identity, display, model, tokenizer, moment, began, finished)
    if start.is_finished:
        _require_same_model(start)
        display.say(f"{folder} is finished, so nothing was trained; its model is in {start.final}")
    return start


def _read(config: RunConfig | PPOConfig, has_template: bool) -> TextData:
    if isinstance(config, PPOConfig):
        return read_prompt_data(config.data)
    return read_sample(config.data, has_template) if config.data.stream else read_data(config.data, has_template)


def shown_sources(data: DataConfig | PromptConfig) -> str:
    """Return the names of the data sources, for a message."""
    if isinstance(data, DataConfig):
        names = source_paths(data)
    else:
        names = [data.train] if isinstance(data.train, str) else list(data.train)
        names += [data.eval] if isinstance(data.eval, str) else []
    held = [in_memory.rows(name) for name in names]
    return shortened([rows.label if rows else name for name, rows in zip(names, held, strict=True)])


def _require_same_model(start: Start) -> None:
    """Raise RunError if a finished run started from different weights.

    A model in memory is compared by its weights. A model folder is compared by its weights if its files have changed.
    """
    if start.model is not None:
        Run.require_start(start.folder, load.weights_hash(start.model))
    elif Run.manifest(start.folder).get("model_files") not in (None, load.file_stamps(start.source)):
        renderer = load_renderer(start.config.data, start.source, start.tokenizer)
        Run.require_start(start.folder, start.policy(renderer).start_hash)


def load_policy_and_data(start: Start, config: RunConfig) -> tuple[Policy, TokenData]:
    """Return the policy at step 0 and the token ids of the data. Raises if the model cannot process the data."""
    renderer = start.renderer()
    start.display.say(f"preparing the token ids of {len(start.text.train) + len(start.text.held_out):,} groups")
    data = tokenize_data(start.text, renderer, config.data)
    report_accounts(start.text, start.display, data.messages)
    policy = start.policy(renderer, partial(training_flops, data.train, config))
    check_policy(policy, joined(data.train, data.held_out), start.source, "data.max_length")
    return policy, data


def open_run(start: Start, policy: Policy, data: TokenData | None = None, sources: Sequence[SourceUse] = ()) -> Run:
    """Create or resume the run folder. Raises RunError if the run started from different weights or token ids.

    `sources` says how the run uses the sources of a mixture, for the manifest.
    """
    for value, what in ((policy.start_hash, "the model"), (data.hash if data else None, "the token ids of the data")):
        group.require_equal(value, what, "make the same files available on all machines")
    fix = "set model.dtype and model.attention, for example attention: rows, so that no rank chooses them alone"
    group.require_equal((policy.budget.layout, str(policy.dtype)), "the layout or the precision", fix)
    run = Run.open(start.folder, start.identity, start.display, type(start.config), extendable=True)
    Run.require_start(run.folder, policy.start_hash)
    ids = data.hash if data else None
    if run.fact("ids") not in (None, ids):
        raise RunError(
            "the token ids of the data differ from those at the start of this run",
            where=str(run.folder),
            why="the tokenizer, its chat template or a format function has changed",
            fix="restore the earlier version to resume, or choose a different `out`",
        )
    run.note(
        **({"ids": ids} if ids else {}),
        chat=policy.renderer.settings.record(),
        start_weights=policy.start_hash,
        precision=next((name for name, dtype in load.DTYPES.items() if dtype == policy.model.dtype), None),
        data=_rows_of(start.text),
        model_files=load.file_stamps(start.source) if start.model is None else None,
        **({"mixture": mixture_record(sources)} if sources else {}),
    )
    return run


def _rows_of(text: TextData) -> dict[str, dict[str, Any]]:
    """Return the numbers of rows of each source. Two sources may have the same path."""
    result: dict[str, dict[str, Any]] = {}
    names = text.names or ("",) * len(text.accounts)
    for name, account in zip(names, text.accounts, strict=True):
        key = f"{account.source} ({name})" if account.source in result else account.source
        result[key] = {"read": account.read, "kept": account.kept, "format": account.format}
    return result


def prepare_training(
    run: Run, config: RunConfig | PPOConfig, model: torch.nn.Module, precise: Mapping[str, torch.Tensor], steps: int
) -> tuple[Weights, torch.optim.Optimizer]:
    """Return the trained weights of `model` and their optimizer.

    If the run is resumed, both are restored from its newest checkpoint. So whatever needs the policy at step 0, such as
    the reference, must be made before.
    """
    reshard(model)
    weights = Weights(model, precise)
    try:
        optimizer = build_optimizer(
            weights.masters, config.optim.name, config.optim.lr, config.optim.weight_decay, config.optim.moments
        )
        run.attach(weights, optimizer, steps, moment_bytes(config.optim.name, config.optim.moments))
    except BaseException:
        weights.close()  # a model in memory must not keep hooks
        raise
    if run.start:
        run.display.say(f"resuming after step {run.start} of {steps}")
    if run.extended and config.optim.schedule != "constant":
        run.display.say(
            f"note: the learning rates continue on the schedule of a run of {steps} steps. The first {run.start} steps "
            "followed a shorter one, so the result differs from that of a single run"
        )
    return weights, optimizer
