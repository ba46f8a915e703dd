"""The page of token rewards: the two responses of each pair, with each token shaded by its reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from preftune.report.figures.pair_cards import TOKENS_HEALTHY, TOKENS_READ, TOKENS_TITLE, TOKENS_WARNS, tokens_sentence
from preftune.report.page import Card, Page, Part, Table, write_page

MAX_PAIRS = 20  # shown from the beginning of the data, and of the pairs with the lowest margins
MAX_PROMPT = 600  # characters
Tokens = Sequence[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class ShadedPair:
    """A pair: its place in the data, the prompt, and the tokens of both responses with their rewards."""

    origin: str
    prompt: str
    chosen: Tokens
    rejected: Tokens

    @property
    def margin(self) -> float:
        return _sum(self.chosen) - _sum(self.rejected)


def pairs_to_show(margins: Sequence[float]) -> tuple[list[int], list[int]]:
    """Return the indices of the first pairs, and of the pairs with the lowest margins below 0."""
    wrong = sorted((i for i, margin in enumerate(margins) if margin < 0), key=lambda i: margins[i])
    return list(range(len(margins)))[:MAX_PAIRS], wrong[:MAX_PAIRS]


def write_token_page(path: Path, title: str, first: Sequence[ShadedPair], worst: Sequence[ShadedPair]) -> None:
    """Write a page with the pairs with the lowest margins and the first pairs."""
    rows = [
        {
            "prompt": f"{pair.origin}{': low margin' if place < len(worst) else ''}\n{pair.prompt[-MAX_PROMPT:]}",
            "chosen": [[text, round(value, 5)] for text, value in pair.chosen],
            "rejected": [[text, round(value, 5)] for text, value in pair.rejected],
            "margin": round(pair.margin, 5),
        }
        for place, pair in enumerate([*worst, *first])
    ]
    wrong = len(worst)
    card = Card(
        "tokens",
        TOKENS_TITLE,
        tokens_sentence(rows[0]) if rows else "",
        TOKENS_READ,
        TOKENS_HEALTHY,
        TOKENS_WARNS,
        f"Measured: {len(rows)} pairs, the {wrong} with the lowest margins below 0 first.",
        {"pairs": rows},
        "tokens",
    )
    table = Table(
        "Lowest margins",
        ("pair", "chosen", "rejected", "margin"),
        [[p.origin, *(f"{x:.3f}" for x in (_sum(p.chosen), _sum(p.rejected), p.margin))] for p in worst],
    )
    verdict = f"{wrong} of the shown pairs are in the wrong order." if wrong else "All pairs are in the right order."
    parts: list[Part] = [*([card] if rows else []), *([table] if worst else [])]
    write_page(path, Page("preftune score: token rewards", verdict, about=title, parts=parts))


def _sum(tokens: Tokens) -> float:
    return sum(value for _, value in tokens)
