"""Single-turn dialogue as in the DPO paper: SFT on the chosen responses, DPO, and the accuracy of the reward.

    python benchmarks/dialogue.py --model stories260k --data hh_harmless_test.jsonl.gz --out runs/dialogue --record

The prompts are split into `--folds` folds, with no dialogue in two of them. Each of the first `--held-out` folds is
held out once, and the models for it are trained on all others. Reports accuracy (with a 95 % interval) and calibration
of the implicit reward, and of a reward model trained from the same start on the same pairs, over all held-out pairs
and over those with a single question. Rerun the same command to resume.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import record

from preftune.config.schema import (
    BatchConfig,
    DataConfig,
    DPOConfig,
    ModelConfig,
    OptimConfig,
    RewardConfig,
    SFTConfig,
    TrainConfig,
)
from preftune.data.convert import group_rows
from preftune.data.read_groups import read_groups
from preftune.data.split import folds
from preftune.files import write_rows
from preftune.methods import dpo, reward, sft
from preftune.train.display import Display
from preftune.train.metrics import Calibration
from preftune.types import PreferenceGroup, content
from preftune.workflows import score

QUIET = Display(quiet=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", required=True, help="folder of a small model")
    parser.add_argument("--data", required=True, help="HH-RLHF file")
    parser.add_argument("--out", type=Path, default=Path("runs/dialogue"))
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--held-out", type=int, default=4, help="number of folds to hold out")
    parser.add_argument("--betas", type=float, nargs="+", default=[0.1])
    parser.add_argument("--lr", type=float, default=2e-4, help="for DPO; SFT and the reward model use 5 times this")
    parser.add_argument("--epochs", type=int, default=1, help="for DPO and the reward model")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--record", action="store_true", help="append a row to benchmarks/results.jsonl")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    parts = folds(read_groups(options.data)[0], options.folds)
    margins: dict[str, list[float]] = {}
    held = parts[: options.held_out]
    for number, held_out in enumerate(held):
        others = [group for part in parts if part is not held_out for group in part]
        for name, values in margins_of_fold(options, options.out / f"fold-{number}", others, list(held_out)).items():
            margins.setdefault(name, []).extend(values)
        print(
            f"fold {number}",
            {name: round(float(np.mean(np.array(m) > 0)), 3) for name, m in margins.items()},
            flush=True,
        )
    single = np.array([turns(group) == 1 for part in held for group in part])
    figures = {
        name: {"all": figures_of(m), "one question": figures_of(np.array(m)[single])} for name, m in margins.items()
    }
    print(json.dumps(figures, indent=1))
    if options.record:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items() if k != "record"}
        names = {name: Path(settings[name]).name for name in ("model", "data")}
        record("single-turn dialogue", figures, settings | names)


def turns(group: PreferenceGroup) -> int:
    """Return the number of human turns in the prompt, which is a transcript."""
    return content(group.prompt).count("Human:")


def margins_of_fold(
    options: argparse.Namespace, folder: Path, others: list[PreferenceGroup], held_out: list[PreferenceGroup]
) -> dict[str, list[float]]:
    """Train the models of a fold. Return the held-out margins of each reward, in the order of the data."""
    folder.mkdir(exist_ok=True)
    train, held = folder / "train.jsonl", folder / "held-out.jsonl"
    write_rows(train, list(group_rows(others)))
    write_rows(held, list(group_rows(held_out)))
    data = DataConfig(train=str(train), max_length=options.max_length)
    held_data = DataConfig(train=str(held), max_length=options.max_length)
    batch = BatchConfig(pairs=32)
    higher = OptimConfig(lr=5 * options.lr, schedule="cosine")

    def model(path: Path | str) -> ModelConfig:
        return ModelConfig(path=str(path), dtype="fp32")

    def margins(score_options: Any, name: str) -> list[float]:
        lines = score.run(score_options, folder / f"{name}.jsonl", QUIET).read_text().splitlines()
        return [json.loads(line)["margin"] for line in lines]

    start = sft.run(
        SFTConfig(model=model(options.model), data=data, optim=higher, batch=batch, out=str(folder / "sft")),
        display=QUIET,
    )
    margins_of = {}
    for beta in options.betas:
        config = DPOConfig(
            model=model(start),
            data=data,
            loss={"name": "sigmoid", "beta": beta},
            optim=OptimConfig(lr=options.lr),
            batch=batch,
            train=TrainConfig(epochs=options.epochs),
            monitor=None,
            out=str(folder / f"dpo-{beta:g}"),
        )
        policy = dpo.run(config, display=QUIET)
        score_options = score.ScoreOptions(str(policy), str(start), held_data, beta, dtype="fp32")
        margins_of[f"implicit reward, beta {beta:g}"] = margins(score_options, f"implicit-{beta:g}")
    reward_config = RewardConfig(
        model=model(start),
        data=data,
        optim=higher,
        batch=batch,
        train=TrainConfig(epochs=options.epochs),
        normalise=False,
        out=str(folder / "reward"),
    )
    reward_model = reward.run(reward_config, display=QUIET)
    unlimited = DataConfig(train=str(held))  # the reward model has its own limit
    margins_of["reward model"] = margins(score.RewardScoreOptions(str(reward_model), unlimited), "reward")
    return margins_of


def figures_of(margins: Any) -> dict[str, Any]:
    """Return accuracy with its interval, log loss, and calibration with its table."""
    margin = torch.tensor(np.asarray(margins), dtype=torch.float64)
    calibration = Calibration()
    calibration.add(margin, torch.ones_like(margin))
    right = float((margin > 0).double().mean())
    return {
        "pairs": len(margin),
        "accuracy": right,
        "half_interval": 1.96 * float(np.sqrt(right * (1 - right) / len(margin))),
        "loss": float(torch.nn.functional.softplus(-margin).mean()),
        **calibration.means(),
        "table": calibration.table(),
    }


if __name__ == "__main__":
    main()
