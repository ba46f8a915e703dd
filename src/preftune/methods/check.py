"""preftune data check: what a run would read, and what it would refuse about its data. No weights are loaded.

The data are read and tokenised by the functions that a run calls, so a refusal has the run's sentence and exit code. If
they refuse, the data are read again with every limit lifted, so that the report is complete all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from preftune.config.schema import DataConfig, terms_of
from preftune.data.account import Account
from preftune.data.audit import Audit, audit
from preftune.data.groups import read_groups
from preftune.data.render import Renderer
from preftune.errors import PreftuneError
from preftune.methods import prepare
from preftune.methods.dpo import adapter_of_data, bind_objective
from preftune.methods.reward import judged
from preftune.methods.sft import preferred
from preftune.methods.training import require_groups
from preftune.model import load
from preftune.types import PreferenceGroup, TokenGroup

Method = Literal["dpo", "sft", "reward"]
#: What a setting is for the complete report: nothing stops it.
LIFTED: dict[str, Any] = {
    "bad_rows": "drop",
    "max_dropped": 1.0,
    "allow_overlap": True,
    "allow_empty_prompts": True,
    "allow_dropped_text": True,
}


@dataclass(frozen=True, slots=True)
class Checked:
    """The data of a run, what is known about them, and what a run would say instead of training on them.

    accounts   of the training file, and of an evaluation file
    groups     those of the training file, the ones that a run would hold out among them
    tokens     their ids; None without a model, or where the data cannot be tokenised
    too_long   rows with more tokens than the model has `positions`
    refusal    what a run would raise; None if it would train
    """

    accounts: tuple[Account, ...]
    groups: list[PreferenceGroup]
    tokens: list[TokenGroup] | None
    renderer: Renderer | None
    audit: Audit
    positions: int | None
    too_long: tuple[str, ...]
    refusal: PreftuneError | None


def check(config: DataConfig, model: str | None = None, method: Method | None = None, loss: Any = None) -> Checked:
    """Read the data as a run would, tokenise them for `model` if one is named, and see whether `method` accepts them.

    Without a method, only what every run demands is checked. Raises the run's error for data of which nothing can be
    reported, such as a missing file or columns of no known format.
    """
    source = load.locate(model, "model.path") if model else None
    adapt = _adapter(method, loss)
    try:
        text, renderer, ids = _as_a_run(config, source)
        refusal = _fit(text, ids, source, config, adapt)
    except PreftuneError as error:
        refusal = error
        text, renderer, ids = _complete(config, source, error)
    apart = len(text.accounts) > 1  # an evaluation file, not a share of the training data
    groups = text.train if apart else [*text.train, *text.held_out]
    tokens = None if ids is None else ids.train if apart else [*ids.train, *ids.held_out]
    limit = load.positions(load.load_config(source)) if source else None
    every = [*ids.train, *ids.held_out] if ids and limit else []
    long = dict.fromkeys(group.origin for group in every if group.longest > (limit or 0))
    found = audit(groups, tokens, text.held_out if apart else None)
    return Checked(text.accounts, groups, tokens, renderer, found, limit, tuple(long), refusal)


Read = tuple[prepare.TextData, Renderer | None, prepare.TokenData | None]


def _as_a_run(config: DataConfig, source: load.Source | None) -> Read:
    """Text and tokens, by the steps of a run."""
    text = prepare.read_data(config)
    if source is None:
        return text, None, None
    renderer = prepare.load_renderer(config.chat_template, source)
    return text, renderer, prepare.tokenize_data(text, renderer, config)


def _fit(
    text: prepare.TextData,
    tokens: prepare.TokenData | None,
    source: load.Source | None,
    config: DataConfig,
    adapt: Callable[[Sequence[TokenGroup]], list[TokenGroup]],
) -> PreftuneError | None:
    """What a run would raise about data that can be read and tokenised."""
    try:
        if source is None or tokens is None:
            require_groups(text.train, config.train)  # type: ignore[arg-type]
            return None
        model = load.load_config(source)
        prepare.require_fit(tokens, model.get_text_config().vocab_size, load.positions(model), source)
        groups = adapt(tokens.train)
        adapt(tokens.held_out)
        require_groups(groups, config.train)
    except PreftuneError as error:
        return error
    return None


def _complete(config: DataConfig, source: load.Source | None, refusal: PreftuneError) -> Read:
    """Text and tokens with every limit lifted. Raises `refusal` if the data cannot be read even so."""
    lifted = config.model_copy(
        update={**LIFTED, "overlong": "truncate" if config.overlong == "error" else config.overlong}
    )
    reading = prepare.reading_of(lifted)
    try:
        train, account = read_groups(config.train, reading)
        held_out, *more = read_groups(config.eval, reading) if isinstance(config.eval, str) else ([],)
    except PreftuneError:
        raise refusal from None
    text = prepare.TextData(train, held_out, (account, *more), "")
    if source is None:
        return text, None, None
    try:
        renderer = prepare.load_renderer(config.chat_template, source)
        return text, renderer, prepare.tokenize_data(text, renderer, lifted)
    except PreftuneError:  # the report counts characters
        return text, None, None


def _adapter(method: Method | None, loss: Any) -> Callable[[Sequence[TokenGroup]], list[TokenGroup]]:
    """How the method brings groups into the form that it trains on; raises where it cannot."""
    if method == "dpo":
        return adapter_of_data(bind_objective(terms_of(loss or {"name": "sigmoid"})))
    return {"sft": preferred, "reward": judged}.get(method or "", list)
