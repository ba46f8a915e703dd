"""preftune data check: what a run would read, and what it would refuse about its data. No weights are loaded.

The data are read and tokenised by the functions that a run calls, so a refusal has the run's sentence and exit code. If
they refuse, the data are read again with every limit lifted, so that the report is complete all the same.
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
from preftune.data.groups import read_groups, require_vocabulary
from preftune.errors import PreftuneError
from preftune.formats.account import Account
from preftune.lifecycle.data import (
    TextData,
    TokenData,
    read_data,
    reading_of,
    require_groups,
    require_length,
    tokenize_data,
)
from preftune.methods import reward, sft
from preftune.methods.objective import bind_objective, shape_for
from preftune.types import PreferenceGroup, TokenGroup

#: What a setting is for the complete report: nothing stops it.
LIFTED: dict[str, Any] = {
    "bad_rows": "drop",
    "max_dropped": 1.0,
    "allow_overlap": True,
    "allow_empty_prompts": True,
    "allow_dropped_text": True,
}
Adapter = Callable[[Sequence[TokenGroup]], list[TokenGroup]]


@dataclass(frozen=True, slots=True)
class Checked:
    """The data of a run, what is known about them, and what a run would say instead of training on them.

    accounts   of the training file, and of an evaluation file
    groups     those of the training file, the ones that a run would hold out among them
    too_long   rows with more tokens than the model has positions
    refusal    what a run would raise; None if it would train
    """

    accounts: tuple[Account, ...]
    audit: Audit
    groups: list[PreferenceGroup]
    too_long: tuple[str, ...]
    refusal: PreftuneError | None

    @property
    def account(self) -> Account:
        """That of the training file."""
        return self.accounts[0]


def check(
    config: DataConfig,
    method: str | None = "dpo",
    terms: Sequence[LossTerm] = (LossTerm(name="sigmoid"),),
    renderer: Renderer | None = None,
    positions: int | None = None,
    rows: int | None = None,
    base: str = "",
) -> Checked:
    """Read the data with every row counted, and as a run of `method` with the losses `terms` would.

    `renderer` counts in tokens. `positions` is the number of tokens that the model was built for, `rows` the number of
    its embeddings, `base` its name. Without a method, only what every run demands is checked. Raises the run's error
    for data of which nothing can be reported, such as a missing file or columns of no known format.
    """
    adapt = _adapter(method, terms)
    try:
        text = read_data(config)
        tokens = tokenize_data(text, renderer, config) if renderer else None
        refusal = _refusal(config, text, tokens, adapt, positions, rows, base)
    except PreftuneError as error:
        refusal = error
        text, tokens = _complete(config, renderer, error)
    apart = len(text.accounts) > 1  # an evaluation file, not a share of the training data
    groups = text.train if apart else [*text.train, *text.held_out]
    ids = None if tokens is None else tokens.train if apart else [*tokens.train, *tokens.held_out]
    every = [*tokens.train, *tokens.held_out] if tokens and positions else []
    long = dict.fromkeys(group.origin for group in every if group.longest > (positions or 0))
    found = audit(groups, ids, text.held_out if apart else None)
    return Checked(text.accounts, found, groups, tuple(long), refusal)


def _refusal(
    config: DataConfig,
    text: TextData,
    tokens: TokenData | None,
    adapt: Adapter,
    positions: int | None,
    rows: int | None,
    base: str,
) -> PreftuneError | None:
    """What a run would raise about data that can be read and tokenised."""
    train, held_out = (tokens.train, tokens.held_out) if tokens else map(_as_if_tokenised, (text.train, text.held_out))
    try:
        if rows and tokens:
            require_vocabulary([*train, *held_out], rows, base)
        if tokens:
            require_length([*train, *held_out], positions, "data.max_length")
        groups = adapt(train)
        adapt(held_out)
        require_groups(groups, config.train)
    except PreftuneError as error:
        return error
    return None


def _complete(
    config: DataConfig, renderer: Renderer | None, refusal: PreftuneError
) -> tuple[TextData, TokenData | None]:
    """Text and tokens with every limit lifted. Raises `refusal` if the data cannot be read even so."""
    overlong = "truncate" if config.overlong == "error" else config.overlong
    lifted = config.model_copy(update={**LIFTED, "overlong": overlong})
    reading = reading_of(lifted)
    try:
        train, account = read_groups(config.train, reading)
        held_out, *more = read_groups(config.eval, reading) if isinstance(config.eval, str) else ([],)
    except PreftuneError:
        raise refusal from None
    text = TextData(train, held_out, (account, *more), "")
    try:
        return text, tokenize_data(text, renderer, lifted) if renderer else None
    except PreftuneError:  # the report counts characters
        return text, None


def _adapter(method: str | None, terms: Sequence[LossTerm]) -> Adapter:
    """How the method brings groups into the form that it trains on; raises where it cannot."""
    if method == "dpo":
        return partial(shape_for, bind_objective(terms))
    return {"sft": sft.preferred, "reward": reward.judged}.get(method or "", list)


def _as_if_tokenised(groups: Sequence[PreferenceGroup]) -> list[TokenGroup]:
    """The groups with one token for each text: enough to tell which losses have values for them."""
    ids: dict[object, int] = {}

    def one(text: object) -> np.ndarray:
        return np.array([ids.setdefault(text, len(ids))], dtype=np.int32)

    return [
        TokenGroup(one(g.prompt), tuple(map(one, g.responses)), g.judgements, g.labels, g.ranks, g.origin)
        for g in groups
    ]
