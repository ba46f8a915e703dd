"""The controlled sentiment experiment of the DPO paper on a small story model, with VADER as the true reward.

    python benchmarks/sentiment.py --model stories260k --out runs/sentiment --record

Samples groups of responses from the model, labels them with VADER's compound score (soft labels: Bradley-Terry of the
score gap), trains with DPO at several betas, and measures mean reward and sequence KL of new samples. The results are
compared with the model, best of n and the closed-form optimum (importance weights over many samples of the model).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import record
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from preftune.config.schema import BatchConfig, DataConfig, DPOConfig, ModelConfig, OptimConfig, TrainConfig
from preftune.measures.frontier import Floats, Point, best_of_n, measure, optimum, optimum_at
from preftune.methods import dpo
from preftune.model.generate import Sampled, Sampling, sample
from preftune.model.load import load_model, load_tokenizer, locate
from preftune.model.logprobs import Scorer
from preftune.report.figures.frontier import Policy, frontier
from preftune.report.page import Page, write_page
from preftune.scoring import response_logps
from preftune.train.display import Display

NAMES = ["Lily", "Tom", "Mia", "Ben", "Sara", "Tim", "Anna", "Max", "Lucy", "Sam", "Amy", "Jack", "Zoe", "Leo", "Ella"]
TEMPLATES = (
    "Once upon a time, there was a little girl named {}.",
    "Once upon a time, there was a little boy named {}.",
    "One day, {} went to the park.",
    "{} had a big red ball.",
    "{} was very sad because",
    "{} and her mom went to the store.",
    "There was a small dog named {}.",
    "It was a rainy day and {} was at home.",
    "{} wanted to play with a new toy.",
    "{} saw a cat in the garden.",
)
NEW_TOKENS = 48


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", required=True, help="folder of a small story model")
    parser.add_argument("--out", type=Path, default=Path("runs/sentiment"))
    parser.add_argument("--betas", type=float, nargs="+", default=[1.0, 0.3, 0.1, 0.05])
    parser.add_argument("--samples", type=int, default=16, help="training responses per prompt")
    parser.add_argument("--group", type=int, default=8, help="responses per group; all pairs in a group are judged")
    parser.add_argument("--yardstick", type=int, default=256, help="samples per prompt for best of n and the optimum")
    parser.add_argument("--evaluation", type=int, default=16, help="new samples per prompt for each policy")
    parser.add_argument("--labels", choices=["soft", "hard"], default="soft", help="soft: sigmoid of the score gap")
    parser.add_argument("--loss", default="sigmoid", help="sigmoid, or plackett_luce for whole rankings")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="append a row to benchmarks/results.jsonl")
    options = parser.parse_args()
    begin = time.perf_counter()
    options.out.mkdir(parents=True, exist_ok=True)
    vader = SentimentIntensityAnalyzer()
    source = locate(options.model)
    tokenizer, reference = load_tokenizer(source), Scorer.of(load_model(source, torch.float32))
    prompts = [template.format(name) for template in TEMPLATES for name in NAMES]
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]

    def draw(scorer: Scorer, n: int, seed: int) -> list[Sampled]:
        return sample(scorer.model, tokenizer, ids, Sampling(n, NEW_TOKENS, seed=seed))

    def rewards(samples: list[Sampled]) -> Floats:
        return np.array([[vader.polarity_scores(text)["compound"] for text in s.texts] for s in samples])

    yardstick = rewards(draw(reference, options.yardstick, options.seed + 1))
    data = options.out / "groups.jsonl"
    write_groups(data, prompts, draw(reference, options.samples, options.seed + 2), rewards, options)
    points = [measure("reference", np.zeros_like(yardstick), yardstick)]
    for beta in options.betas:
        policy = Scorer.of(load_model(locate(str(tune(options, data, beta))), torch.float32))
        samples = draw(policy, options.evaluation, options.seed + 3)
        groups = [s.group for s in samples]
        kl = response_logps(policy, groups) - response_logps(reference, groups)
        points.append(measure(f"DPO, beta {beta:g}", kl, rewards(samples)))
        print(show(points[-1], yardstick), flush=True)
    report(options, points, yardstick, time.perf_counter() - begin)


def write_groups(
    path: Path, prompts: list[str], samples: list[Sampled], rewards: Any, options: argparse.Namespace
) -> None:
    """Write groups with all judgements (soft label: sigmoid of the score gap), and ranks for a list-wise loss."""
    size, rows = options.group, []
    for prompt, sampled, scores in zip(prompts, samples, rewards(samples), strict=True):
        for begin in range(0, len(scores), size):
            texts, score = list(sampled.texts[begin : begin + size]), scores[begin : begin + size]
            row = {"prompt": prompt, "responses": texts, "ended": list(sampled.ended[begin : begin + size])}
            pairs = combinations(sorted(range(len(texts)), key=lambda i: -score[i]), 2)
            judgements = [
                {"better": int(b), "worse": int(w)}
                | ({"probability": 1 / (1 + math.exp(score[w] - score[b]))} if options.labels == "soft" else {})
                for b, w in pairs
                if score[b] > score[w]
            ]
            if options.loss == "plackett_luce":  # needs complete rankings without ties
                row["ranks"] = [sorted(score, reverse=True).index(s) + 1 for s in score]
            if judgements and len(set(row.get("ranks", texts))) == len(texts):
                rows.append({**row, "judgements": judgements})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def tune(options: argparse.Namespace, data: Path, beta: float) -> Path:
    config = DPOConfig(
        model=ModelConfig(path=options.model, dtype="fp32"),
        data=DataConfig(train=str(data), max_length=256),
        loss={"name": options.loss, "beta": beta},
        optim=OptimConfig(lr=options.lr, schedule="cosine"),
        batch=BatchConfig(pairs=max(32, options.group * (options.group - 1) // 2 * 8)),
        train=TrainConfig(epochs=options.epochs, seed=options.seed),
        out=str(options.out / f"beta-{beta:g}"),
    )
    return dpo.run(config, display=Display(quiet=True))


def show(point: Point, yardstick: Floats) -> str:
    best = optimum_at(yardstick, max(point.kl, 0.0))
    return (
        f"{point.name}: reward {point.reward:.3f} +- {1.96 * point.reward_se:.3f} at KL {point.kl:.3f} "
        f"+- {1.96 * point.kl_se:.3f}; optimum at this KL {best:.3f}"
    )


def report(options: argparse.Namespace, points: list[Point], yardstick: Floats, seconds: float) -> None:
    n_best = [best_of_n(yardstick, n) for n in (1, 2, 4, 8, 16, 32, 64, 128) if n <= options.yardstick]
    best = optimum(yardstick, [2.0, 1.0, 0.5, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05])
    for point in [points[0], *n_best, *best]:
        print(f"{point.name}: reward {point.reward:.3f} at KL {point.kl:.3f}")
    everything = {"policies": points, "best of n": n_best, "optimum": best}
    figures = {name: [asdict(p) for p in group] for name, group in everything.items()}
    (options.out / "frontier.json").write_text(json.dumps(figures, indent=1))
    shown = [
        Policy(p.name, "policy" if i else "reference", p.kl, p.reward, p.kl_se, p.reward_se)
        for i, p in enumerate(points)
    ]
    curve = [(p.kl, p.reward, 0.0, 100.0) for p in best]
    card = frontier(shown, curve, options.yardstick, "see results.jsonl", "VADER sentiment")
    write_page(options.out / "frontier.html", Page("Sentiment against KL", card.sentence, parts=[card]))
    if options.record:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items() if k != "record"}
        record(
            "sentiment frontier", {**figures, "seconds": round(seconds)}, settings | {"model": Path(options.model).name}
        )


if __name__ == "__main__":
    main()
