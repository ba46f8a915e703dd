"""Length and format bias: properties that the chosen responses have more often than the rejected ones."""

from __future__ import annotations

import math
import re
from collections import Counter

from preftune.findings.kinds import Bias, Rate

Z = 1.959963984540054  # 95 %
ONE_SIDED, FEW = 0.95, 30  # share of pairs, number of pairs; the reasons are in measures/diagnosis.py

PROPERTIES = {
    "markdown heading": re.compile(r"^ {0,3}#{1,6} +\S", re.M),
    "list": re.compile(r"^ {0,6}(?:[-*+•]|\d{1,3}[.)]) +\S", re.M),
    "bold": re.compile(r"\*\*[^\s*](?:[^*\n]{0,200}[^\s*])?\*\*"),
    "code block": re.compile(r"^[ \t]*(?:```|~~~)", re.M),
    "table": re.compile(r"^[ \t]{0,8}\|?[ \t]{0,8}:?-{3,}:?[ \t]{0,8}\|", re.M),
}


def rate(count: float, total: int) -> Rate:
    """Return the share count / total with its 95 % interval (Wilson 1927)."""
    if not total:
        return Rate(count, total, None, None, None)
    p, z2 = count / total, Z * Z
    middle = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = Z / (1 + z2 / total) * math.sqrt(p * (1 - p) / total + z2 / (4 * total * total))
    return Rate(count, total, p, max(0.0, middle - half), min(1.0, middle + half))


def properties(text: str) -> frozenset[str]:
    """Return the names of the properties that the response has."""
    return frozenset(name for name, pattern in PROPERTIES.items() if pattern.search(text))


def one_sided(longer: Bias) -> str:
    """Return a warning if the same side is longer in almost all pairs of different length, else ""."""
    count, total = longer.preferred.count, longer.preferred.total
    most = max(count, total - count)
    if total < FEW or most <= ONE_SIDED * total:
        return ""
    is_chosen = most == count
    which, remedy = "chosen" if is_chosen else "rejected", " or use loss r_dpo or ld_dpo" if is_chosen else ""
    return (
        f"the {which} response is longer in {most / total:.1%} of the pairs that differ, so a policy can lower the "
        f"loss by length alone; balance the lengths{remedy}"
    )


class BiasCounts:
    """Counts over pairs."""

    def __init__(self) -> None:
        self._pairs = self._longer = self._different = 0
        self._chosen: Counter[str] = Counter()
        self._rejected: Counter[str] = Counter()
        self._only_chosen: Counter[str] = Counter()
        self._only_rejected: Counter[str] = Counter()

    def add(self, chosen: tuple[int, frozenset[str]], rejected: tuple[int, frozenset[str]]) -> None:
        """Count a pair, given the length and the properties of its responses."""
        self._pairs += 1
        self._different += chosen[0] != rejected[0]
        self._longer += chosen[0] > rejected[0]
        self._chosen.update(chosen[1])
        self._rejected.update(rejected[1])
        self._only_chosen.update(chosen[1] - rejected[1])
        self._only_rejected.update(rejected[1] - chosen[1])

    def result(self) -> dict[str, Bias]:
        """Return the bias for the length and for each property that occurs."""
        if not self._pairs:
            return {}
        result = {"longer": Bias(None, None, rate(self._longer, self._different))}
        for name in PROPERTIES:
            chosen, rejected = self._chosen[name], self._rejected[name]
            if chosen or rejected:
                one = self._only_chosen[name]
                result[name] = Bias(
                    rate(chosen, self._pairs), rate(rejected, self._pairs), rate(one, one + self._only_rejected[name])
                )
        return result
