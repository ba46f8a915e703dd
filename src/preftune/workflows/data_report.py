"""The report of `preftune data check` as JSON or as an HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from preftune.files import write_json
from preftune.findings.kinds import KINDS, Rate
from preftune.formats.account import format_origins
from preftune.report.page import Folded, Number, Page, Part, Table, write_page
from preftune.types import PreferenceGroup, content
from preftune.workflows.check_data import Checked

SHOWN_LINES = 50  # of each finding on the page; the JSON file has all
SHOWN_CHARACTERS = 300


def as_json(checked: Checked) -> dict[str, Any]:
    """Return all counts with all origins."""
    formats = list(dict.fromkeys(account.format for account in checked.train))
    rows: dict[str, Any] = {"format": formats[0] if len(formats) == 1 else formats}
    rows |= {name: sum(getattr(account, name) for account in checked.train) for name in ("read", "kept")}
    refusal = checked.refusal
    bias = {name: asdict(value) for name, value in checked.findings.bias.items()}
    other = {
        "findings": checked.findings.as_json(),
        "bias": bias,
        "evaluation": {
            a.source: {"read": a.read, "dropped": _lists(a.dropped), "noted": _lists(a.noted)} for a in checked.held_out
        },
        "too_long_for_the_model": list(checked.too_long),
        "refused": {"exit_code": refusal.exit_code, "message": str(refusal)} if refusal else None,
    }
    lists = {"dropped": _lists(*(a.dropped for a in checked.train)), "noted": _lists(*(a.noted for a in checked.train))}
    return {**rows, **lists, **asdict(checked.audit), **_mixture(checked), **other}


def _lists(*origins: Any) -> dict[str, list[str]]:
    """Return the origins of each reason, in all sources."""
    lists: dict[str, list[str]] = {}
    for source in origins:
        for reason, rows in source.items():
            lists.setdefault(reason, []).extend(rows)
    return lists


def _mixture(checked: Checked) -> dict[str, Any]:
    """Return what was read from each source of a mixture, and how much of it an epoch has."""
    if not checked.uses:
        return {}
    return {
        "sources": [
            {"name": use.name, "path": use.path, "format": a.format, "read": a.read, "kept": a.kept}
            | {"groups": use.groups, "per_epoch": use.per_epoch, "share": use.share}
            for use, a in zip(checked.uses, checked.train, strict=True)
        ]
    }


def write_report(path: Path, checked: Checked, lines: Sequence[str]) -> None:
    """Write the report to a .json or .html file. `lines` is the printed report. Raises StorageError."""
    if path.suffix == ".json":
        write_json(path, as_json(checked))
    else:
        write_page(path, _page(checked, lines))


def _page(checked: Checked, lines: Sequence[str]) -> Page:
    findings, train, evaluation = checked.findings, checked.source, checked.evaluation
    rows = []
    for kind in KINDS:
        for place, origins in findings.lines.get(kind, {}).items():
            total = findings.responses.get(place)
            share = f"{len(origins) / total:.1%}" if total else ""
            source = evaluation if place == "evaluation" else train
            rows.append((kind, place, str(len(origins)), share, format_origins(origins, source, SHOWN_LINES)))
    bias = [
        (name, _percent(b.chosen), _percent(b.rejected), _percent(b.preferred)) for name, b in findings.bias.items()
    ]
    none = ", ".join(kind for kind in KINDS if kind not in findings.lines)
    parts: list[Part] = [
        Table("Findings", ("kind", "where", "rows", "share", "lines"), rows, f"No findings: {none}." if none else ""),
        Table(
            "Length and format bias",
            ("property", "chosen", "rejected", "the chosen one has it, if only one has"),
            bias,
            "Shares with 95 % Wilson intervals.",
        ),
        Folded("Examples: the first row of each kind", code="\n\n".join(_examples(checked))),
        Folded("Report as printed", code="\n".join(lines)),
    ]
    read, kept = (sum(getattr(account, name) for account in checked.train) for name in ("read", "kept"))
    defects = sum(len(origins) for by in findings.lines.values() for place, origins in by.items())
    verdict = (
        "Training on these data fails."
        if checked.refusal
        else f"{kept:,} of {read:,} rows can be trained on; {_about_findings(len(rows))}."
    )
    return Page(
        title="preftune data check",
        about=str(checked.source),
        verdict=verdict,
        warnings=[str(checked.refusal)] if checked.refusal else [],
        numbers=[
            Number(f"{kept:,}", f"rows kept, of {read:,} read"),
            Number(f"{read - kept:,}", "rows dropped, each with its reason"),
            Number(f"{defects:,}", "rows with a finding"),
        ],
        parts=parts,
    )


def _about_findings(number: int) -> str:
    if number == 0:
        return "no check has a finding"
    return "one check has findings" if number == 1 else f"{number} checks have findings"


def _percent(rate: Rate | None) -> str:
    if rate is None or rate.share is None:
        return ""
    return f"{rate.share:.1%} ({rate.low:.1%} to {rate.high:.1%}), n = {rate.total}"


def _examples(checked: Checked) -> list[str]:
    """Return the first row of each kind of finding, with its texts shortened."""
    first: dict[str, list[str]] = {}
    for kind, words in KINDS.items():
        places = {place: origins for place, origins in checked.findings.lines.get(kind, {}).items() if origins}
        places.pop("evaluation", None)
        for origins in list(places.values())[:1]:
            first.setdefault(origins[0], []).append(f"{kind}: {words}")
    rows: dict[str, PreferenceGroup] = {}
    for group in checked.groups:
        if group.origin in first:
            rows.setdefault(group.origin, group)
    return [
        "\n".join([*first[origin], origin, *(f"  {_short(text)}" for text in (group.prompt, *group.responses))])
        for origin, group in rows.items()
    ]


def _short(text: Any) -> str:
    whole = content(text)
    return repr(whole[:SHOWN_CHARACTERS]) + (" ..." if len(whole) > SHOWN_CHARACTERS else "")
