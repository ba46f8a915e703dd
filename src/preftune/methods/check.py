"""What preference data are read as, and whether a run would accept them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from preftune.config.schema import DataConfig, LossTerm
from preftune.data.account import Account
from preftune.data.audit import Audit, audit
from preftune.data.groups import Limits, read_groups, tokenize
from preftune.data.render import Renderer
from preftune.errors import ConfigError, PreftuneError
from preftune.methods import dpo, prepare, reward, sft
from preftune.types import PreferenceGroup, TokenGroup


@dataclass(frozen=True, slots=True)
class Checked:
    """`refusal` is what a run would raise for the data, None if it would train on them."""

    account: Account
    audit: Audit
    groups: list[PreferenceGroup]
    refusal: PreftuneError | None


def check(
    config: DataConfig,
    method: str = "dpo",
    terms: Sequence[LossTerm] = (LossTerm(name="sigmoid"),),
    renderer: Renderer | None = None,
    positions: int | None = None,
) -> Checked:
    """Read the data with every row counted, and as a run of `method` with the losses `terms` would.

    `renderer` counts in tokens; `positions` is how many tokens the model was built for. Raises DataError for data of
    which not even the format is known.
    """
    reading = replace(prepare.reading_of(config), bad_rows="drop")
    groups, account = read_groups(config.train, reading)
    held_out = read_groups(config.eval, reading)[0] if isinstance(config.eval, str) else None
    tokens = None
    if renderer:
        limits = Limits(
            config.max_length, config.max_prompt_length, "drop" if config.overlong == "drop" else "truncate"
        )
        tokens = tokenize(groups, renderer, limits, account)
    refusal = None
    try:
        accepted(config, method, terms, renderer, positions)
    except PreftuneError as error:
        refusal = error
    return Checked(account, audit(groups, tokens, held_out), groups, refusal)


def accepted(
    config: DataConfig, method: str, terms: Sequence[LossTerm], renderer: Renderer | None, positions: int | None
) -> None:
    """Raises what a run would raise for its data before its model is loaded."""
    text = prepare.read_data(config)
    if renderer is None:
        train, held_out = map(_as_if_tokenised, (text.train, text.held_out))
    else:
        tokens = prepare.tokenize_data(text, renderer, config)
        train, held_out = tokens.train, tokens.held_out
        longest = max((group.longest for group in [*train, *held_out]), default=0)
        if positions and longest > positions:
            raise ConfigError(
                f"sequences of {longest} tokens, but the model was built for {positions}",
                where="data.max_length",
                fix=f"set data.max_length={positions}",
            )
    if method == "dpo":
        adapt = dpo.adapter_of_data(dpo.bind_objective(terms))
    else:
        adapt = sft.preferred if method == "sft" else reward.judged
    adapt(train)
    adapt(held_out)


def _as_if_tokenised(groups: Sequence[PreferenceGroup]) -> list[TokenGroup]:
    """The groups with one token for each text: enough to tell which losses have values for them."""
    ids: dict[object, int] = {}

    def one(text: object) -> np.ndarray:
        return np.array([ids.setdefault(text, len(ids))], dtype=np.int32)

    return [
        TokenGroup(one(g.prompt), tuple(map(one, g.responses)), g.judgements, g.labels, g.ranks, g.origin)
        for g in groups
    ]
