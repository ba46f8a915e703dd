"""The sources of the training and evaluation data of a run: names, how each is read, and how much of it is used."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from preftune import in_memory
from preftune.config.data import SourceConfig
from preftune.config.schema import DataConfig
from preftune.data.amount import Amount
from preftune.formats.parsers import Reading
from preftune.formats.where import drop_list
from preftune.sources.compressed import file_suffixes
from preftune.sources.files import is_data_file
from preftune.sources.slices import split_slice

LISTS = ("ignore", "where")
OVERRIDES = (*LISTS, "format", "columns", "winner_values", "aspect", "pairs", "ties", "margin_from_scores", "limit")


@dataclass(frozen=True, slots=True)
class DataSource:
    """One source: its name in metrics, what `sources.read` reads, how its rows are read, and how much is used."""

    name: str
    path: str
    reading: Reading
    amount: Amount


def training_sources(config: DataConfig, has_template: bool = False) -> tuple[DataSource, ...]:
    """Return the sources of the training data."""
    return _sources(config.train, replace(reading_of(config, has_template), limit=config.limit))


def evaluation_sources(config: DataConfig, has_template: bool = False) -> tuple[DataSource, ...]:
    """Return the sources of separate evaluation data; empty if a share of the training data is held out."""
    if config.eval is None or isinstance(config.eval, float):
        return ()
    return _sources(config.eval, reading_of(config, has_template))


def source_paths(config: DataConfig) -> list[str]:
    """Return what is read: the training sources, then the evaluation sources."""
    return [source.path for source in (*training_sources(config), *evaluation_sources(config))]


def reading_of(config: DataConfig, has_template: bool = False) -> Reading:
    """Return the settings of the `data` section that decide how rows are read by a model with or without template."""
    automatic: Literal["transcripts"] | bool = "transcripts" if has_template else False
    return Reading(
        config.format,
        config.columns,
        tuple(config.ignore),
        config.pairs,
        config.margin_from_scores,
        config.as_chat if isinstance(config.as_chat, bool) else automatic,
        config.allow_empty_prompts,
        config.bad_rows,
        config.winner_values,
        tuple(config.where),
        config.aspect,
        config.ties,
        scored_turns=config.scored_turns,
        drop=drop_list(config.drop) if config.drop else (),
    )


def _sources(entries: str | Sequence[str | SourceConfig], reading: Reading) -> tuple[DataSource, ...]:
    sections = [
        entry if isinstance(entry, SourceConfig) else SourceConfig(path=entry)
        for entry in ([entries] if isinstance(entries, str) else entries)
    ]
    names = _names(sections)
    return tuple(
        DataSource(name, section.path, _reading(section, reading), Amount(section.weight, section.share, section.count))
        for name, section in zip(names, sections, strict=True)
    )


def _reading(section: SourceConfig, reading: Reading) -> Reading:
    """Return how the rows of a source are read: its settings, and for the others those of the section `data`."""
    stated: dict[str, Any] = {name: value for name in OVERRIDES if (value := getattr(section, name)) is not None}
    return replace(reading, **stated | {name: tuple(stated[name]) for name in LISTS if name in stated})


def _names(sections: Sequence[SourceConfig]) -> list[str]:
    """Return a distinct name for each source: its own, or one made of the path."""
    names: list[str] = []
    stated = {section.name for section in sections}
    for section in sections:
        name = base = section.name or short_name(section.path)
        number = 1
        while section.name is None and (name in names or name in stated):
            number += 1
            name = f"{base}-{number}"
        names.append(name)
    return names


def short_name(path: str) -> str:
    """Return the name of a source in metrics: the name of the file, folder or dataset, without its suffix.

    A split or config is part of the name. If nothing is left, as of the pattern `*.jsonl`, it is `data`.
    """
    held = in_memory.rows(path)
    base = held.label if held else split_slice(path)[0].partition("://")[2] or split_slice(path)[0]
    whole = PurePosixPath(base.rstrip("/"))
    name = whole.name
    if is_data_file(name):
        suffix, compression = file_suffixes(Path(name))
        name = name[: len(name) - len(suffix) - len(compression)]
    words = re.findall(r"[\w.-]*\w[\w.-]*", name.replace("*", " ")) or re.findall(r"\w[\w.-]*", whole.parent.name)
    return "-".join(words) or "data"
