"""Read and tokenise the training and held-out data of a run, and count what happened to each row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from preftune.chat.open import as_chat
from preftune.chat.render import Renderer
from preftune.config.sampling import PromptConfig
from preftune.config.schema import DataConfig
from preftune.data.prompts import Prompt, encode_prompts, read_prompts
from preftune.data.read_groups import read_groups
from preftune.data.split import hold_out, refuse_overlap
from preftune.data.tokenize_groups import Limits, tokenize
from preftune.errors import ConfigError, DataError
from preftune.formats.account import Account, require_matched
from preftune.formats.parsers import Reading
from preftune.model import load
from preftune.sources.read import fingerprint
from preftune.train.display import Display
from preftune.types import PreferenceGroup, TokenGroup


@dataclass(frozen=True, slots=True)
class TextData:
    """The rows of a run as text. `accounts`: one for the training data, and one for an evaluation file, if any."""

    train: list[PreferenceGroup]
    held_out: list[PreferenceGroup]
    accounts: tuple[Account, ...]
    fingerprint: str


@dataclass(frozen=True, slots=True)
class TokenData:
    """The rows of a run as token ids."""

    train: list[TokenGroup]
    held_out: list[TokenGroup]

    @property
    def hash(self) -> str:
        """A hash of all token ids. It must not change when a run is resumed."""
        digest = hashlib.sha256()
        for group in [*self.train, *self.held_out]:
            for ids in (group.prompt_ids, *group.response_ids):
                digest.update(len(ids).to_bytes(4, "little") + ids.tobytes())
        return digest.hexdigest()


def read_data(config: DataConfig) -> TextData:
    """Return the training and held-out groups. Raises DataError for invalid data, before anything is tokenised."""
    reading = reading_of(config)

    def read(source: str | Sequence[str]) -> tuple[list[PreferenceGroup], Account]:
        groups, account = read_groups(source, reading)
        account.check(config.max_dropped)
        return groups, account

    return _split(config, read, config.allow_overlap)


def read_prompt_data(config: PromptConfig) -> TextData:
    """Return the training and held-out prompts, as groups without responses."""

    def read(source: str | Sequence[str]) -> tuple[list[PreferenceGroup], Account]:
        groups, account = read_prompts(source, Reading(columns=config.columns, ignore=tuple(config.ignore)))
        account.check(config.max_dropped)
        return (as_chat(groups) if config.as_chat else groups), account

    return _split(config, read)


def reading_of(config: DataConfig) -> Reading:
    """Return the settings of the `data` section that decide how rows are read."""
    return Reading(
        config.format,
        config.columns,
        tuple(config.ignore),
        config.pairs,
        config.margin_from_scores,
        config.as_chat,
        config.allow_empty_prompts,
        config.bad_rows,
        config.winner_values,
    )


def limits_of(config: DataConfig) -> Limits:
    """Return the maximum lengths, and what happens to rows that are too long or cannot be rendered."""
    return Limits(config.max_length, config.max_prompt_length, config.overlong, config.bad_rows)


def _split(
    config: DataConfig | PromptConfig,
    read: Callable[[str | Sequence[str]], tuple[list[PreferenceGroup], Account]],
    allow_overlap: bool = False,
) -> TextData:
    """Read the training data, and the held-out data from a separate file or as a share of the training data."""
    train, account = read(config.train)
    sources = [config.train] if isinstance(config.train, str) else list(config.train)
    if isinstance(config.eval, str):
        held_out, held_out_account = read(config.eval)
        require_matched([account, held_out_account])
        if not allow_overlap:
            refuse_overlap(train, held_out)
        return TextData(train, held_out, (account, held_out_account), fingerprint([*sources, config.eval]))
    require_matched([account])
    held_out = []
    if config.eval is not None:
        train, held_out = hold_out(train, config.eval)
    return TextData(train, held_out, (account,), fingerprint(sources))


def tokenize_data(data: TextData, renderer: Renderer, config: DataConfig) -> TokenData:
    """Return the token ids of all groups. Raises DataError if too many rows are dropped, or all."""
    limits = limits_of(config)
    train_account, held_out_account = data.accounts[0], data.accounts[-1]
    tokens = TokenData(
        tokenize(data.train, renderer, limits, train_account),
        tokenize(data.held_out, renderer, limits, held_out_account),
    )
    for account in data.accounts:
        account.check(config.max_dropped)
    require_groups(tokens.train, train_account.source)
    return tokens


def report_accounts(data: TextData, display: Display) -> None:
    """Print how many rows were read, kept and dropped, with reasons."""
    for account in data.accounts:
        for line in account.lines():
            display.say(line)


def require_groups(groups: Sequence[TokenGroup], source: str | Sequence[str]) -> None:
    """Raise DataError if there is no group to train on."""
    if not groups:
        fix = "run preftune data check to see why rows were dropped; raise data.max_length if they are too long"
        raise DataError("no row is left to train on", where=str(source), fix=fix)


def require_length(groups: Sequence[TokenGroup], limit: int | None, where: str) -> None:
    """Raise ConfigError for sequences of more than `limit` tokens."""
    longest = max((group.longest for group in groups), default=0)
    if limit and longest > limit:
        raise ConfigError(
            f"the longest sequence has {longest} tokens, but the model's context has {limit}",
            where=where,
            fix=f"set {where}={limit}" if where == "data.max_length" else f"lower {where}, or shorten the prompts",
        )


def prompts_that_fit(
    groups: Sequence[PreferenceGroup],
    renderer: Renderer,
    config: Any,
    new_tokens: int,
    account: Account,
    where: str,
    longest: int = 1 << 20,
) -> list[Prompt]:
    """Return the prompts that leave room for `new_tokens` in the model's context; drop and count the others.

    `config` is the model's config, and `longest` the limit of the prompt. Raises ConfigError if the model has no more
    than `new_tokens` positions, and DataError if no prompt is left.
    """
    limit = load.max_positions(config)
    if limit and new_tokens >= limit:
        raise ConfigError(
            f"{new_tokens} new tokens leave no room for a prompt in the model's context of {limit} tokens",
            where=where,
            fix=f"set a value below {limit}",
        )
    prompts = encode_prompts(groups, renderer, min(longest, limit - new_tokens) if limit else longest, account)
    if not prompts:
        reasons = "; ".join(account.dropped) or "the source has no prompts"
        raise DataError(
            f"no prompt is left: {reasons}", where=account.source, fix=f"lower {where}, or shorten the prompts"
        )
    return prompts
