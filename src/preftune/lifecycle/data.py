"""Read and tokenise the training and held-out data of a run, and count what happened to each row.

Large data are read and tokenised once. Both results are in the data cache, in files that are not loaded into memory.
The key of an entry is a hash of all that decides its content: of the text, the content of the sources and the settings
for reading; of the token ids, the text, the tokenizer, the chat template with its settings, and the maximum lengths.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from preftune.chat.open import as_chat
from preftune.chat.render import Renderer
from preftune.config.sampling import PromptConfig
from preftune.config.schema import DataConfig
from preftune.data import cache
from preftune.data.prompts import Prompt, encode_prompts, read_prompts
from preftune.data.read_groups import read_groups
from preftune.data.shapes import Shapes
from preftune.data.split import Mask, held_out_mask, refuse_overlap
from preftune.data.spool import Spool, write_text
from preftune.data.subset import sources_of, subset
from preftune.data.text_file import TextFile
from preftune.data.token_file import TokenFile, write_tokens
from preftune.data.tokenize_groups import Limits, tokenized
from preftune.errors import ConfigError, DataError
from preftune.formats.account import Account, require_matched
from preftune.formats.parsers import Reading
from preftune.formats.registry import BY_NAME
from preftune.lifecycle.mixture_plan import require_same_margins
from preftune.lifecycle.sources import DataSource, evaluation_sources, source_paths, training_sources
from preftune.model import load
from preftune.sources.read import fingerprint
from preftune.train.display import Display
from preftune.types import PreferenceGroup, TokenGroup

TRAIN, HELD_OUT, MASK = "train.arrow", "held_out.arrow", "held_out.npy"


@dataclass(frozen=True, slots=True)
class TextData:
    """The rows of a run as text.

    accounts  one for each training source, and one for each separate evaluation source
    names     the names of these sources in metrics
    key       a hash of the groups, if they are in the data cache; "" if they are in memory
    messages  what to report about the data cache
    """

    train: Sequence[PreferenceGroup]
    held_out: Sequence[PreferenceGroup]
    accounts: tuple[Account, ...]
    fingerprint: str
    key: str = ""
    messages: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenData:
    """The rows of a run as token ids.

    stored_hash  their hash, if it is known
    messages     what to report about the data cache
    """

    train: Sequence[TokenGroup]
    held_out: Sequence[TokenGroup]
    stored_hash: str = ""
    messages: tuple[str, ...] = ()

    @property
    def hash(self) -> str:
        """A hash of all token ids. It must not change when a run is resumed."""
        if self.stored_hash:
            return self.stored_hash
        digest = hashlib.sha256()
        for _ in _hashed([*self.train, *self.held_out], digest):
            pass
        return digest.hexdigest()


def read_data(config: DataConfig, has_template: bool = False) -> TextData:
    """Return the training and held-out groups. Raises DataError for invalid data, before anything is tokenised.

    `has_template`: the model has a chat template, so HH-RLHF transcripts become messages unless data.as_chat is false.
    """
    train, separate = training_sources(config, has_template), evaluation_sources(config, has_template)
    paths = [source.path for source in (*train, *separate)]
    content = fingerprint(paths)
    readings = [source.reading for source in (*train, *separate)]
    key = ""
    if all(reading.format in ("auto", *BY_NAME) for reading in readings):  # a user's function may depend on anything
        share = config.eval if isinstance(config.eval, float) else None
        settings = [[asdict(reading) for reading in readings], len(train), share, config.allow_overlap]
        key = cache.key_of("text", cache.code_version(), paths, content, settings)
    entry, message = cache.find(key) if key else (None, "")
    with cache.draft() as folder:
        text = _opened_text(entry, content) if entry else _read_into(folder, key, config, train, separate, content)
    for account in text.accounts:
        account.check(config.max_dropped)
    names = tuple(source.name for source in (*train, *separate))
    return replace(text, names=names, messages=(message,) if message else ())


def _read_into(
    folder: Path,
    key: str,
    config: DataConfig,
    train: Sequence[DataSource],
    separate: Sequence[DataSource],
    content: str,
) -> TextData:
    """Read the groups. If there are many, they are written to `folder`, which becomes the entry with this key."""
    parts = _split(config, read_sources(train, folder / TRAIN, config.max_dropped), separate, folder / HELD_OUT)
    paths = source_paths(config)
    if fingerprint(paths) != content:  # else the rows would be stored under the hash of other rows
        what, fix = "the data changed while they were read", "wait until the files are complete, and rerun the command"
        raise DataError(what, where=", ".join(paths), fix=fix)
    if isinstance(parts.train, list) and isinstance(parts.separate, list):
        return parts.data(content)
    for groups, name in ((parts.train, TRAIN), (parts.separate, HELD_OUT)):
        if isinstance(groups, list):
            write_text(groups, folder / name)
    np.save(folder / MASK, parts.mask)
    facts = {"accounts": [account.record() for account in parts.accounts]}
    # the files of an entry without a key can be read until they are closed, although the folder is removed
    return _opened_text(cache.publish(folder, key, facts) if key else cache.close(folder, facts), content)


def read_sources(
    sources: Sequence[DataSource], path: Path | None = None, max_dropped: float | None = None, first: int = 0
) -> tuple[Sequence[PreferenceGroup], list[Account]]:
    """Read the groups of all sources, one after another. Return them with one account per source.

    path         the file for the groups, if there are many; None: they stay in memory
    max_dropped  the share of the rows of each source that may be dropped; None: any
    first        the number of the first source
    """
    parts, accounts = [], []
    for number, source in enumerate(sources, start=first):
        spool = Spool(path and path.with_name(f"{number}-{path.name}"))
        groups, account = read_groups(source.path, source.reading, spool)
        if max_dropped is not None:
            account.check(max_dropped)
        parts.append(groups)
        accounts.append(account)
    numbered = chain.from_iterable(_numbered(groups, number) for number, groups in enumerate(parts, start=first))
    if all(isinstance(groups, list) for groups in parts):
        return list(numbered), accounts
    assert path
    if len(parts) == 1 and isinstance(parts[0], TextFile) and first == 0:  # the file is complete
        parts[0].path.replace(path)
        return TextFile(path), accounts
    joined = write_text(numbered, path)
    for groups in parts:
        if isinstance(groups, TextFile):
            groups.path.unlink()
    return joined, accounts


def _numbered(groups: Iterable[PreferenceGroup], number: int) -> Iterator[PreferenceGroup]:
    return (replace(group, source=number) if number else group for group in groups)


def _opened_text(entry: cache.Entry, content: str) -> TextData:
    train, separate = TextFile(entry.folder / TRAIN), TextFile(entry.folder / HELD_OUT)
    accounts = tuple(Account.from_record(record) for record in entry.facts["accounts"])
    return replace(_Parts(train, separate, np.load(entry.folder / MASK), accounts).data(content), key=entry.key)


@dataclass(frozen=True, slots=True)
class _Parts:
    """The groups of the training sources and those of separate evaluation sources.

    `mask` says which of the training groups are held out.
    """

    train: Sequence[PreferenceGroup]
    separate: Sequence[PreferenceGroup]
    mask: Mask
    accounts: tuple[Account, ...]

    def data(self, content: str) -> TextData:
        if not self.mask.any():
            return TextData(self.train, self.separate, self.accounts, content)
        train, held_out = (subset(self.train, np.flatnonzero(part)) for part in (~self.mask, self.mask))
        return TextData(train, held_out, self.accounts, content)


def _split(
    config: DataConfig,
    read: tuple[Sequence[PreferenceGroup], list[Account]],
    separate: Sequence[DataSource],
    path: Path,
) -> _Parts:
    """Read the held-out data from separate sources, or choose them from the training data."""
    train, accounts = read
    mask = np.zeros(len(train), dtype=np.bool_)
    if separate:
        held_out, held_out_accounts = read_sources(separate, path, config.max_dropped, len(accounts))
        require_matched([*accounts, *held_out_accounts])
        if not config.allow_overlap:
            refuse_overlap(train, held_out)
        return _Parts(train, held_out, mask, (*accounts, *held_out_accounts))
    require_matched(accounts)
    if isinstance(config.eval, float):
        mask = held_out_mask(train, config.eval)
    return _Parts(train, [], mask, tuple(accounts))


def read_prompt_data(config: PromptConfig) -> TextData:
    """Return the training and held-out prompts, as groups without responses."""

    def read(source: str | Sequence[str]) -> tuple[Sequence[PreferenceGroup], Account]:
        groups, account = read_prompts(source, Reading(columns=config.columns, ignore=tuple(config.ignore)))
        account.check(config.max_dropped)
        return (as_chat(groups) if config.as_chat is True else groups), account

    paths = [config.train] if isinstance(config.train, str) else list(config.train)
    content = fingerprint([*paths, *([config.eval] if isinstance(config.eval, str) else [])])
    train, account = read(config.train)
    mask = np.zeros(len(train), dtype=np.bool_)
    if isinstance(config.eval, str):
        held_out, held_out_account = read(config.eval)
        require_matched([account, held_out_account])
        refuse_overlap(train, held_out)
        return _Parts(train, held_out, mask, (account, held_out_account)).data(content)
    require_matched([account])
    if config.eval is not None:
        mask = held_out_mask(train, config.eval)
    return _Parts(train, [], mask, (account,)).data(content)


def limits_of(config: DataConfig) -> Limits:
    """Return the maximum lengths, and what happens to rows that are too long or cannot be rendered."""
    return Limits(config.max_length, config.max_prompt_length, config.overlong, config.bad_rows)


def tokenize_data(data: TextData, renderer: Renderer, config: DataConfig) -> TokenData:
    """Return the token ids of all groups. Raises DataError if too many rows are dropped, or all."""
    limits = limits_of(config)
    if data.key:
        tokens = _stored_tokens(data, renderer, limits)
    else:
        train, held_out = _tokenized(data, renderer, limits)
        tokens = TokenData(list(train), list(held_out))
    for account in data.accounts:
        account.check(config.max_dropped)
    require_groups(tokens.train, data.accounts[0].source)
    if len(data.names) > 1:
        require_same_margins(tokens.train, data.names)
    return tokens


def _tokenized(data: TextData, renderer: Renderer, limits: Limits) -> tuple[Iterator[TokenGroup], Iterator[TokenGroup]]:
    return (_by_source(data.train, data, renderer, limits), _by_source(data.held_out, data, renderer, limits))


def _by_source(
    groups: Sequence[PreferenceGroup], data: TextData, renderer: Renderer, limits: Limits
) -> Iterator[TokenGroup]:
    """Tokenise the groups of each source in turn, with its account. The groups are in the order of the sources."""
    numbers = sources_of(groups)
    for number, account in enumerate(data.accounts):
        members = np.flatnonzero(numbers == number)
        if len(members):
            part = groups if len(members) == len(groups) else subset(groups, members)
            yield from tokenized(part, renderer, limits, account)


def _stored_tokens(data: TextData, renderer: Renderer, limits: Limits) -> TokenData:
    """Return the token ids from the data cache, after writing them there if they are missing.

    The accounts are stored as well, and the date that the chat template has written.
    """
    identity, before = renderer.identity(), [account.record() for account in data.accounts]
    key = cache.key_of("tokens", cache.code_version(), data.key, before, identity, asdict(limits)) if identity else ""
    entry, message = cache.find(key) if key else (None, "")
    with cache.draft() as folder:
        if entry is None:
            facts = _write_tokens(folder, data, renderer, limits)
            entry = cache.publish(folder, key, facts) if key else cache.close(folder, facts)
        groups = TokenFile(entry.folder, entry.key)
    facts = entry.facts
    for account, record in zip(data.accounts, facts["accounts"], strict=True):
        account.restore(record)
    renderer.template.dates.update(facts["dates"])
    for account in data.accounts:  # the moment of this run; the dates in the text are the same
        account.rename_note(facts["date_note"], renderer.template.note)
    number = facts["train"]
    return TokenData(groups[:number], groups[number:], facts["hash"], (message,) if message else ())


def _write_tokens(folder: Path, data: TextData, renderer: Renderer, limits: Limits) -> dict[str, Any]:
    """Write the token ids to `folder`, and return the facts of the entry."""
    number, ids = 0, hashlib.sha256()

    def groups() -> Iterator[TokenGroup]:
        nonlocal number
        train, held_out = _tokenized(data, renderer, limits)
        for group in _hashed(train, ids):
            number += 1
            yield group
        yield from _hashed(held_out, ids)

    write_tokens(folder, groups())
    return {
        "train": number,
        "hash": ids.hexdigest(),
        "accounts": [account.record() for account in data.accounts],
        "dates": renderer.template.dates,
        "date_note": renderer.template.note,
    }


def _hashed(groups: Iterable[TokenGroup], digest: Any) -> Iterator[TokenGroup]:
    """Yield the groups, and add their token ids to a hash."""
    for group in groups:
        for ids in (group.prompt_ids, *group.response_ids, *group.masks):
            digest.update(len(ids).to_bytes(4, "little") + ids.tobytes())
        yield group


def report_accounts(data: TextData, display: Display, messages: Sequence[str] = ()) -> None:
    """Print how many rows were read, kept and dropped, with reasons, and messages about the data cache."""
    for message in (*data.messages, *messages):
        display.say(message)
    for account in data.accounts:
        for line in account.lines():
            display.say(line)


def require_groups(groups: Sequence[TokenGroup], source: str | Sequence[str]) -> None:
    """Raise DataError if there is no group to train on."""
    if not len(groups):
        fix = "run preftune data check to see why rows were dropped; raise data.max_length if they are too long"
        raise DataError("no row is left to train on", where=str(source), fix=fix)


def require_length(groups: Sequence[TokenGroup], limit: int | None, where: str) -> None:
    """Raise ConfigError for sequences of more than `limit` tokens."""
    longest = int(Shapes.of(groups).longest_G.max(initial=0))
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
