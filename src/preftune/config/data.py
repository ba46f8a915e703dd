"""The sources of the data of a run: names, or sections with the settings of one source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_serializer, model_validator

from preftune.config.section import Section
from preftune.errors import ConfigError

AMOUNTS = ("weight", "share", "count")


class SourceConfig(Section):
    path: str
    """What to read: a file, folder, pattern, URL or Hub id, as in `data.train`."""
    name: str | None = Field(None, pattern=r"^[\w.-]+$")
    """Name of the source in metrics and reports: letters, digits, `_`, `.` and `-`. null: the name of the file or
    dataset."""
    weight: float | None = Field(None, gt=0)
    """How often each group of the source is used per epoch: 2 is twice, 0.5 is half of the groups, other ones in each
    epoch. null: 1, unless `share` or `count` is set."""
    share: float | None = Field(None, gt=0, le=1)
    """Share of the groups of an epoch that come from this source."""
    count: int | None = Field(None, ge=1)
    """Number of groups of this source in an epoch."""
    format: str | None = None
    """As `data.format`, for this source. null: the value of the section `data`; the same applies to the keys below."""
    columns: dict[str, str] | None = None
    """As `data.columns`."""
    ignore: list[str] | None = None
    """As `data.ignore`."""
    where: list[str] | None = None
    """As `data.where`."""
    winner_values: dict[str, Any] | None = None
    """As `data.winner_values`."""
    aspect: str | None = None
    """As `data.aspect`."""
    pairs: Literal["all", "best-worst", "adjacent"] | None = None
    """As `data.pairs`."""
    ties: Literal["drop", "half"] | None = None
    """As `data.ties`."""
    margin_from_scores: bool | None = None
    """As `data.margin_from_scores`."""
    limit: int | None = Field(None, ge=1)
    """As `data.limit`."""

    @model_validator(mode="after")
    def _one_amount(self) -> SourceConfig:
        stated = [name for name in AMOUNTS if getattr(self, name) is not None]
        if len(stated) > 1:
            raise ValueError(f"set only one of weight, share and count, not {' and '.join(stated)}")
        return self

    @model_serializer(mode="plain")
    def _without_null(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in type(self).model_fields if getattr(self, name) is not None}


def _as_list(value: Any) -> Any:
    """Turn a single section into a list."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return [value] if isinstance(value, dict | SourceConfig) else value


def _kind(value: Any) -> str:
    """Return the tag of a value of `data.eval`, so that an error is about the kind that is written."""
    if isinstance(value, list | tuple):
        return "list"
    return "share" if isinstance(value, int | float) and not isinstance(value, bool) else "text"


def _kind_of_source(value: Any) -> str:
    return "SourceConfig" if isinstance(value, dict | SourceConfig) else "text"


Source = Annotated[
    Annotated[str, Tag("text")] | Annotated[SourceConfig, Tag("SourceConfig")], Discriminator(_kind_of_source)
]
"""An entry of a list of sources."""


def check_share(value: float) -> float:
    """Check a share of the training data that is held out."""
    if not 0 < value < 1:
        raise ValueError("must be a file, or a share of the training data between 0 and 1")
    return value


def check_eval(value: str | float | None) -> str | float | None:
    """Check `data.eval` of prompts: a share must be between 0 and 1."""
    return check_share(value) if isinstance(value, float) else value


def check_sources(value: Any) -> Any:
    """Check that a list of sources is not empty and that no two of its sections have the same name."""
    if isinstance(value, list):
        if not value:
            raise ValueError("the list needs at least one source")
        names = [source.name for source in value if isinstance(source, SourceConfig) and source.name]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two sources have the name {name!r}")
    return value


def check_train(value: Any) -> Any:
    """Check `data.train`. Shares must leave room for the other sources, and must add up to 1 if there are none."""
    check_sources(value)
    sections = [source for source in _entries(value) if isinstance(source, SourceConfig)]
    shares = [source.share for source in sections if source.share is not None]
    total, all_shares = sum(shares), len(shares) == len(_entries(value))
    if shares and all_shares and abs(total - 1) > 1e-6:
        raise ValueError(f"the shares add up to {total:g}; they must add up to 1, because all sources have one")
    if shares and not all_shares and total > 1 - 1e-9:
        raise ValueError(f"the shares add up to {total:g}, which leaves nothing for the sources without a share")
    return value


def check_eval_sources(value: Any) -> Any:
    """Check `data.eval`: all evaluation data are used once."""
    check_sources(value)
    for source in _entries(value):
        for name in AMOUNTS if isinstance(source, SourceConfig) else ():
            if getattr(source, name) is not None:
                raise ValueError(f"{name} applies to data.train; all evaluation data are used")
    return value


def _entries(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def check_stream(train: Any, held_out: Any, limit: int | None) -> None:
    """Check the settings that need all rows or their number, which a stream does not have."""
    if isinstance(held_out, float):
        raise ValueError("with data.stream, data.eval must be a file: a share of the data cannot be held out")
    sources = _entries(train)
    sections = [source for source in sources if isinstance(source, SourceConfig)]
    if limit is not None or any(source.limit is not None for source in sections):
        raise ValueError("with data.stream, write a slice (name[:1000]) instead of limit")
    if any(source.weight is not None or source.count is not None for source in sections):
        raise ValueError("with data.stream, set share: weight and count need the number of rows")
    if len(sources) > 1 and not all(isinstance(source, SourceConfig) and source.share for source in sources):
        raise ValueError("with data.stream, each of several sources needs a share: {path: ..., share: 0.5}")


def plain_paths(entries: str | Sequence[str | SourceConfig], command: str) -> str | list[str]:
    """Return the sources of a command that reads them as one data set, with the same settings.

    Raises ConfigError for a source that has its own settings.
    """
    if isinstance(entries, str):
        return entries
    for entry in entries:
        if isinstance(entry, SourceConfig) and entry.model_fields_set != {"path"}:
            what = f"{command} reads all data with the same settings, but the source {entry.path} has its own"
            fix = "write the settings into the section data, and run the command for each source"
            raise ConfigError(what, where="data.train", fix=fix)
    return [entry if isinstance(entry, str) else entry.path for entry in entries]


HeldOut = Annotated[str | float | None, AfterValidator(check_eval)]
TrainSources = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[Source], Tag("list")],
    Discriminator(lambda value: "list" if isinstance(value, list | tuple) else "text"),
    BeforeValidator(_as_list),
    AfterValidator(check_train),
]
EvalSources = Annotated[
    Annotated[
        Annotated[str, Tag("text")]
        | Annotated[Annotated[float, AfterValidator(check_share)], Tag("share")]
        | Annotated[list[Source], Tag("list")],
        Discriminator(_kind),
    ]
    | None,
    BeforeValidator(_as_list),
    AfterValidator(check_eval_sources),
]
