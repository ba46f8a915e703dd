"""The results of a campaign, and its table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Result:
    """One case: the row of the table that it belongs to, what happened, and why it failed, or ""."""

    row: str
    outcome: str
    failure: str = ""
    number: int = 0


def table(results: Iterable[Result]) -> str:
    """Format cases, passed cases and outcomes, one line per row."""
    rows = by_row(results)
    width = max(map(len, rows), default=0)
    lines = [f"{'':{width}}   cases  passed  outcomes"]
    for row, facts in rows.items():
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in facts["outcomes"].items())
        lines.append(f"{row:{width}}  {facts['cases']:6}  {facts['passed']:6}  {outcomes}")
    return "\n".join(lines)


def by_row(results: Iterable[Result]) -> dict[str, dict[str, Any]]:
    """Return cases, passed cases and outcomes of each row, and of all."""
    rows: dict[str, list[Result]] = {}
    for result in results:
        rows.setdefault(result.row, []).append(result)
    rows = dict(sorted(rows.items()))
    rows["all"] = [result for row in rows.values() for result in row]
    return {
        name: {
            "cases": len(row),
            "passed": sum(not result.failure for result in row),
            "outcomes": dict(Counter(result.outcome for result in row).most_common()),
        }
        for name, row in rows.items()
    }
