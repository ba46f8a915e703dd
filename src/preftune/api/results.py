"""The results of the Python functions: paths, and tables of rows."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from preftune.errors import ConfigError
from preftune.train.manifest import read as read_manifest

if TYPE_CHECKING:
    from preftune.data.audit import Audit
    from preftune.formats.account import Account
    from preftune.measures.win_rate import WinRate

MAX_SHOWN = 5  # rows in the repr of a table
FIGURES = ("step", "loss", "rewards/margins", "rewards/accuracies", "objective/score", "objective/kl", "drift/gap")


@dataclass(frozen=True, slots=True, repr=False)
class Table(Sequence[dict[str, Any]]):
    """A sequence of rows, which are dicts. table["loss"] is the list of the values in a column."""

    rows: tuple[dict[str, Any], ...]

    @overload
    def __getitem__(self, key: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, key: str) -> list[Any]: ...
    @overload
    def __getitem__(self, key: slice) -> Table: ...
    def __getitem__(self, key: int | str | slice) -> dict[str, Any] | list[Any] | Table:
        """Return a row, the rows of a slice, or a column, with None for rows that lack it."""
        if isinstance(key, str):
            if key not in self.columns:
                raise KeyError(f"no column {key!r}; columns: {', '.join(self.columns)}")
            return [row.get(key) for row in self.rows]
        return Table(self.rows[key]) if isinstance(key, slice) else self.rows[key]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns, in the order of their first appearance."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row))

    def only(self, **values: Any) -> Table:
        """Return the rows with these values, e.g. only(split="eval")."""
        return Table(tuple(row for row in self.rows if all(row.get(name) == value for name, value in values.items())))

    def table(self, **values: Any) -> dict[str, list[Any]]:
        """Return the columns of the rows with these values: table(split="eval")["loss"]."""
        rows = self.only(**values)
        return {name: rows[name] for name in rows.columns}

    def to_pandas(self) -> Any:
        """Return a pandas.DataFrame. Raises ConfigError if pandas is not installed."""
        try:
            import pandas  # type: ignore[import-untyped]
        except ImportError as error:
            raise ConfigError("pandas is not installed", where="to_pandas()", fix="pip install pandas") from error
        return pandas.DataFrame(list(self.rows))

    def __repr__(self) -> str:
        head = f"{len(self)} rows with {', '.join(self.columns) or 'no columns'}"
        more = [f"... {len(self) - MAX_SHOWN} more"] if len(self) > MAX_SHOWN else []
        return "\n".join([head, *(_brief(row) for row in self.rows[:MAX_SHOWN]), *more])


@dataclass(frozen=True, slots=True, repr=False)
class TrainResult:
    """A finished run, or a dry run. It can be used as a path: that of the model, or of the run folder of a dry run.

    folder     the run folder
    model      the folder of the trained model; None after a dry run
    metrics    the lines of metrics.jsonl: step, split (train or eval), loss, ...
    manifest   the run's manifest.json: versions, machine, data, hashes
    config     the resolved config
    """

    folder: Path
    model: Path | None
    metrics: Table
    manifest: Mapping[str, Any]
    config: Any

    @staticmethod
    def of(config: Any, dry_run: bool) -> TrainResult:
        """Read the result from the run folder."""
        folder = Path(config.out)
        if dry_run:
            return TrainResult(folder, None, Table(()), {}, config)
        manifest = read_manifest(folder)
        return TrainResult(folder, folder / "final", read_table(folder / "metrics.jsonl"), manifest, config)

    @property
    def last(self) -> dict[str, Any]:
        """The last line of training metrics; empty if there is none."""
        return next((row for row in reversed(self.metrics.rows) if row["split"] == "train"), {})

    @property
    def last_eval(self) -> dict[str, Any]:
        """The last line of evaluation metrics; empty if there is none."""
        return next((row for row in reversed(self.metrics.rows) if row["split"] == "eval"), {})

    @property
    def report(self) -> Path:
        """The HTML report of the run."""
        return self.folder / "report.html"

    def __fspath__(self) -> str:
        return str(self.model or self.folder)

    __str__ = __fspath__

    def __truediv__(self, name: str) -> Path:
        """Return the path of a file in the model folder."""
        return Path(self) / name

    def __repr__(self) -> str:
        if self.model is None:
            return f"dry run of {self.folder}; nothing was trained"
        lines = [f"model   {self.model}", f"report  {self.report}"]
        for split, row in (("train", self.last), ("eval", self.last_eval)):
            if row:
                lines.append(f"{split:<7} {_brief({name: row[name] for name in FIGURES if name in row})}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True, repr=False)
class SampleResult:
    """Sampled responses. Rows have prompt, responses, ended, tokens and origin. `path` is None without `out`."""

    rows: Table
    path: Path | None

    def __repr__(self) -> str:
        number = sum(len(row["responses"]) for row in self.rows)
        return f"{number} responses to {len(self.rows)} prompts{_in(self.path)}"


@dataclass(frozen=True, slots=True, repr=False)
class PairsResult:
    """Preference data made from samples: groups with judgements. `account` counts dropped prompts and notes."""

    rows: Table
    account: Account
    path: Path | None

    def __repr__(self) -> str:
        judgements = sum(len(row.get("judgements", ())) for row in self.rows)
        lines = [f"{len(self.rows)} groups, {judgements} judgements{_in(self.path)}", *self.account.lines()]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True, repr=False)
class ScoreResult:
    """Rewards, one row per pair, and their summary: accuracy, and RewardBench's scores if the data have its subsets."""

    rows: Table
    summary: Mapping[str, Any]
    path: Path | None

    def __repr__(self) -> str:
        figures = {name: value for name, value in self.summary.items() if name != "settings"}
        return f"{len(self.rows)} pairs scored{_in(self.path)}\n{_brief(_flat(figures))}"


