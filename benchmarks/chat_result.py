"""A chat model tuned on human preferences, from the data check to the evaluation: better or not, at what cost?

    python benchmarks/chat_result.py --model SmolLM2-135M-Instruct --data hh_harmless_test.jsonl.gz \\
        --other dpo_en_demo.json --out runs/chat --record

The pairs are split into three folds, with no dialogue in two of them. Each seed uses them in different roles: one for
the policies (SFT on the chosen responses, then DPO of all weights and DPO of a LoRA adapter, configs/chat/), one for
the judge (a reward model that starts from the chat model), one for the evaluation. So the judge has never seen the
pairs of the policies, and no model has seen the prompts of the evaluation. Rerun the same command to resume.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from chat_evaluation import Models, Settings, evaluate
from chat_figures import examples, figures_of, summary
from record import record

from preftune.chat.open import load_renderer
from preftune.config.load import load
from preftune.config.schema import DataConfig, DPOConfig, RewardConfig, SFTConfig
from preftune.data.convert import group_rows
from preftune.data.split import folds
from preftune.files import write_json, write_rows
from preftune.methods import dpo, reward, sft
from preftune.model.locate import locate
from preftune.train.display import Display
from preftune.workflows.check_data import check
from preftune.workflows.data_report import as_json

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "chat"
FOLDS = 3
POLICIES = {"DPO": "dpo", "DPO, LoRA": "dpo-lora"}
METHODS: dict[str, tuple[Any, Callable[..., Path]]] = {
    "sft": (SFTConfig, sft.run),
    "dpo": (DPOConfig, dpo.run),
    "dpo-lora": (DPOConfig, dpo.run),
    "reward": (RewardConfig, reward.run),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", required=True, help="folder of a chat model")
    parser.add_argument("--data", required=True, help="HH-RLHF file")
    parser.add_argument("--other", help="demonstrations of a different kind: what do the policies forget?")
    parser.add_argument("--out", type=Path, default=Path("runs/chat"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--prompts", type=int, default=200, help="prompts of the evaluation fold to respond to")
    parser.add_argument("--other-rows", type=int, default=60, help="rows of --other to score")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--overlong", choices=["truncate", "drop"], default="truncate")
    text = "config keys of all training runs, or of one: dpo-lora:optim.lr=5e-4"
    parser.add_argument("--set", nargs="*", default=[], metavar="[METHOD:]KEY=VALUE", help=text)
    parser.add_argument("--policy-pairs", type=int, help="use only the first pairs of the policies' fold")
    parser.add_argument("--judge-pairs", type=int, help="use only the first pairs of the judge's fold")
    parser.add_argument("--test-pairs", type=int, help="use only the first pairs of the evaluation fold")
    parser.add_argument("--only", choices=METHODS, nargs="+", help="only train these models; dpo and dpo-lora need sft")
    parser.add_argument("--steps", nargs="+", default=[], help="only compute these steps of the evaluation")
    parser.add_argument("--record", action="store_true", help="append a row to benchmarks/results.jsonl")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    parts = checked_folds(options)
    raw: dict[int, Any] = {}
    for seed in options.seeds:
        models = train(options, parts, seed)
        if not options.only:
            folder, settings = options.out / f"seed-{seed}", settings_of(options, seed)
            raw[seed] = evaluate(models, parts[(seed + 2) % FOLDS], folder, settings, options.steps)
    if options.only or options.steps:
        return
    data = json.loads((options.out / "data.json").read_text())
    figures = figures_of(raw, costs(options), data)
    print("\n".join(summary(figures)))
    (options.out / "samples.md").write_text(examples(raw, options.out))
    if options.record:
        settings_row = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items() if k != "record"}
        names = {name: Path(settings_row[name]).name for name in ("model", "data", "other") if settings_row[name]}
        record("a chat model on human preferences", figures, settings_row | names)


def settings_of(options: argparse.Namespace, seed: int) -> Settings:
    """Return the settings of the evaluation of a seed."""
    return Settings(
        options.prompts,
        options.test_pairs,
        options.other,
        options.other_rows,
        tuple(options.temperatures),
        options.max_new_tokens,
        options.max_length,
        seed,
    )


def checked_folds(options: argparse.Namespace) -> list[Path]:
    """Check the data as a run of the chat model reads them, and write the folds as groups of messages."""
    files = [options.out / f"fold-{number}.jsonl" for number in range(FOLDS)]
    if all(file.is_file() for file in [*files, options.out / "data.json"]):
        return files
    limits: Any = {"max_length": options.max_length, "overlong": options.overlong}
    data = DataConfig(train=options.data, **limits, max_dropped=1.0)
    checked = check(data, renderer=load_renderer(data, locate(options.model)))
    if checked.refusal:
        raise checked.refusal
    print("\n".join(checked.account.lines()), flush=True)
    dropped = {origin for origins in checked.account.dropped.values() for origin in origins}
    groups = [group for group in checked.groups if group.origin not in dropped]
    for file, part in zip(files, folds(groups, FOLDS), strict=True):
        write_rows(file, group_rows(part))
    write_json(options.out / "data.json", as_json(checked))
    return files


def train(options: argparse.Namespace, parts: Sequence[Path], seed: int) -> Models:
    """Train the policies and the judge of a seed."""
    folder = options.out / f"seed-{seed}"
    policy_data = first_rows(parts[seed % FOLDS], options.policy_pairs, folder / "policy.jsonl")
    judge_data = first_rows(parts[(seed + 1) % FOLDS], options.judge_pairs, folder / "judge.jsonl")
    finals = {name: folder / name / "final" for name in METHODS}
    starts = {"sft": options.model, "dpo": finals["sft"], "dpo-lora": finals["sft"], "reward": options.model}
    for name in () if options.steps else options.only or METHODS:
        data = judge_data if name == "reward" else policy_data
        train_one(options, name, str(starts[name]), data, folder, seed)
    policies = {name: finals[run] for name, run in POLICIES.items()}
    return Models(Path(options.model), finals["sft"], policies, finals["reward"])


def first_rows(source: Path, number: int | None, file: Path) -> Path:
    """Write the first rows of a fold to `file`."""
    file.parent.mkdir(exist_ok=True)
    write_rows(file, [json.loads(line) for line in source.read_text().splitlines()[:number]])
    return file


def costs(options: argparse.Namespace) -> dict[str, float]:
    """Return the mean processor time of each run, in seconds. Runs that were interrupted are left out."""
    by_run = {name: list(options.out.glob(f"seed-*/{name}.seconds.json")) for name in METHODS}
    return {
        name: float(np.mean([json.loads(file.read_text())["seconds"] for file in files]))
        for name, files in by_run.items()
        if files
    }


def train_one(options: argparse.Namespace, name: str, model: str, data: Path, folder: Path, seed: int) -> Path:
    """Train with configs/chat/NAME.yaml. NAME.seconds.json has the processor time of a run that was not interrupted."""
    schema, run = METHODS[name]
    settings: dict[str, Any] = {
        "model.path": model,
        "data.train": data,
        "data.eval": "null",
        "data.max_length": options.max_length,
    }
    settings |= {"train.seed": seed, "out": folder / name}
    settings |= {"samples": 0} if name == "sft" else {"monitor": "null"} if name != "reward" else {}
    overrides = [f"{key}={value}" for key, value in settings.items()]
    for entry in options.set:
        method, colon, own = entry.partition(":")
        if method not in METHODS or not colon:
            overrides.append(entry)
        elif method == name:
            overrides.append(own)
    config = load(schema, CONFIGS / f"{name}.yaml", overrides)
    began, is_new = time.process_time(), not (folder / name).exists()
    final = run(config, display=Display())
    if is_new:
        write_json(folder / f"{name}.seconds.json", {"seconds": time.process_time() - began})
    return final


if __name__ == "__main__":
    main()
