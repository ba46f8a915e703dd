"""Draw reward against KL as a small SVG for a Markdown page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444", "#8B5A2B")
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 760, 460, 60, 30, 190, 50
Points = Sequence[tuple[str, float, float, float, float]]  # name, KL, reward and their half intervals


def plane(
    path: Path,
    title: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    points: Mapping[str, Points],
    max_kl: float,
) -> None:
    """Write the SVG. Points with a KL above `max_kl` nats are labelled at the right edge."""
    every = [p[2] for group in points.values() for p in group] + [y for line in lines.values() for _, y in line]
    low, high = min(every) - 0.03, max(every) + 0.03

    def at(kl: float, reward: float) -> tuple[float, float]:
        x = LEFT + min(max(kl, 0), max_kl) / max_kl * (WIDTH - LEFT - RIGHT)
        return x, HEIGHT - BOTTOM - (reward - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-size="12" '
        'font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="18" font-size="14">{escape(title)}</text>',
    ]
    for i in range(6):
        x, y = at(max_kl * i / 5, low)[0], at(0, low + (high - low) * i / 5)[1]
        out.append(f'<line x1="{x:.0f}" x2="{x:.0f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        out.append(f'<text x="{x:.0f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{max_kl * i / 5:.1f}</text>')
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 6}" y="{y + 4:.0f}" text-anchor="end">{low + (high - low) * i / 5:.2f}</text>')
    out.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">KL, nats per response</text>'
    )
    legend = 0
    for number, (name, line) in enumerate(lines.items()):
        shown = [at(kl, reward) for kl, reward in line if kl <= max_kl]
        dash = ' stroke-dasharray="5 4"' if number else ""
        route = " ".join(f"{x:.1f},{y:.1f}" for x, y in shown)
        out.append(f'<polyline points="{route}" fill="none" stroke="{COLOURS[number]}" stroke-width="2"{dash}/>')
        legend += 1
        out.append(
            f'<text x="{WIDTH - RIGHT + 10}" y="{TOP + 18 * legend}" fill="{COLOURS[number]}">{escape(name)}</text>'
        )
    for number, (name, group) in enumerate(points.items(), start=len(lines)):
        colour = COLOURS[number % len(COLOURS)]
        legend += 1
        out.append(f'<text x="{WIDTH - RIGHT + 10}" y="{TOP + 18 * legend}" fill="{colour}">{escape(name)}</text>')
        for label, kl, reward, kl_half, half in group:
            x, y = at(kl, reward)
            if kl > max_kl:
                out.append(
                    f'<text x="{x - 4:.0f}" y="{y + 14:.0f}" text-anchor="end" fill="{colour}">{kl:.0f} nats</text>'
                )
            else:
                wide, tall = at(kl + kl_half, reward)[0] - x, y - at(kl, reward + half)[1]
                for dx, dy in ((wide, 0.0), (0.0, tall)):
                    ends = f'x1="{x - dx:.1f}" x2="{x + dx:.1f}" y1="{y - dy:.1f}" y2="{y + dy:.1f}"'
                    out.append(f'<line {ends} stroke="{colour}"/>')
            named = f"<title>{escape(label)}</title>"
            out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}">{named}</circle>')
    path.write_text("\n".join([*out, "</svg>"]) + "\n")
