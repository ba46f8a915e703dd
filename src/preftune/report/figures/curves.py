"""Curves of metrics over the steps of a run, or of several runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from preftune.report.figures.words import short
from preftune.report.page import Card

MOST_RUNS = 4  # in one chart: there are as many dash patterns
MOST_POINTS = 600  # of a series; more are thinned out evenly
Lines = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart: a title, the name and unit of its axis, and the metrics that it shows.

    level   the name and value of a horizontal line
    """

    title: str
    y: str
    names: tuple[str, ...]
    level: tuple[str, float] | None = None


LN2 = ("ln 2: policy = reference", math.log(2))
TRAINING = (
    Chart("Loss", "loss", ("loss",)),
    Chart("Implicit rewards", "beta \u00d7 nats", ("rewards/chosen", "rewards/rejected", "rewards/margins")),
    Chart("Pairs in the right order", "share", ("rewards/accuracies",), ("chance", 0.5)),
    Chart("Log-probs of the responses", "nats", ("logps/chosen", "logps/rejected")),
    Chart("Gradient norm", "norm", ("grad_norm",)),
    Chart("Learning rate", "rate", ("lr",)),
)
PPO = (
    Chart("Reward of the samples", "reward", ("reward/mean",)),
    Chart("KL to the reference", "nats per response", ("kl/mean",)),
    Chart("Loss of the policy", "loss", ("loss/policy",)),
    Chart("Loss of the value model", "loss", ("loss/value",)),
)
DRIFT = (
    Chart("Gap: data below samples of the policy", "nats per response", ("drift/gap",)),
    Chart("KL to the reference", "nats per response", ("drift/kl",)),
    Chart("Both responses less likely", "share of pairs", ("drift/displaced",)),
    Chart("Length of the samples", "tokens", ("drift/tokens",)),
    Chart("Samples", "share", ("drift/ended", "drift/repetition", "drift/diversity")),
)
LOSS_HEALTH = (
    "The loss falls and levels off, on both kinds of data.",
    "The held-out loss rises while that of training falls; the gradient norm jumps.",
)
REWARD_HEALTH = (
    "The reward rises while the KL grows slowly, and the samples stay diverse.",
    "The KL grows while the reward does not; samples get longer or repeat themselves with a rising reward.",
)
NAMES = {
    "rewards/chosen": "chosen",
    "rewards/rejected": "rejected",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
    "grad_norm": "gradient norm",
    "lr": "learning rate",
    "objective/score": "reward",
    "objective/kl": "KL",
    "drift/kl": "KL",
    "policy/clip_fraction": "policy",
    "value/clip_fraction": "value model",
    "value/explained_variance": "explained variance",
    "diversity": "distinct word pairs",
}
COLOURS = {"chosen": "chosen", "rejected": "rejected", "value model": "ink2"}


def curves(
    charts: Sequence[Chart],
    lines: Mapping[str, Lines],
    unit: str = "step",
    evaluation: str = "held-out data",
    name: str = "curves",
    health: tuple[str, str] = LOSS_HEALTH,
) -> Card | None:
    """Return a card with the charts that have points.

    lines    the metrics of each run by its name
    health   what is healthy, and what the charts warn of
    """
    if len(lines) > 1:  # the runs have the colours, so each metric has a chart
        charts = [
            replace(chart, title=title_of(chart, name), names=(name,)) for chart in charts for name in chart.names
        ]
    drawn = [chart for one in charts for chart in _small_multiples(_chart(one, lines, evaluation), list(lines))]
    if not drawn:
        return None
    splits = {series["split"] for chart in drawn for series in chart["series"]}
    data = {
        "unit": unit,
        "runs": list(lines) if len(lines) > 1 else [],
        "charts": drawn,
        "has_training": "train" in splits,
        "has_evaluations": "eval" in splits,
        "evaluation_name": evaluation,
    }
    return Card(
        "curves",
        "Curves",
        sentence(drawn, unit) if len(lines) == 1 else f"The same metrics of {len(lines)} runs, on the same axes.",
        (
            f"Lines are training, smoothed over the raw values behind them; rings are {evaluation}. "
            if "train" in splits
            else f"Rings are {evaluation}. "
        )
        + "Move the slider or point at a chart to read values.",
        *health,
        "Measured: the metrics in metrics.jsonl. The smoothed line is a centred mean over 5 % of the steps.",
        data,
        name,
        name=name,
        wide=True,
    )