@dataclass(frozen=True, slots=True, repr=False)
class WinrateResult:
    """Win rates by policy and temperature.

    rates      the full records: rates[policy][temperature]
    rows       one row per policy and temperature
    agreement  how often the judge agrees with the labels in the data; None without labels
    folder     folder with samples, verdicts and pages; None without `out`
    """

    rates: Mapping[str, Mapping[str, WinRate]]
    rows: Table
    agreement: Mapping[str, float] | None
    folder: Path | None

    def __repr__(self) -> str:
        lines = [
            f"{row['policy']} at T {row['temperature']:g}: wins {row['rate']:.1%} "
            f"({row['low']:.1%} to {row['high']:.1%}) of {row['matches']} matches"
            for row in self.rows
        ]
        return "\n".join(lines or ["dry run; nothing was judged"]) + _in(self.folder)


@dataclass(frozen=True, slots=True, repr=False)
class FrontierResult:
    """Reward and KL of policies, of best of n and of the optimum. Rows have name, kl, reward and intervals."""

    rows: Table
    best_of_n: Table
    optimum: Table
    folder: Path | None

    def __repr__(self) -> str:
        lines = [f"{row['name']}: reward {row['reward']:.3f} at KL {row['kl']:.3f} nats" for row in self.rows]
        return "\n".join(lines) + _in(self.folder)


@dataclass(frozen=True, slots=True, repr=False)
class DataReport:
    """How preference data are read.

    format     the detected format
    account    counts of rows read and used; dropped rows and rows with notes, with their origins
    audit      lengths, repeated prompts, contradictions, leaks
    refusal    the error that training on the data raises with these settings; None if it accepts them
    """

    account: Account
    audit: Audit
    refusal: Exception | None = None

    @property
    def ok(self) -> bool:
        """Whether training accepts the data."""
        return self.refusal is None

    @property
    def format(self) -> str:
        return self.account.format

    @property
    def dropped(self) -> Mapping[str, Sequence[str]]:
        """Origins of the dropped rows, by reason."""
        return self.account.dropped

    @property
    def notes(self) -> Mapping[str, Sequence[str]]:
        """Origins of rows that are used with a note, by note."""
        return self.account.noted

    def __repr__(self) -> str:
        a = self.audit
        counts = f"{a.groups} groups, {a.responses} responses, {a.judgements} judgements, {a.labelled} labelled"
        return "\n".join([*self.account.lines(), counts, f"refused: {self.refusal}" if self.refusal else "accepted"])


def read_table(path: str | os.PathLike[str]) -> Table:
    """Read a JSON Lines file as a table, which is empty if the file does not exist."""
    file = Path(path)
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return Table(tuple(json.loads(line) for line in text.split("\n") if line))


def _in(path: Path | None) -> str:
    return f", in {path}" if path else ""


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Flatten nested values to names with dots."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return flat


def _brief(row: Mapping[str, Any], limit: int = 8) -> str:
    """Return the first values of a row on one line."""
    cells = [
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value!s:.60}" for name, value in row.items()
    ]
    return ", ".join(cells[:limit]) + (", ..." if len(cells) > limit else "")
