"""Win rates of policies with their intervals, one row for each policy and temperature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from preftune.report.figures.words import percent
from preftune.report.page import Card


def win_rates(rates: Mapping[str, Mapping[str, Any]], judge: str, against: str) -> Card:
    """Return the card. `rates` are measures.win_rate.WinRate by policy and temperature."""
    rows = [
        {
            "policy": policy,
            "temperature": float(temperature),
            "matches": rate.matches,
            **{name: round(float(getattr(rate, name)), 4) for name in ("rate", "low", "high")},
            "adjusted": round(float(rate.length_adjusted), 4),
            "adjusted_low": round(float(rate.length_adjusted_low), 4),
            "adjusted_high": round(float(rate.length_adjusted_high), 4),
        }
        for policy, by in rates.items()
        for temperature, rate in by.items()
    ]
    best = max(rows, key=lambda row: row["rate"])
    at = f"{best['policy']} at temperature {best['temperature']:g}"
    return Card(
        "win_rates",
        "Who wins, and how sure that is",
        f"{at} wins {percent(best['rate'])} ({percent(best['low'])} to {percent(best['high'])}); at equal lengths "
        f"{percent(best['adjusted'])}.",
        "Diamonds are win rates with 95 % intervals; squares are the rates at equal lengths. The line is 50 %, no "
        "preference.",
        "The interval lies right of the line, and the square is near the diamond.",
        "A square far left of its diamond: the judge prefers long responses. An interval across the line: judge more "
        "prompts.",
        f"Measured: {best['matches']} matches for each row, each judged in both orders by {judge}; against {against}.",
        {"rows": rows},
        "win_rates",
        wide=True,
    )
