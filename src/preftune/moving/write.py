"""Write a converted config as YAML with comments, and the report of a conversion."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from preftune.config.load import dump_value
from preftune.moving import objective
from preftune.moving.draft import Draft, Entry, Kind

TITLES: dict[Kind, str] = {
    "lost": "not carried over",
    "unknown": "keys that are not recognised; check whether they matter",
    "same": "no setting needed",
    "off": "turned off or empty there",
}


def config_text(draft: Draft, config: dict[str, Any], name: str, command: str, settings: Sequence[str]) -> str:
    """Return the YAML of a converted config. Comments say which keys set which, and what is not carried over."""
    head = [f"Converted from {draft.tool}'s {name} by preftune import-config. Run it with: {command}"]
    head += ["", *_objective(draft, config)]
    lines = [*(f"# {line}".rstrip() for line in head), ""]
    comments = {entry.ours: _short_comment(draft, config, entry) for entry in draft.entries if entry.ours}
    comments |= {setting.partition("=")[0]: "set on the command line" for setting in settings}
    for section, value in config.items():
        comment = comments.get(section, "")
        if isinstance(value, dict) and section != "loss":
            lines.append(f"{section}:{'  # ' + comment if comment else ''}")
            lines += [_line(f"  {key}", item, comments.get(f"{section}.{key}", "")) for key, item in value.items()]
        elif isinstance(value, list) and section == "loss":
            lines.append(f"{section}:{'  # ' + comment if comment else ''}")
            lines += [f"  - {dump_value(item)}" for item in value]
        else:
            lines.append(_line(section, value, comment))
    for kind in TITLES:
        entries = draft.listed(kind)
        lines += ["", f"# {TITLES[kind][0].upper()}{TITLES[kind][1:]}:"] if entries else []
        lines += [f"#   {text}" for text in _grouped(entries)]
    return "\n".join(lines) + "\n"


def report(draft: Draft, config: dict[str, Any], source: str, settings: Sequence[str]) -> list[str]:
    """Return the lines that the command prints."""
    lines = [f"read {source}: {len(draft.values)} keys"]
    lines += ["", "objective and notes", *(f"  {line}" for line in _objective(draft, config) or ["none"])]
    settable = [entry for entry in draft.entries if entry.ours]
    rows = [(_ours(config, entry.ours), _comment(draft, entry)) for entry in settable]
    rows += [(setting.replace("=", ": ", 1), "set on the command line") for setting in settings]
    width = min(max((len(ours) for ours, _ in rows), default=0), 44)
    lines += ["", "carried over", *(f"  {ours:<{width}}  <- {theirs}" for ours, theirs in rows)]
    for kind in TITLES:
        texts = _grouped(draft.listed(kind))
        lines += ["", TITLES[kind], *(f"  {text}" for text in texts)] if texts else []
    return lines


def _objective(draft: Draft, config: dict[str, Any]) -> list[str]:
    """Return the objective that the config trains, and where the other program differs."""
    notes = list(dict.fromkeys(draft.objective))
    if draft.method != "dpo" or "loss" not in config:
        return notes
    reference = str(config.get("reference", {}).get("kind", ""))
    loss = config["loss"]
    terms = loss if isinstance(loss, list) else [loss]
    if any(term.get("name") not in objective.FORMULAS for term in terms):
        return notes
    return [f"trains {line}" for line in objective.lines(loss, reference)[:-1]] + [
        f"  with {objective.SYMBOLS}",
        *notes,
    ]


def _comment(draft: Draft, entry: Entry) -> str:
    theirs = entry.theirs if entry.kind == "set" else f"{draft.tool}'s default ({entry.theirs} is not set)"
    return f"{theirs}; {entry.note}" if entry.note else theirs


def _short_comment(draft: Draft, config: dict[str, Any], entry: Entry) -> str:
    """Return the comment of a line of YAML: without the value, where that is the same as preftune's."""
    name, _, value = entry.theirs.partition(": ")
    same = entry.kind == "set" and len(entry.keys) == 1 and value == _ours(config, entry.ours).partition(": ")[2]
    return _comment(draft, replace(entry, theirs=name) if same else entry)


def _ours(config: dict[str, Any], path: str) -> str:
    section, _, key = path.partition(".")
    value = config.get(section)
    if key and isinstance(value, dict):
        value = value.get(key)
    return f"{path}: {dump_value(value)}"


def _grouped(entries: Iterable[Entry]) -> list[str]:
    """Return one line per reason, with all keys that have it."""
    groups: dict[str, list[str]] = {}
    for entry in entries:
        groups.setdefault(entry.note, []).append(entry.theirs)
    return [f"{', '.join(keys)}{': ' if note else ''}{note}" for note, keys in groups.items()]


def _line(key: str, value: Any, comment: str) -> str:
    return f"{key}: {dump_value(value)}{'  # ' + comment if comment else ''}"
