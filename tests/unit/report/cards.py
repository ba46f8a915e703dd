"""Cards of all figures, from made-up numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from preftune.measures.win_rate import WinRate
from preftune.report.figures import bradley_terry, pair_cards
from preftune.report.figures.curves import TRAINING, curves
from preftune.report.figures.drawn_pairs import RunPairs, read_pairs
from preftune.report.figures.frontier import Policy, frontier
from preftune.report.figures.pipeline import Model, Stage, pipeline
from preftune.report.figures.shift import shift
from preftune.report.figures.tilt import Response, tilt
from preftune.report.figures.win_rates import win_rates
from preftune.report.page import Card, Part

STEPS = (0, 5, 10, 20, 40)


def write_pairs(folder: Path, number: int = 80, text: str = "", **changes: Any) -> Path:
    """Write the scored pairs of a run whose policy moves away from its reference. `text` is added to all texts."""
    rng = np.random.default_rng(0)
    base = rng.uniform(-40, -8, (number, 2))
    drift = np.stack([rng.normal(-1, 1.5, number), rng.normal(-3.2, 1.5, number)], 1)
    texts = [f"prompt {i} {text}" for i in range(number)] + [f"response {i} {text}" for i in range(2 * number)]
    pairs = [
        {
            "texts": [i, number + 2 * i, number + 2 * i + 1],
            "label": 0.7 if i % 2 else 1.0,
            "tokens": [8 + i % 5, 9 + i % 3],
            "origin": f"data/pairs.jsonl:{i + 1}",
            "source": "",
        }
        for i in range(number)
    ]
    drawn = {
        "kind": "log-prob", "beta": 0.1, "split": "held-out", "total": 3 * number, "texts": texts, "pairs": pairs,
        "reference": base.tolist(), **changes,
    }  # fmt: skip
    (folder / "drawn_pairs").mkdir(parents=True, exist_ok=True)
    (folder / "drawn_pairs" / "pairs.json").write_text(json.dumps(drawn))
    for step in STEPS:
        logps = base + drift * step / STEPS[-1]
        (folder / "drawn_pairs" / f"step-{step:08d}.json").write_text(
            json.dumps({"step": step, "logps": logps.tolist()})
        )
    return folder


def metric_lines() -> list[dict[str, Any]]:
    """The metrics of a run with training lines, and evaluations with a monitor."""
    lines: list[dict[str, Any]] = []
    for step in range(1, 41):
        loss = 0.69 - step / 200
        lines.append({"step": step, "split": "train", "loss": loss, "rewards/chosen": -step / 90, "lr": 1e-4})
    for step in (0, 20, 40):
        drift = {"drift/gap": 1 + step / 20, "drift/kl": step / 30, "drift/own_q10": -2.0, "drift/own_median": -1.2}
        lines.append({"step": step, "split": "eval", "loss": 0.68 - step / 400, **drift, "drift/own_q90": -0.7})
    return lines


def loaded(folder: Path, loss: Any = None) -> RunPairs:
    run = read_pairs(folder, {"loss": loss or {"name": "sigmoid", "beta": 0.1}})
    assert run
    return run


def token_rows() -> list[dict[str, Any]]:
    rows = []
    for pair in range(3):
        sides = {"chosen": [[" good", 0.2], [" day", -0.05]], "rejected": [[" bad", -0.3], [" day\n", 0.01]]}
        rows.append({"pair": pair, **sides})
    return rows


def response(i: int, text: str) -> Response:
    return Response(
        f"answer {i} {text}", 1 - i / 4, -3.0 - i / 3, {1.0: -3.0 - i / 2, 0.3: -2.5 - i, 0.1: -2.0 - 2 * i}
    )


def all_cards(folder: Path, text: str = "") -> list[Part]:
    """One card of each figure. `text` is added to all texts that come from data."""
    run = loaded(write_pairs(folder, text=text))
    data = pair_cards.pair_data(run)
    points = [
        Policy("SFT", "reference", 0.0, 0.1, 0.0, 0.02, samples=[(f"prompt {text}", f"before {text}", 0.1)]),
        Policy("DPO, beta 0.3", "policy", 0.8, 0.5, 0.05, 0.03, 0.3, best=0.6, samples=[(text, f"after {text}", 0.5)]),
        Policy("DPO, beta 0.1", "policy", 2.4, 0.7, 0.1, 0.03, 0.1, best=0.85),
        Policy("PPO, KL 0.1", "ppo", 1.1, 0.55, 0.1, 0.03, best=0.66),
        Policy("best of 4", "best", 0.636, 0.48, n=4),
        Policy("optimum, beta 0.3", "optimum", 0.85, 0.61, beta=0.3),
    ]
    curve = [(0.0, 0.1, 30.0, 90.0), (0.8, 0.6, 0.3, 30.0), (1.6, 0.76, 0.2, 8.0), (2.6, 0.86, 0.1, 3.0)]
    rate = WinRate(
        **{name: 0.0 for name in WinRate.__dataclass_fields__}
        | {"rate": 0.62, "low": 0.55, "high": 0.69, "matches": 100, "length_adjusted": 0.58}
        | {"length_adjusted_low": 0.5, "length_adjusted_high": 0.66}
    )  # type: ignore[arg-type]
    model = Model("policy", True, 4_000_000)
    stages = [Stage("reward model", [model], 20.0, 0, ("learning rate",)), Stage("PPO", [model] * 4, 90.0, 900, ("a",))]
    training = curves(TRAINING, {"": metric_lines()})
    assert isinstance(training, Card)
    return [
        pipeline(stages, [Stage("DPO", [model, model], 11.0, 0, ("beta",))], "Measured.", (0.7, 0.6)),
        bradley_terry.of_run(run),
        tilt(f"prompt {text}", [response(i, text) for i in range(6)], 2000),
        pair_cards.landscape(run, data),
        pair_cards.gradient(run, data),
        pair_cards.by_hand(run),
        frontier(points, curve, 96, "8 samples", policy_name="DPO"),
        shift(run, metric_lines()),
        pair_cards.tokens(run, token_rows()),
        pair_cards.pairs(run),
        win_rates({f"policy {text}": {"0.7": rate, "1": rate}}, "judge", "base"),
        training,
    ]
