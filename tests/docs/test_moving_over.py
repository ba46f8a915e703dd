"""docs/do/moving-over.md: each option of another program in the table sets the key of preftune in its row."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from preftune.moving.run import convert

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "do" / "moving-over.md").read_text()
TOOLS = ["trl", "llamafactory", "axolotl", "openrlhf"]
NEEDED: dict[str, dict[str, Any]] = {
    "trl": {"model_name_or_path": "m", "dataset_name": "d", "use_peft": True, "eval_strategy": "steps"},
    "llamafactory": {"model_name_or_path": "m", "stage": "dpo", "finetuning_type": "lora", "dataset": "d.json"},
    "axolotl": {
        "base_model": "m",
        "rl": "dpo",
        "datasets": [{"path": "d", "type": "chatml.intel"}],
        "adapter": "lora",
        "lora_r": 8,
        "lora_alpha": 16,
    },
    "openrlhf": {"model.model_name_or_path": "m", "data.dataset": "d", "ds.lora.rank": 4},
}
VALUES: dict[str, Any] = {
    "dataset": "d.json", "datasets": [{"path": "d", "type": "chatml.intel"}], "data.dataset": "d",
    "dataset_test_split": "validation", "eval_dataset": "e.json", "eval.dataset": "e",
    "test_datasets": [{"path": "e", "type": "chatml.intel", "split": "test"}], "val_size": 0.1, "val_set_size": 0.1,
    "loss_type": "ipo", "pref_loss": "simpo", "rl": "ipo", "dpo_loss_type": "ipo", "model.ipo_enable": True,
    "learning_rate": 3e-6, "adam.lr": 3e-6, "lr_scheduler_type": "cosine", "lr_scheduler": "constant",
    "beta": 0.7, "pref_beta": 0.7, "rl_beta": 0.7, "model.beta": 0.7, "weight_decay": 0.07, "adam.weight_decay": 0.07,
    "lora_target_modules": ["q_proj"], "lora_target": "q_proj", "ds.lora.target_modules": "q_proj",
    "load_in_4bit": True, "quantization_bit": 4, "ds.load_in_4bit": True, "precompute_ref_log_probs": True,
}  # fmt: skip


def table() -> list[tuple[str, str, list[str]]]:
    """(preftune's key, the other program, its options) of each cell."""
    lines = PAGE.partition("| preftune | TRL |")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[re.findall(r"`([\w.]+)`", cell) for cell in line.strip("| ").split("|")] for line in lines]
    return [
        (row[0][0], tool, options)
        for row in cells
        for tool, options in zip(TOOLS, row[1:], strict=False)
        if options
    ]  # fmt: skip


def converted(tool: str, values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """preftune's config for a config of another program, as {section.key: value}."""
    file = folder / "other.yaml"
    if tool == "openrlhf":
        file = folder / "train.sh"
        words = [f"--{key}" if value is True else f"--{key} {value}" for key, value in values.items()]
        file.write_text("deepspeed --module openrlhf.cli.train_dpo " + " ".join(words))
    else:
        file.write_text(yaml.safe_dump(values))
    config = yaml.safe_load(convert(str(file), tool=tool, method="dpo" if tool == "trl" else None).text)
    terms = config.pop("loss")
    config["loss"] = terms if isinstance(terms, dict) else terms[0]
    sections = {name: value if isinstance(value, dict) else {"": value} for name, value in config.items()}
    return {f"{name}.{key}".rstrip("."): value for name, keys in sections.items() for key, value in keys.items()}


CELLS = [(key, tool, option) for key, tool, options in table() for option in options]


@pytest.mark.parametrize(("key", "tool", "option"), CELLS, ids=[f"{tool}: {option}" for _, tool, option in CELLS])
def test_an_option_sets_the_key_of_its_row(key: str, tool: str, option: str, tmp_path: Path) -> None:
    before = converted(tool, NEEDED[tool], tmp_path)
    value = VALUES.get(option, "other" if key in ("model.path", "reference.path", "out") else 6)
    changed = {**NEEDED[tool], option: value}
    if option == "datasets":
        changed["datasets"] = [{"path": "other", "type": "chatml.intel"}]
    elif option in ("dataset_name", "dataset", "data.dataset"):
        changed[option] = "other.json"
    after = converted(tool, changed, tmp_path)
    assert key in after
    assert after[key] != before.get(key)


def test_the_table_has_all_programs() -> None:
    assert {tool for _, tool, _ in CELLS} == set(TOOLS)
    assert len(CELLS) > 70