def _small_multiples(chart: dict[str, Any] | None, runs: Sequence[str]) -> list[dict[str, Any]]:
    """Return a chart with at most MOST_RUNS runs as it is; more runs as several charts on the same axes.

    Each of these has the first run, to compare with.
    """
    if chart is None or len(runs) <= MOST_RUNS:
        return [chart] if chart else []
    values = [point[1] for series in chart["series"] for point in series["points"]]
    every = MOST_RUNS - 1
    charts = []
    for start in range(1, len(runs), every):
        shown = [runs[0], *runs[start : start + every]]
        series = [one for one in chart["series"] if one["run"] in shown]
        if series:
            charts.append({**chart, "series": series, "range": [min(values), max(values)]})
    if len(charts) > 1:
        charts = [{**one, "title": f"{one['title']} ({n} of {len(charts)})"} for n, one in enumerate(charts, start=1)]
    return charts


def _chart(chart: Chart, lines: Mapping[str, Lines], evaluation: str) -> dict[str, Any] | None:
    series = []
    for run, of_run in lines.items():
        for metric in chart.names:
            for split, word in (("train", "training"), ("eval", evaluation)):
                points = [
                    [line["step"], float(line[metric])]
                    for line in of_run
                    if line["split"] == split and is_number(line.get(metric))
                ]
                if points:
                    label = label_of(metric)
                    one = {"name": f"{label}, {word}", "split": split, "run": run, "points": thinned(points)}
                    series.append({**one, "colour": COLOURS.get(label, "policy")})
    if not series:
        return None
    level = {"name": chart.level[0], "value": chart.level[1]} if chart.level else None
    return {"title": chart.title, "y": chart.y, "series": series, "level": level}


def title_of(chart: Chart, metric: str) -> str:
    """Return the title of a chart that shows one of the metrics of `chart`."""
    return chart.title if len(chart.names) == 1 else f"{chart.title}: {label_of(metric)}"


def label_of(metric: str) -> str:
    """Return the name of a metric in a chart."""
    return NAMES.get(metric, metric.rsplit("/", 1)[-1])


def is_number(value: Any) -> bool:
    """Whether a value of a metrics line is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def thinned(points: list[list[float]]) -> list[list[float]]:
    """Return at most MOST_POINTS points: every n-th, and the last."""
    every = -(-len(points) // MOST_POINTS)
    return points if every == 1 else [*points[:-1:every], points[-1]]


def sentence(charts: Sequence[Mapping[str, Any]], unit: str) -> str:
    """Return how the first metric changed from its first to its last value, in training and in evaluations."""
    changes = []
    for one in charts[0]["series"][:2]:
        name, _, split = one["name"].rpartition(", ")
        (first, start), (last, end) = one["points"][0], one["points"][-1]
        change = f"{short(end)}" if first == last else f"from {short(start)} to {short(end)}"
        changes.append((name, f"{change} ({split})", int(last)))
    names = {name for name, _, _ in changes}
    until = max(last for _, _, last in changes)
    if len(names) == 1:
        return f"By {unit} {until}, the {changes[0][0]} went {' and '.join(text for _, text, _ in changes)}."
    return f"By {unit} {until}: {'; '.join(f'{name} {text}' for name, text, _ in changes)}."


def distance(lines: Lines, unit: str, *, warned: bool) -> Card | None:
    """Return the curves of the monitor: the policy's distance from its data and its reference. `warned`: a metric has
    exceeded its threshold."""
    card = curves(DRIFT, {"": lines}, unit, "evaluations", "distance")
    if card is None:
        return None
    values = {key: value for key, value in card.data.items()}
    return Card(
        "curves",
        "Distance from data and reference",
        card.sentence if warned else f"{card.sentence} No metric has exceeded its threshold.",
        "Each ring is an evaluation: the policy responds to the same prompts with the same random numbers.",
        "The KL grows slowly and levels off; samples end and do not repeat themselves.",
        "A gap that grows past 20 nats, a KL that keeps growing, samples that get much longer or repeat themselves.",
        card.source,
        values,
        "distance",
        name="distance",
        wide=True,
    )
