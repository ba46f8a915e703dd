"""Runs on streamed data: plan them with a sample, then read the data while training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from preftune.config.schema import RunConfig
from preftune.data.split import normalised_prompt_key
from preftune.data.steps import Step
from preftune.data.stream import SourceStream, Stream
from preftune.data.tokenize_groups import Limits, require_vocabulary, tokenized
from preftune.formats.account import Account
from preftune.lifecycle.data import limits_of, require_length
from preftune.lifecycle.policy import Policy
from preftune.lifecycle.sources import training_sources
from preftune.lifecycle.start import Start
from preftune.lifecycle.streamed_rows import StreamedRows
from preftune.lifecycle.task import ResponseTask
from preftune.model import load
from preftune.sources.parts import parts_of
from preftune.sources.rows import Row
from preftune.train.run import Run
from preftune.types import TokenGroup

Adapt = Callable[[Sequence[TokenGroup]], Sequence[TokenGroup]]


def streamed(
    start: Start, config: RunConfig, policy: Policy, run: Run, task: ResponseTask, steps: Sequence[Step], adapt: Adapt
) -> tuple[ResponseTask, Sequence[Step]]:
    """Return the task and the steps of a run: with `data.stream`, those of the stream, else unchanged.

    `task` and `steps` are planned with a sample. `adapt` converts groups to the form that the method needs.
    """
    if not config.data.stream:
        return task, steps
    excluded = set() if config.data.allow_overlap else set(map(normalised_prompt_key, start.text.held_out))
    sources, shares = [], []
    for number, source in enumerate(training_sources(config.data, bool(policy.renderer.template.source))):
        parts = parts_of(source.path)
        rows = StreamedRows(parts, source.reading, excluded)
        convert = partial(_token_groups, rows, policy, limits_of(config.data), number, adapt)
        settings = (config.train.seed, number, config.data.shuffle_buffer, config.data.max_dropped, rows.format)
        sources.append(SourceStream(parts, convert, *settings))
        shares.append(source.amount.share or 1.0)
    if run.stream_state:
        run.display.say("reading the stream up to where the run was stopped")
    stream = Stream(sources, shares, config.batch.pairs, len(steps), run.stream_state)
    run.stream = stream
    return replace(task, groups=stream.groups), stream


def _token_groups(
    rows: StreamedRows,
    policy: Policy,
    limits: Limits,
    number: int,
    adapt: Adapt,
    chunk: Sequence[Row],
    account: Account,
) -> list[TokenGroup]:
    """Return the groups of a chunk of rows as the method needs them."""
    groups = list(tokenized(rows.groups(chunk, account), policy.renderer, limits, account))
    if not groups:
        return []
    require_vocabulary(groups, policy.model.get_input_embeddings().weight.shape[0], "of the run")
    require_length(groups, load.max_positions(policy.model.config), "data.max_length")
    return [replace(group, source=number) for group in adapt(groups)]
