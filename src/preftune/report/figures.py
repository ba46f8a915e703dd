"""Plotly figures from plain numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import plotly.graph_objects as go

from preftune.formulas import Z95

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # distinguishable for colour-blind readers
Series = Mapping[str, Sequence[tuple[float, float]]]


def curves(title: str, y: str, series: Series, x: str = "step", level: tuple[str, float] | None = None) -> Any:
    """Draw a line for each name. `level` is the name and value of a horizontal line."""
    figure = _figure(title, x, y)
    for colour, (name, points) in zip(cycle(COLOURS), series.items(), strict=False):
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        figure.add_trace(go.Scatter(x=xs, y=ys, name=name, mode="lines", line={"color": colour}))
    if level:
        figure.add_hline(y=level[1], line_dash="dot", annotation_text=level[0])
    return figure


def loss_curves(series: Series) -> Any:
    """Draw losses of preference training, and the loss of a policy that equals its reference."""
    return curves("Loss", "loss", series, level=("ln 2: policy = reference", math.log(2)))


def frontier(title: str, lines: Series, points: Mapping[str, Sequence[Any]]) -> Any:
    """Draw reward against KL. `lines` are curves; `points` have name, kl, reward, kl_se and reward_se."""
    figure = _figure(title, "KL(policy || reference), nats", "reward")
    colours = cycle(COLOURS)
    for name, line in lines.items():
        xs, ys = [p[0] for p in line], [p[1] for p in line]
        figure.add_trace(go.Scatter(x=xs, y=ys, name=name, mode="lines", line={"color": next(colours)}))
    for name, group in points.items():
        figure.add_trace(
            go.Scatter(
                x=[p.kl for p in group],
                y=[p.reward for p in group],
                error_x={"type": "data", "array": [Z95 * p.kl_se for p in group], "thickness": 1},
                error_y={"type": "data", "array": [Z95 * p.reward_se for p in group], "thickness": 1},
                text=[p.name for p in group],
                name=name,
                mode="markers+text",
                textposition="bottom right",
                marker={"color": next(colours), "size": 10},
            )
        )
    return figure


def scatter(title: str, x: str, y: str, points: Sequence[tuple[float, float]]) -> Any:
    """Draw a scatter plot."""
    figure = _figure(title, x, y)
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    marker = {"size": 4, "opacity": 0.5, "color": COLOURS[0]}
    figure.add_trace(go.Scatter(x=xs, y=ys, mode="markers", marker=marker))
    return figure


def _figure(title: str, x: str, y: str) -> Any:
    figure = go.Figure()
    figure.update_layout(
        title=title, xaxis_title=x, yaxis_title=y, template="plotly_white", height=440, margin={"t": 60, "b": 50}
    )
    return figure
