"""Line charts as SVG, which Markdown pages and model cards can show without scripts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

COLOURS = ("#0068a8", "#b84300", "#00755a", "#96307a", "#8a6500", "#616a77")  # as in assets/tokens.css
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 720, 300, 64, 34, 20, 44
Points = Sequence[tuple[float, float]]


def line_chart(title: str, y: str, series: Mapping[str, Points], x: str = "step") -> str:
    """Return an SVG with one line for each name. Points that are not finite are left out."""
    lines = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in series.items()}
    lines = {name: points for name, points in lines.items() if points}
    x_ticks = ticks(*_range(p[0] for points in lines.values() for p in points))
    y_ticks = ticks(*_range(p[1] for points in lines.values() for p in points))

    def at(point: tuple[float, float]) -> str:
        """Return the position of a point as "x,y"."""
        right = (point[0] - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (point[1] - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return f"{LEFT + right * (WIDTH - LEFT - RIGHT):.1f},{HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM):.1f}"

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT + 18 * len(lines)}" font-size="12" '
        'font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{HEIGHT + 18 * len(lines)}" fill="white"/>',
        f'<text x="{LEFT}" y="18" font-size="14">{escape(title)}</text>',
    ]
    for tick in x_ticks:
        right, low = at((tick, y_ticks[0])).split(",")
        out.append(f'<line x1="{right}" x2="{right}" y1="{TOP}" y2="{low}" stroke="#ddd"/>')
        out.append(f'<text x="{right}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:.6g}</text>')
    for tick in y_ticks:
        left, height = at((x_ticks[0], tick)).split(",")
        out.append(f'<line x1="{left}" x2="{WIDTH - RIGHT}" y1="{height}" y2="{height}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 6}" y="{float(height) + 4:.1f}" text-anchor="end">{tick:.6g}</text>')
    out.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 10}" text-anchor="end">{escape(x)}</text>')
    out.append(f'<text x="{LEFT}" y="{HEIGHT - 10}" fill="#555">{escape(y)}</text>')
    for number, (name, points) in enumerate(lines.items()):
        colour, below = COLOURS[number % len(COLOURS)], HEIGHT + 18 * number + 6
        if len(points) == 1:
            centre = at(points[0]).split(",")
            out.append(f'<circle cx="{centre[0]}" cy="{centre[1]}" r="3" fill="{colour}"/>')
        else:
            route = " ".join(map(at, points))
            out.append(f'<polyline points="{route}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        out.append(f'<rect x="{LEFT}" y="{below - 6}" width="18" height="3" fill="{colour}"/>')
        out.append(f'<text x="{LEFT + 26}" y="{below}">{escape(name)}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def _range(values: Iterable[float]) -> tuple[float, float]:
    numbers = list(values)
    return (min(numbers), max(numbers)) if numbers else (0.0, 1.0)


def ticks(low: float, high: float, number: int = 5) -> list[float]:
    """Return about `number` round numbers at equal distances. The first is at most `low`, the last at least `high`."""
    if high <= low:
        half = abs(low) / 2 or 0.5
        low, high = low - half, high + half
    rough = (high - low) / number
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]
