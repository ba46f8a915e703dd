"""The data section of the commands that read rows without training on them: score, sample, winrate, frontier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from preftune.chat.open import ChatOptions
from preftune.chat.template import ChatSettings
from preftune.config.data import plain_paths
from preftune.config.schema import DataConfig
from preftune.formats.account import Account, require_matched
from preftune.formats.parsers import Reading
from preftune.lifecycle.sources import reading_of
from preftune.model import load
from preftune.types import PreferenceGroup

Reader = Callable[[str | Sequence[str], Reading], tuple[list[PreferenceGroup], Account]]
UNLIMITED = 1 << 20  # tokens of a prompt
RENDERING = ("chat_template", "chat_template_kwargs", "as_chat", "system_message")
"""Settings that change how a prompt is rendered, but not which prompts are read."""


def chat_options_of(data: DataConfig, moment: str | None = None) -> ChatOptions:
    """Return the chat settings that are set in `data`. For all others, the settings of the model are used."""
    stated = data.model_fields_set
    return ChatOptions(
        arguments=data.chat_template_kwargs if "chat_template_kwargs" in stated else None,
        as_chat=data.as_chat if "as_chat" in stated else None,
        moment=moment,
        thinking=data.thinking if "thinking" in stated else None,
        allow_dropped_text=data.allow_dropped_text,
        scored_turns=data.scored_turns if "scored_turns" in stated else None,
        system_message=data.system_message if "system_message" in stated else None,
    )


def section_with_rendering_of(data: DataConfig, source: str) -> DataConfig:
    """Return a section for the prompts in `source` with only the rendering settings of `data`."""
    stated = {name: getattr(data, name) for name in RENDERING if name in data.model_fields_set}
    return DataConfig(train=source, **stated)


def read_rows(
    read: Reader, data: DataConfig, source: load.Source | None = None
) -> tuple[list[PreferenceGroup], Account]:
    """Read the rows of a command with `read`, which is read_prompts or read_groups.

    `source` is the only model that reads them, if there is just one: HH-RLHF transcripts then become messages as they
    did in its training. Raises DataError if too many rows were dropped, or if data.ignore names a column without rows.
    """
    reading = row_reading_of(data)
    if source is not None and reads_transcripts(data, source):
        reading = replace(reading, as_chat="transcripts")
    groups, account = read(plain_paths(data.train, "this command"), reading)
    account.check(max_dropped_of(data))
    require_matched([account])
    return groups, account


def row_reading_of(data: DataConfig) -> Reading:
    """Return how rows are read. Text is not converted to chat here: the renderer does that as the model was trained."""
    return replace(reading_of(data), as_chat=False, limit=data.limit)


def reads_transcripts(data: DataConfig, source: load.Source) -> bool:
    """Return whether the model has a chat template that is applied to HH-RLHF transcripts."""
    settings = chat_options_of(data).override(ChatSettings.from_record(load.chat_record(source)))
    return settings.as_chat is not False and load.has_chat_template(source, chat_template=data.chat_template)


def max_dropped_of(data: DataConfig) -> float:
    """Return the share of rows that a command may drop: 1 unless `data.max_dropped` is stated."""
    return data.max_dropped if "max_dropped" in data.model_fields_set else 1.0
