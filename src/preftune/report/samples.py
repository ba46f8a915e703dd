"""Responses of a policy before and after training, from the folder `samples` of its run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.report.page import Folded

TITLE = "Samples before and after"
SHOWN = 6  # prompts in the report
PRINTED = 2  # prompts at the end of a run
MAX_TEXT = 1500  # characters of a text in the report
MAX_LINE = 150  # characters of a text on a terminal


@dataclass(frozen=True, slots=True)
class Comparison:
    """A prompt, and responses to it as (what it is, text): before training, after it, and those of the data."""

    prompt: str
    origin: str
    responses: tuple[tuple[str, str], ...]


def comparisons(folder: Path, unit: str = "step", last: int | None = None) -> list[Comparison]:
    """Return the prompts of the evaluation at step `last`, by default the last one, of the run in `folder`.

    The list is empty if the run has saved no samples. Raises ValueError for damaged files.
    A run whose evaluations did not all have the same prompts has fewer responses for some of them.
    """
    try:
        return _comparisons(folder, unit, last)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{folder / 'samples'}: {type(error).__name__}: {error}") from None


def _comparisons(folder: Path, unit: str, last: int | None) -> list[Comparison]:
    paths = (folder / "samples").glob("step-*.jsonl")
    steps = sorted(path for path in paths if path.stem.removeprefix("step-").isdecimal())
    if not steps:
        return []
    steps = [path for path in steps if last is None or _step(path) <= last] or steps
    numbers = [_step(path) for path in steps]
    by_prompt = {row["prompt"]: row for row in _rows(folder / "samples" / "data.jsonl")}
    evaluations = [(n, {row["prompt"]: row for row in _rows(path)}) for n, path in zip(numbers, steps, strict=True)]
    shown = evaluations[:1] + evaluations[1:][-1:]
    result = []
    for prompt in shown[-1][1]:
        responses = [_sampled(f"{unit} {n}", rows[prompt]) for n, rows in shown if prompt in rows]
        data = by_prompt.get(prompt, {})
        responses += [(f"{r['kind']}: {r['tokens']} tokens", str(r["text"])) for r in data.get("responses", [])]
        result.append(Comparison(prompt, str(data.get("origin", "")), tuple(responses)))
    return result


def samples_section(folder: Path, unit: str = "step", last: int | None = None) -> list[Folded]:
    """Return a section with some prompts and their responses; empty if the run has saved no samples."""
    try:
        every = comparisons(folder, unit, last)
    except ValueError as error:
        return [Folded(TITLE, f"The samples could not be read: {error}", open=True)]
    if not every:
        return []
    texts: list[tuple[str, str]] = []
    for number, one in enumerate(every[:SHOWN], start=1):
        title = f"Prompt {number}" + (f" ({one.origin})" if one.origin else "")
        texts.append((title, shortened(one.prompt, from_end=True)))
        texts += [(label, shortened(text)) for label, text in one.responses]
    text = (
        f"Responses of the policy to the same prompts with the same random numbers, before and after training: "
        f"{min(SHOWN, len(every))} of the {len(every)} prompts in the folder samples/."
    )
    return [Folded(TITLE, text, texts, open=True)]


def before_and_after(folder: Path, unit: str = "step", last: int | None = None) -> list[str]:
    """Return lines with the responses to two prompts, cut to one line each; empty without samples of two steps."""
    lines: list[str] = []
    for one in comparisons(folder, unit, last)[:PRINTED]:
        sampled = [(title, text) for title, text in one.responses if title.startswith(unit)]
        if len(sampled) == 2:
            lines.append(f"  prompt: {one_line(one.prompt, from_end=True)}")
            lines += [f"    {title}: {one_line(text)}" for title, text in sampled]
    return ["samples before and after:", *lines] if lines else []


def one_line(text: str, most: int = MAX_LINE, *, from_end: bool = False) -> str:
    """Return a text as one line of at most `most` characters, without control characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(line) <= most:
        return line
    return f"...{line[3 - most :]}" if from_end else f"{line[: most - 3]}..."


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def _sampled(when: str, row: dict[str, Any]) -> tuple[str, str]:
    """Return the title and text of the first response of an evaluation."""
    cut = "" if row["ended"][0] else ", cut off"
    return f"{when}: {row['tokens'][0]} tokens{cut}", str(row["responses"][0])


def shortened(text: str, *, from_end: bool = False) -> str:
    """Return a text for a page, cut to MAX_TEXT characters."""
    if len(text) > MAX_TEXT:
        rest = f"[{len(text) - MAX_TEXT:,} more characters]"
        text = f"{rest} {text[-MAX_TEXT:]}" if from_end else f"{text[:MAX_TEXT]} {rest}"
    return text or "(empty)"


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
