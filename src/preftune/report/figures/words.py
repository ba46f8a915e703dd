"""Numbers as text, in the same form as in assets/core.js."""

from __future__ import annotations

import math
import re
from decimal import ROUND_HALF_UP, Decimal

MINUS = "\u2212"


def fixed(x: float, digits: int) -> str:
    """Return a number of at least 0 with `digits` digits after the point; a tie is rounded up, as by toFixed."""
    return str(Decimal(x).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def in_plain_text(text: str) -> str:
    """Return a text of a page for a terminal, without its special spaces and signs."""
    return text.replace("\u00a0", " ").replace(MINUS, "-").replace("\u00b1", "+-")


def in_page_text(text: str) -> str:
    """Return a message of a terminal for a page, with its special spaces and signs."""
    return re.sub(r"(?<=\d)%", "\u00a0%", text).replace(" +- ", " \u00b1 ")


def num(x: float, digits: int = 2) -> str:
    """Return a number with a fixed number of digits."""
    text = fixed(abs(x), digits)
    return (MINUS if x < 0 and float(text) != 0 else "") + text


def signed(x: float, digits: int = 2) -> str:
    """Return a number with its sign; zero has none."""
    text = fixed(abs(x), digits)
    return text if float(text) == 0 else (MINUS if x < 0 else "+") + text


def percent(x: float, digits: int = 0) -> str:
    """Return a share as a percentage."""
    return f"{num(100 * x, digits)}\u00a0%"


def short(x: float) -> str:
    """Return a number with three significant digits; very large and very small ones with a power of ten."""
    if x == 0 or not math.isfinite(x):
        return "0" if x == 0 else str(x)
    size = abs(x)
    if size >= 1e5 or size < 1e-3:
        mantissa, exponent = f"{size:.1e}".split("e")
        text = f"{mantissa.removesuffix('.0')}e{exponent[0].replace('+', '').replace('-', MINUS)}{int(exponent[1:])}"
    else:
        text = f"{float(f'{size:.3g}'):.10f}".rstrip("0").rstrip(".")
    return (MINUS if x < 0 else "") + text
