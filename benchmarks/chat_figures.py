"""The figures of benchmarks/chat_result.py, from the measurements of all seeds, and its examples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from chat_evaluation import HUMAN

from preftune.findings.content import has_loop, is_refusal
from preftune.formulas import mean_and_error
from preftune.measures import drift
from preftune.measures.win_rate import Match, bootstrap, win_rate
from preftune.train.metrics import Calibration
from preftune.workflows.verdicts import words

Raw = Mapping[int, Mapping[str, Any]]
Rows = Sequence[Mapping[str, Any]]
Z95 = 1.96
START, SFT = "chat model", "SFT"
EXAMPLES = 6  # prompts in samples.md: always the first ones


def figures_of(raw: Raw, costs: Mapping[str, float], data: Mapping[str, Any]) -> dict[str, Any]:
    """Return all figures. Those of several seeds are pooled; `by_seed` has the main ones of each seed."""
    every = list(raw.values())
    rows = [{**row, "seed": seed} for seed, one in raw.items() for row in one["responses"]]
    names = [name for name in every[0]["margins"]]
    accuracies = {name: accuracy([m for one in every for m in one["margins"][name]]) for name in names}
    longer = [value for one in every for value in one["longer"]]
    win_rates = {against: win_rates_of(rows, against) for against in (START, SFT, HUMAN)}
    return {
        "data": {
            **{name: data[name] for name in ("read", "kept")},
            **{kind: {why: len(lines) for why, lines in data[kind].items()} for kind in ("dropped", "noted")},
        },
        "accuracy": accuracies,
        "longer_is_chosen": dict(zip(("rate", "low", "high"), _share(longer), strict=True)),
        "win_rates": win_rates,
        "texts": texts_of(rows),
        "kl": {name: _mean([v for one in every for v in one["kl"][name]]) for name in every[0]["kl"]},
        "other": others_of(every),
        "seconds": dict(costs),
        "by_seed": {
            str(seed): {
                "accuracy": {name: accuracy(one["margins"][name])["accuracy"] for name in names},
                "win_rates": {
                    against: {
                        model: {t: rate["rate"] for t, rate in by.items()}
                        for model, by in win_rates_of([r for r in rows if r["seed"] == seed], against).items()
                    }
                    for against in (START, SFT)
                },
            }
            for seed, one in raw.items()
        },
    }


def accuracy(margins: Sequence[float]) -> dict[str, Any]:
    """Return accuracy with its interval, log loss, and calibration with its table."""
    margin = torch.tensor(margins, dtype=torch.float64)
    calibration = Calibration()
    calibration.add(margin, torch.ones_like(margin))
    rate, low, high = _share([0.5 + 0.5 * float(np.sign(m)) for m in margins])
    return {
        "pairs": len(margin),
        "accuracy": rate,
        "low": low,
        "high": high,
        "loss": float(torch.nn.functional.softplus(-margin).mean()),
        "mean_confidence": float(torch.sigmoid(margin.abs()).mean()),
        **calibration.means(),
        "table": calibration.table(),
    }


def win_rates_of(rows: Rows, against: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the win rates of the other models against one of them, by name and temperature.

    Both models respond at the same temperature. `longer_wins` is the rate under a judge that prefers more words.
    """
    at = {(r["model"], r.get("temperature"), r["seed"], r["prompt"]): r for r in rows}
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for name in dict.fromkeys(row["model"] for row in rows if row["model"] not in (against, HUMAN)):
        if against == SFT and name == START:
            continue
        for temperature in dict.fromkeys(r["temperature"] for r in rows if r["model"] == name):
            other = None if against == HUMAN else temperature
            pairs = [
                (row, at[against, other, row["seed"], row["prompt"]])
                for row in rows
                if row["model"] == name and row["temperature"] == temperature
            ]
            rate = win_rate([match(ours["reward"], theirs["reward"], ours, theirs) for ours, theirs in pairs])
            control = win_rate([match(_words(ours), _words(theirs), ours, theirs) for ours, theirs in pairs])
            result.setdefault(name, {})[f"{temperature:g}"] = {
                **{key: getattr(rate, key) for key in ("rate", "low", "high", "wins", "ties", "losses", "unread")},
                **{key: getattr(rate, key) for key in ("length_adjusted", "length_adjusted_low")},
                **{key: getattr(rate, key) for key in ("length_adjusted_high", "words", "other_words")},
                "longer_wins": control.rate,
            }
    return result


def match(ours: float | None, theirs: float | None, our: Mapping[str, Any], their: Mapping[str, Any]) -> Match:
    """Return a match that the higher score wins, in whichever order the two responses are shown."""
    outcome = None if ours is None or theirs is None else 0.5 + 0.5 * float(np.sign(ours - theirs))
    return Match(outcome, outcome, _words(our), _words(their))


