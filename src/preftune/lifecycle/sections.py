"""The data section of a command that reads rows without training on them: score, sample, winrate, frontier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from preftune.chat.open import ChatOptions
from preftune.config.schema import DataConfig
from preftune.formats.account import Account, require_matched
from preftune.formats.parsers import Reading
from preftune.lifecycle.data import reading_of

UNLIMITED = 1 << 20  # tokens of a prompt


def section_of(source: str | Sequence[str], settings: DataConfig | None, **own: Any) -> DataConfig:
    """The settings under which a command reads `source`: `settings`, or those in `own` that are not None."""
    given = {key: value for key, value in own.items() if value is not None}
    return settings or DataConfig(train=source if isinstance(source, str) else list(source), **given)


def options_of(settings: DataConfig | None, chat: ChatOptions) -> ChatOptions:
    """The chat options that `settings` state, or `chat` without them; the rest is as the model was trained."""
    if settings is None:
        return chat
    stated = settings.model_fields_set
    return replace(
        chat,
        arguments=settings.chat_template_kwargs if "chat_template_kwargs" in stated else None,
        as_chat=settings.as_chat,
        thinking=settings.thinking if "thinking" in stated else None,
        allow_dropped_text=settings.allow_dropped_text,
    )


def rows_of(settings: DataConfig) -> Reading:
    """How the rows are read. Text stays text: the renderer makes chat of it, as the model was trained."""
    return replace(reading_of(settings), as_chat=False)


def require_rows(account: Account, settings: DataConfig) -> None:
    """Raises DataError if too many rows were dropped, or if data.ignore names a column that no row has."""
    account.check(max_dropped_of(settings))
    require_matched([account])


def max_dropped_of(settings: DataConfig) -> float:
    """The share of rows that a command may drop: all, unless `data.max_dropped` is set."""
    return settings.max_dropped if "max_dropped" in settings.model_fields_set else 1.0
