"""preftune data check: what a run reads from its data, and what it refuses. No weights are loaded.

The data are read and tokenised by the functions that a run calls, so errors have the same text and exit code. If the
run would fail, the data are read again with every limit lifted, so that the report is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from preftune.chat.render import Renderer
from preftune.config.schema import DataConfig, LossTerm
from preftune.data.audit import Audit, audit
from preftune.data.shapes import Shapes
from preftune.data.tokenize_groups import require_vocabulary
from preftune.errors import PreftuneError
from preftune.findings.find import find
from preftune.findings.kinds import Findings
from preftune.formats.account import Account, together
from preftune.lifecycle import data
from preftune.lifecycle.context import fitted
from preftune.lifecycle.mixture_plan import SourceUse, mixed_steps
from preftune.lifecycle.sources import evaluation_sources, training_sources
from preftune.lifecycle.streamed_rows import read_sample
from preftune.methods import reward, sft
from preftune.methods.objective import bind_objective, shape_for
from preftune.types import PreferenceGroup, TokenGroup

#: Settings for the complete report, with which no row stops the reading.
LIFTED: dict[str, Any] = {
    "bad_rows": "drop",
    "max_dropped": 1.0,
    "allow_overlap": True,
    "allow_empty_prompts": True,
    "allow_dropped_text": True,
}
Adapter = Callable[[Sequence[TokenGroup]], Sequence[TokenGroup]]


@dataclass(frozen=True, slots=True)
class Checked:
    """The report on the data of a run.

    train      accounts of the training sources
    held_out   accounts of separate evaluation sources
    groups     of the training sources, including those that a run would hold out
    too_long   origins of groups with more tokens than the model's context
    refusal    the error that a run would raise, or None
    findings   defects in the texts and judgements of `groups`, and leaks into the evaluation data
    uses       what an epoch has of each source of a mixture; empty for a single source
    """

    train: tuple[Account, ...]
    held_out: tuple[Account, ...]
    audit: Audit
    groups: Sequence[PreferenceGroup]
    too_long: tuple[str, ...]
    refusal: PreftuneError | None
    findings: Findings
    uses: tuple[SourceUse, ...] = ()

    @property
    def account(self) -> Account:
        """The account of all training sources together."""
        return together(self.train)

    @property
    def accounts(self) -> tuple[Account, ...]:
        """All accounts."""
        return (*self.train, *self.held_out)

    @property
    def source(self) -> str:
        """The training data, for messages."""
        return ", ".join(account.source for account in self.train)

    @property
    def evaluation(self) -> str:
        """The evaluation data, or the training data if a share of them is held out."""
        return ", ".join(account.source for account in self.held_out) or self.source


def check(
    config: DataConfig,
    method: str | None = "dpo",
    terms: Sequence[LossTerm] = (LossTerm(name="sigmoid"),),
    renderer: Renderer | None = None,
    positions: int | None = None,
    rows: int | None = None,
    base: str = "",
) -> Checked:
    """Read the data as a run of `method` with the losses `terms` does, and count every row.

    renderer   tokenises the data; None: lengths are in characters
    positions  the model's context, in tokens
    rows       number of rows of the model's embedding matrix
    base       name of the model

    Without a method, only the requirements of every run are checked. Raises the run's error if nothing can be
    reported, such as for a missing file or columns of an unknown format.
    """
    config = fitted(config, positions)
    # how the method converts groups for training; raises if they do not fit
    adapt: Adapter = {"sft": sft.preferred, "reward": reward.reward_groups}.get(method or "", list)
    if method == "dpo":
        adapt = partial(shape_for, bind_objective(terms))
    try:
        has_template = _has_template(renderer)
        text = read_sample(config, has_template) if config.stream else data.read_data(config, has_template)
        tokens = data.tokenize_data(text, renderer, config) if renderer else None
        refusal = _refusal(text, tokens, adapt, positions, rows, base)
    except PreftuneError as error:
        refusal = error
        text, tokens = _complete(config, renderer, error)
    separate = bool(evaluation_sources(config))  # not a share of the training data
    groups = [*text.train, *text.held_out] if len(text.held_out) and not separate else text.train
    ids = None if tokens is None else tokens.train if separate else [*tokens.train, *tokens.held_out]
    all_tokens = [*tokens.train, *tokens.held_out] if tokens and positions else []
    too_long = dict.fromkeys(group.origin for group in all_tokens if group.longest > (positions or 0))
    report = audit(groups, ids, text.held_out if separate else None)
    findings = find(groups, text.train, text.held_out)
    uses = _uses(config, groups)
    trained = len(training_sources(config))
    return Checked(
        text.accounts[:trained], text.accounts[trained:], report, groups, tuple(too_long), refusal, findings, uses
    )


def _uses(config: DataConfig, groups: Sequence[PreferenceGroup]) -> tuple[SourceUse, ...]:
    """Return what one epoch of a run has of each source, if it holds out none of these groups."""
    shapes = Shapes.of(_as_if_tokenised(groups)) if len(groups) and not config.stream else None
    return mixed_steps(config, shapes, pairs=len(groups), seed=0, epochs=1, max_steps=None)[1] if shapes else ()


def _refusal(
    text: data.TextData,
    tokens: data.TokenData | None,
    adapt: Adapter,
    positions: int | None,
    rows: int | None,
    base: str,
) -> PreftuneError | None:
    """Return the error that a run would raise for data that can be read and tokenised, or None."""
    train, held_out = (tokens.train, tokens.held_out) if tokens else map(_as_if_tokenised, (text.train, text.held_out))
    try:
        if rows and tokens:
            require_vocabulary([*train, *held_out], rows, base)
        if tokens:
            data.require_length([*train, *held_out], positions, "data.max_length")
        groups = adapt(train)
        adapt(held_out)
        data.require_groups(groups, text.accounts[0].source)
    except PreftuneError as error:
        return error
    return None


def _complete(
    config: DataConfig, renderer: Renderer | None, refusal: PreftuneError
) -> tuple[data.TextData, data.TokenData | None]:
    """Return text and tokens, read with every limit lifted. Raises `refusal` if that also fails."""
    overlong = "truncate" if config.overlong == "error" else config.overlong
    lifted = config.model_copy(update={**LIFTED, "overlong": overlong})
    has_template = _has_template(renderer)
    sources, separate = training_sources(lifted, has_template), evaluation_sources(lifted, has_template)
    try:
        if config.stream:
            text = read_sample(lifted, has_template)
            return text, data.tokenize_data(text, renderer, lifted) if renderer else None
        train, accounts = data.read_sources(sources)
        held_out, more = data.read_sources(separate, first=len(sources))
    except PreftuneError:
        raise refusal from None
    names = tuple(source.name for source in (*sources, *separate))
    text = data.TextData(train, held_out, (*accounts, *more), "", names=names)
    try:
        return text, data.tokenize_data(text, renderer, lifted) if renderer else None
    except PreftuneError:  # the report counts characters instead
        return text, None


def _has_template(renderer: Renderer | None) -> bool:
    return renderer is not None and bool(renderer.template.source)


def _as_if_tokenised(groups: Sequence[PreferenceGroup]) -> list[TokenGroup]:
    """Return the groups with one token per text, which is enough to check whether they fit a loss."""
    ids: dict[object, int] = {}

    def token_of(text: object) -> np.ndarray:
        return np.array([ids.setdefault(text, len(ids))], dtype=np.int32)

    return [
        TokenGroup(
            token_of(g.prompt),
            tuple(map(token_of, g.responses)),
            g.judgements,
            g.labels,
            g.ranks,
            g.origin,
            source=g.source,
        )
        for g in groups
    ]
