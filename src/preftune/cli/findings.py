"""The options of `preftune data check` for findings in the texts, and the lines about them."""

from __future__ import annotations

from pathlib import Path

from preftune.errors import ConfigError, did_you_mean
from preftune.findings.bias import one_sided
from preftune.findings.kinds import DEFAULT_DROP, KINDS, Findings, Rate
from preftune.formats.account import format_origins


def drop_kinds(drop: str | None, write: Path | None) -> tuple[str, ...]:
    """Return the kinds of findings that --drop names, or those of the default. Raises ConfigError."""
    if drop is None:
        return DEFAULT_DROP
    if write is None:
        raise ConfigError("this option needs --write", where="--drop", fix="add --write clean.jsonl")
    kinds = tuple(kind.strip() for kind in drop.split(",") if kind.strip())
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"unknown kind of finding {kind!r}", where="--drop", fix=did_you_mean(kind, KINDS))
    if not kinds:
        raise ConfigError("no kind of finding", where="--drop", fix=f"use some of {', '.join(KINDS)}")
    return kinds


def require_report_name(out: Path | None) -> None:
    """Raise ConfigError for the name of a report that is neither JSON nor HTML."""
    if out and out.suffix not in (".json", ".html"):
        raise ConfigError(f"unknown type of report {out.suffix!r}", where="--out", fix="write FILE.json or FILE.html")


def finding_lines(findings: Findings, train: str, evaluation: str) -> list[str]:
    """Return one line per kind and place that has findings, one with the kinds that have none, and the bias."""
    lines, none = [], []
    for kind, words in KINDS.items():
        places = findings.lines.get(kind)
        if not places:
            none.append(kind)
            continue
        lines.append(f"{kind}: {words}")
        for place, origins in places.items():
            responses = findings.responses.get(place)
            share = f" of {responses} ({len(origins) / responses:.1%})" if responses else ""
            source = evaluation if place == "evaluation" else train
            lines.append(f"  {place:<10} {len(origins)}{share}, {format_origins(origins, source)}")
    lines += [f"no findings: {', '.join(none)}"] if none else []
    for name, bias in findings.bias.items():
        if bias.chosen is None or bias.rejected is None:
            share = f"{_share(bias.preferred)} of the pairs whose lengths in characters differ"
            lines.append(f"bias: the chosen response is {name} in {share}")
        else:
            lines.append(
                f"bias: {name} in {bias.chosen.share:.1%} of the chosen and {bias.rejected.share:.1%} of the rejected "
                f"responses; if only one has it, it is the chosen one in {_share(bias.preferred)}"
            )
    warning = one_sided(findings.bias["longer"]) if "longer" in findings.bias else ""
    return [*lines, *([f"warning: {warning}"] if warning else [])]


def _share(rate: Rate) -> str:
    if rate.share is None:
        return "none"
    return f"{rate.share:.1%} ({rate.low:.1%} to {rate.high:.1%}, n = {rate.total})"
