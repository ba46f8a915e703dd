"""Read datasets of the Hugging Face Hub and of `save_to_disk` with `datasets`. Code in a dataset is never run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from preftune.errors import DataError
from preftune.sources.files import FILE_SUFFIXES
from preftune.sources.known import Known, known_dataset
from preftune.sources.rows import Row, Source
from preftune.sources.splits import TRAIN, choose_part, notes_on_unread_parts

HUB_ID = re.compile(r"^(?P<name>[\w.-]+/[\w.-]+)(?P<parts>(?::[\w.-]+){0,2})(?:@(?P<revision>[\w./-]+))?$")


def is_hub_id(name: str) -> bool:
    """Return whether a name that is not a local file may be a Hub id. `data/missing.jsonl` is not one."""
    match = HUB_ID.match(name)
    is_file = match is None or Path(match["name"]).suffix.lower() in FILE_SUFFIXES
    return not is_file and not Path(name.split("/")[0]).is_dir()


@lru_cache(maxsize=16)
def hub_source(name: str) -> Source:
    """Load the split of a Hub dataset that `name` refers to, once per process.

    The name is `org/name`, with :split, :config or :config:split and @revision (a branch, tag or commit) after it.
    Raises DataError if the dataset cannot be loaded. If the name is ambiguous, the error lists configs and splits.
    """
    return _loaded(name, streaming=False)


@lru_cache(maxsize=16)
def hub_stream(name: str) -> Source:
    """Open the split of a Hub dataset that `name` refers to, without downloading it. Raises the errors of
    `hub_source`."""
    return _loaded(name, streaming=True)


def _loaded(name: str, streaming: bool) -> Source:
    import datasets

    base, _, revision = name.partition("@")
    target, *parts = base.split(":")
    facts = known_dataset(target) or Known()
    options: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        if streaming:  # all requests of a run are about the same commit
            options = {"revision": _commit(target, revision or None)}
        how = {**options, **({"streaming": True} if streaming else {})}
        if parts and parts[0] in facts.folders:
            folder, split = facts.folders[parts[0]], (*parts, TRAIN)[1]
            loaded = datasets.load_dataset(target, data_dir=folder, split=split, **how)
            return Source(name, hub=loaded, stamp=f"{folder} {split} {options.get('revision', '')}")
        configs = list(datasets.get_dataset_config_names(target, **options))
        default = datasets.get_dataset_default_config_name(target, **options)

        def splits_of(config: str) -> list[str]:
            return list(datasets.get_dataset_split_names(target, _config_argument(config, configs), **options))

        base_config = default if default in configs else None
        usual = parts or _usual(facts, configs, base_config, splits_of)
        config, split = choose_part(target, usual, configs, base_config, splits_of)
        loaded = datasets.load_dataset(target, _config_argument(config, configs), split=split, **how)
        notes = notes_on_unread_parts(target, parts, configs, config, split, splits_of(config))
        notes += [facts.advice] if facts.advice and not parts else []
    except DataError:
        raise
    except Exception as error:  # datasets raises errors of many types when it cannot load data
        raise _load_error(name, error) from error
    return Source(name, hub=loaded, notes=tuple(notes), stamp=f"{config} {split} {options.get('revision', '')}")


def _commit(target: str, revision: str | None) -> str:
    """Return the commit of a branch or tag of a Hub dataset; None is its default branch."""
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(target, revision=revision).sha)


def _usual(
    facts: Known, configs: list[str], default: str | None, splits_of: Callable[[str], list[str]]
) -> tuple[str, ...]:
    """Return the config and split of a well-known data set that a name without parts means, or ()."""
    config = facts.config or default or (configs[0] if len(configs) == 1 else "")
    return (config, facts.split) if config in configs and facts.split in splits_of(config) else ()


def _config_argument(config: str, configs: list[str]) -> str | None:
    """The config to pass to `datasets`: None for the only config, because a cached dataset does not store its name."""
    return config if len(configs) > 1 else None


def dataset_rows(source: Source) -> Iterator[Row]:
    """Yield the rows of a Hub dataset or one that `save_to_disk` wrote; an origin ends with the number of the row."""
    loaded = source.hub
    if source.saved:
        import datasets

        try:
            loaded = datasets.load_from_disk(str(source.saved)).with_format(None)
        except Exception as error:  # as in hub_source
            raise _load_error(source.name, error) from error
    for number, value in enumerate(loaded, start=1):
        yield Row(dict(value), f"{source.name}:{number}")


def _load_error(name: str, error: Exception) -> DataError:
    text = str(error).strip() or type(error).__name__
    return DataError(
        f"cannot load dataset: {text.splitlines()[0]}",
        where=name,
        fix="check the name and the connection. Use a local file or folder, `org/name:split` or "
        "`org/name:config:split`",
    )
