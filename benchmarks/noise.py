"""Precision and recall of `preftune data noise` for judgements that were flipped on purpose.

    python benchmarks/noise.py --model stories260k --data hh_harmless_test.jsonl.gz --out runs/noise-bench --record

Takes the first `--pairs` judgements, trains the model briefly on a randomly chosen response of each (so that it has
seen the texts but no label), flips a given share of the judgements, and runs `preftune data noise`. Precision and
recall are those of the k judgements with the lowest margins, for k = the number of flipped judgements and a tenth of
it. A random list would have a precision equal to the share. Rerun the same command to resume.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from record import record

from preftune.config.schema import (
    BatchConfig,
    DataConfig,
    ModelConfig,
    NoiseConfig,
    OptimConfig,
    SFTConfig,
    TrainConfig,
)
from preftune.data.convert import group_rows
from preftune.data.read_groups import read_groups
from preftune.files import write_json, write_rows
from preftune.methods import sft
from preftune.train.display import Display
from preftune.types import Judgement, PreferenceGroup
from preftune.workflows import label_noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", required=True, help="folder of a small model")
    parser.add_argument("--data", required=True, help="preference pairs whose labels are assumed to be right")
    parser.add_argument("--out", type=Path, default=Path("runs/noise-bench"))
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.2], help="shares of flipped judgements")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rankers", choices=["dpo", "reward"], nargs="+", default=["dpo"])
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, default=2e-4, help="for DPO; a reward model uses 5 times this")
    parser.add_argument("--max-length", type=int, default=192)
    parser.add_argument("--max-prompt-length", type=int, default=48)
    parser.add_argument("--record", action="store_true", help="append a row to benchmarks/results.jsonl")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    groups = read_groups(options.data)[0][: options.pairs]
    start = tuned(options, groups)
    runs = [
        measured(options, groups, start, ranker, share, seed)
        for ranker in options.rankers
        for share in options.shares
        for seed in options.seeds
    ]
    if options.record:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items() if k != "record"}
        names = {name: Path(settings[name]).name for name in ("model", "data")}
        record("noise finder", {"runs": runs}, settings | names)


def tuned(options: argparse.Namespace, groups: list[PreferenceGroup]) -> Path:
    """Train the model for one epoch on a randomly chosen response of each group. Return its folder."""
    coin = np.random.default_rng(0).integers(2, size=len(groups))
    rows = [{"prompt": g.prompt, "completion": g.responses[int(side)]} for g, side in zip(groups, coin, strict=True)]
    path = options.out / "texts.json"
    write_json(path, rows)
    config = SFTConfig(
        model=ModelConfig(path=options.model, dtype="fp32"),
        data=limits(options, path),
        optim=OptimConfig(lr=1e-3, schedule="cosine"),
        batch=BatchConfig(pairs=32),
        out=str(options.out / "sft"),
    )
    return sft.run(config, display=Display(quiet=True))


def limits(options: argparse.Namespace, path: Path) -> DataConfig:
    return DataConfig(train=str(path), max_length=options.max_length, max_prompt_length=options.max_prompt_length)


def measured(
    options: argparse.Namespace, groups: list[PreferenceGroup], start: Path, ranker: Any, share: float, seed: int
) -> dict[str, Any]:
    """Flip judgements, run the command, and return its precision and recall."""
    flipped = np.zeros(len(groups), dtype=bool)
    order = np.random.default_rng(seed).permutation(len(groups))
    flipped[order[: round(share * len(groups))]] = True
    folder = options.out / f"{ranker}-{share:g}-{seed}"
    folder.mkdir(exist_ok=True)
    groups_with_noise = [
        PreferenceGroup(g.prompt, g.responses, (Judgement(1, 0),) if is_flipped else g.judgements)
        for g, is_flipped in zip(groups, flipped, strict=True)
    ]
    write_rows(folder / "prefs.jsonl", list(group_rows(groups_with_noise)))
    config = NoiseConfig(
        model=ModelConfig(path=str(start), dtype="fp32"),
        data=limits(options, folder / "prefs.jsonl"),
        optim=OptimConfig(lr=options.lr * (5 if ranker == "reward" else 1)),
        batch=BatchConfig(pairs=32),
        train=TrainConfig(epochs=options.epochs, seed=seed),
        folds=options.folds,
        ranker=ranker,
        confidence=0.501,
        out=str(folder / "noise"),
    )
    label_noise.run(config, display=Display(quiet=True))
    return figures_of(config, flipped, {"ranker": ranker, "share": share, "seed": seed})


def figures_of(config: NoiseConfig, flipped: Any, setting: dict[str, Any]) -> dict[str, Any]:
    """Return precision and recall of the list; `flipped` marks the flipped lines of the data."""
    lines = [json.loads(line) for line in (Path(config.out) / "noise.jsonl").read_text().splitlines()]
    hits = np.array([flipped[int(row["origin"].rpartition(":")[2]) - 1] for row in lines] or [False])
    summary = json.loads((Path(config.out) / "summary.json").read_text())
    total = int(flipped.sum())
    figures = {**setting, "chance": float(flipped.mean()), **summary, "recall_of_backwards": float(hits.sum() / total)}
    figures["precision_of_backwards"] = float(hits.mean())
    for name, k in (("number", total), ("tenth", max(1, total // 10))):
        figures[f"precision_at_{name}"] = float(hits[:k].mean())
        figures[f"recall_at_{name}"] = float(hits[:k].sum() / total)
    print(json.dumps(figures), flush=True)
    return figures


if __name__ == "__main__":
    main()
