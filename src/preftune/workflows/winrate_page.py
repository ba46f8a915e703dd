"""The page of `preftune eval winrate`."""

from __future__ import annotations

from collections.abc import Mapping

from preftune.measures.win_rate import WinRate
from preftune.report.figures.win_rates import win_rates
from preftune.report.figures.words import percent
from preftune.report.page import Number, Page, Part, Table

EVEN = 0.5
HEADS = (
    "policy", "temperature", "win rate", "95 %", "at equal lengths", "won, tied, lost", "verdicts unread",
    "first shown wins", "words",
)  # fmt: skip
Rates = Mapping[str, Mapping[str, WinRate]]


def page_of(judge: str, against: str, rates: Rates, label_agreement: Mapping[str, float] | None) -> Page:
    """Return the page of the win rates, with the best policy as its verdict."""
    policy, t, best = max(((p, t, r) for p, by in rates.items() for t, r in by.items()), key=lambda one: one[2].rate)
    sure = "" if best.low > EVEN or best.high < EVEN else f"; the interval contains {percent(EVEN)}"
    numbers = [
        Number(percent(best.rate), f"win rate of {policy} at temperature {t} ({interval(best.low, best.high)})"),
        Number(
            percent(best.length_adjusted),
            f"at equal lengths ({interval(best.length_adjusted_low, best.length_adjusted_high)})",
        ),
    ]
    if label_agreement:
        agreement = percent(label_agreement["agreement"])
        numbers.append(Number(agreement, "of the labels of the data agree with the judge"))
    else:
        first = f"wins of the response that is shown first; {percent(EVEN)} is unbiased"
        numbers.append(Number(percent(best.first_shown), first))
    rows = [row(p, t, rate) for p, by in rates.items() for t, rate in by.items()]
    parts: list[Part] = [
        win_rates(rates, judge, against),
        Table("Win rates", HEADS, rows, f"Judge: {judge}; against {against}."),
        *agreement_table(label_agreement),
    ]
    verdict = f"{policy} wins {percent(best.rate)} of its matches against {against}{sure}."
    return Page("preftune eval winrate", verdict, judge, numbers=numbers, parts=parts)


def row(policy: str, temperature: str, rate: WinRate) -> list[str]:
    """Return the cells of a policy at a temperature."""
    adjusted = interval(rate.length_adjusted_low, rate.length_adjusted_high, 1)
    return [
        policy,
        temperature,
        percent(rate.rate, 1),
        interval(rate.low, rate.high, 1),
        f"{percent(rate.length_adjusted, 1)} ({adjusted})",
        f"{rate.wins}, {rate.ties}, {rate.losses}",
        f"{rate.unread} of {2 * rate.matches}",
        percent(rate.first_shown, 1),
        f"{rate.words:.0f} against {rate.other_words:.0f}",
    ]


def interval(low: float, high: float, digits: int = 0) -> str:
    """Return the ends of an interval of shares."""
    return f"{percent(low, digits)} to {percent(high, digits)}"


def agreement_table(label_agreement: Mapping[str, float] | None) -> list[Table]:
    """Return how often the judge agrees with the labels of the data; empty without labels."""
    if not label_agreement:
        return []
    rate = percent(label_agreement["agreement"], 1)
    counts = [f"{label_agreement[name]:g}" for name in ("pairs", "tied_labels", "unread")]
    head = ["judge agrees with the label", "95 %", "labels", "tied labels", "verdicts unread"]
    cells = [rate, interval(label_agreement["low"], label_agreement["high"], 1), *counts]
    return [Table("Agreement with the labels of the data", head, [cells], "A tie counts as one half.")]