def _words(row: Mapping[str, Any]) -> int:
    return words(row["text"])


def texts_of(rows: Rows) -> dict[str, dict[str, dict[str, float]]]:
    """Return what the responses of each model look like, and their mean reward, by name and temperature."""
    result: dict[str, dict[str, dict[str, float]]] = {}
    kinds = dict.fromkeys((row["model"], row.get("temperature")) for row in rows)
    for name, temperature in kinds:
        own = [row for row in rows if (row["model"], row.get("temperature")) == (name, temperature)]
        texts = [row["text"] for row in own]
        reward = _mean([row["reward"] for row in own if row["reward"] is not None])
        result.setdefault(name, {})["" if temperature is None else f"{temperature:g}"] = {
            **drift.figures(texts, [row["ended"] for row in own]),
            "refusals": float(np.mean([is_refusal(text) for text in texts])),
            "loops": float(np.mean([has_loop(text) for text in texts])),
            "empty": float(np.mean([not text.strip() for text in texts])),
            "reward": reward["mean"],
            "reward_half_interval": reward["half_interval"],
        }
    return result


def others_of(every: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the loss on the other demonstrations, and its change from the chat model's, paired by row."""
    if not every[0]["other"]:
        return {}
    result = {}
    for name in every[0]["other"]:
        own = np.array([value for one in every for value in one["other"][name]])
        start = np.array([value for one in every for value in one["other"][START]])
        change = _mean(own - start)
        result[name] = {
            "loss": float(own.mean()),
            "change": change["mean"],
            "half_interval": change["half_interval"],
            "rows": len(own) // len(every),
        }
    return result


def _mean(values: Any) -> dict[str, float]:
    mean, error = mean_and_error(np.asarray(values, dtype=np.float64)[:, None])
    return {"mean": mean, "half_interval": Z95 * error, "number": len(values)}


def _share(values: Sequence[float]) -> tuple[float, float, float]:
    return float(np.mean(values)), *bootstrap(np.array(values))


def summary(figures: Mapping[str, Any]) -> list[str]:
    """Return the main figures as lines of text."""
    lines = [
        f"held-out accuracy of {name}: {a['accuracy']:.1%} ({a['low']:.1%} to {a['high']:.1%}) of {a['pairs']} pairs, "
        f"log loss {a['loss']:.4f}, calibration error {a['calibration/ece']:.3f}, Brier {a['calibration/brier']:.4f}"
        for name, a in figures["accuracy"].items()
    ]
    for against, by_model in figures["win_rates"].items():
        lines += [
            f"{name} against {against} at T {t}: {r['rate']:.1%} ({r['low']:.1%} to {r['high']:.1%}), length-adjusted "
            f"{r['length_adjusted']:.1%} ({r['length_adjusted_low']:.1%} to {r['length_adjusted_high']:.1%}), words "
            f"{r['words']:.0f} against {r['other_words']:.0f}, longer wins {r['longer_wins']:.1%}"
            for name, by in by_model.items()
            for t, r in by.items()
        ]
    lines += [f"KL of {name}: {v['mean']:.2f} +- {v['half_interval']:.2f} nats" for name, v in figures["kl"].items()]
    lines += [
        f"loss of {name} on the other data: {v['loss']:.3f}, change {v['change']:+.3f} +- {v['half_interval']:.3f}"
        for name, v in figures["other"].items()
    ]
    return [*lines, f"processor time: {json.dumps({k: round(v) for k, v in figures['seconds'].items()})} s"]


def examples(raw: Raw, out: Path) -> str:
    """Return the responses to the first prompts, before and after training, in Markdown."""
    lines = ["# Samples before and after training", ""]
    for seed, one in raw.items():
        prompts = [json.loads(line)["prompt"] for line in (out / f"seed-{seed}" / "prompts.jsonl").open()]
        for number, prompt in enumerate(prompts[:EXAMPLES]):
            lines += [f"## Seed {seed}, prompt {number}", ""]
            lines += [f"- **{message['role']}**: {_one_line(message['content'])}" for message in prompt]
            lines += ["", "| model | temperature | response | reward |", "|---|---|---|---|"]
            for row in one["responses"]:
                if row["prompt"] == number:
                    cells = (row["model"], row.get("temperature", ""), _one_line(row["text"]), f"{row['reward']:.2f}")
                    lines.append("| " + " | ".join(map(str, cells)) + " |")
            lines.append("")
    return "\n".join(lines)


def _one_line(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
