"""The page of token rewards: the two responses of each pair, with each token shaded by its reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from preftune.report.page import Piece, Section, write_page

MAX_PAIRS = 20  # shown from the beginning of the data, and of the pairs with the lowest margins
MAX_PROMPT = 600  # characters
Tokens = Sequence[tuple[str, float]]
ESCAPES = str.maketrans({"\n": "\\n\n", "\t": "\\t", "\r": "\\r"})


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
    sizes = sorted(abs(value) for pair in (*first, *worst) for _, value in (*pair.chosen, *pair.rejected))
    # The 98th percentile, so that one rare token does not make all others pale
    strongest = sizes[int(0.98 * (len(sizes) - 1))] if sizes else 0.0
    table = [["pair", "chosen", "rejected", "margin"]]
    table += [[p.origin, *(f"{x:.3f}" for x in (_sum(p.chosen), _sum(p.rejected), p.margin))] for p in worst]
    legend = (
        "The reward of a token is beta * log(policy / reference) of its probability. The reward of a response is the "
        "sum over its tokens. Blue tokens are above 0, orange tokens below. The strongest colour means "
        f"{strongest:.3g} or more. Hover over a token to see its reward."
    )
    sections = [Section("Lowest margins", legend, table if worst else ())]
    sections += [_section(f"Low margin: {pair.origin}", pair, strongest) for pair in worst]
    sections += [_section(pair.origin, pair, strongest) for pair in first]
    write_page(path, title, sections)


def _section(title: str, pair: ShadedPair, strongest: float) -> Section:
    prompt = pair.prompt if len(pair.prompt) <= MAX_PROMPT else f"... {pair.prompt[-MAX_PROMPT:]}"
    sides = [
        (f"{name}: {_sum(tokens):.3f} in {len(tokens)} tokens", [_piece(*token, strongest) for token in tokens])
        for name, tokens in (("chosen", pair.chosen), ("rejected", pair.rejected))
    ]
    return Section(title, f"margin {pair.margin:.3f}", shaded=[("prompt", [Piece(prompt, 0.0, "0", "")]), *sides])


def _piece(text: str, value: float, strongest: float) -> Piece:
    escaped = "".join(c if c in "\n\t\r" or c.isprintable() else repr(c)[1:-1] for c in text).translate(ESCAPES)
    strength = min(abs(value) / strongest, 1.0) if strongest else 0.0
    return Piece(escaped, value, f"{0.75 * strength:.2f}", f"{value:+.4f}")


def _sum(tokens: Tokens) -> float:
    return sum(value for _, value in tokens)
