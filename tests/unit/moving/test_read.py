"""The program that a config is for is recognised, and options of commands become keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from preftune.errors import ConfigError
from preftune.moving.read import flags_of, read

TRL = "model_name_or_path: m\ndataset_name: d\nbeta: 0.1\nper_device_train_batch_size: 2\n"
LLAMAFACTORY = "model_name_or_path: m\nstage: dpo\nfinetuning_type: lora\ndataset: d\ntemplate: qwen\n"
AXOLOTL = "base_model: m\nrl: dpo\nmicro_batch_size: 1\nsequence_len: 512\n"
SWIFT = "rlhf_type: dpo\nmodel: m\ndataset: [d]\ntuner_type: lora\n"


def write(folder: Path, text: str, name: str = "config.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


@pytest.mark.parametrize(
    ("text", "tool"), [(TRL, "trl"), (LLAMAFACTORY, "llamafactory"), (AXOLOTL, "axolotl"), (SWIFT, "swift")]
)
def test_the_program_is_recognised_by_its_keys(text: str, tool: str, tmp_path: Path) -> None:
    assert read(write(tmp_path, text), None, None).tool == tool


@pytest.mark.parametrize("text", ["a: 1\n", "seed: 1\noutput_dir: x\n", ""])
def test_a_config_that_may_be_of_any_program_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot tell which program"):
        read(write(tmp_path, text), None, None)
    assert read(write(tmp_path, text), "axolotl", None).tool == "axolotl"


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("model: {path: m}\ndata: {train: d}\n", "c.yaml", "a config of preftune already"),
        ("x = 1\n", "train.py", "Python script"),
        ("echo hello\n", "run.sh", "no training command"),
        ("swift rlhf --rlhf_type dpo\nswift sft --model m\n", "run.sh", "several training commands: line 1 .*line 2"),
        ("megatron rlhf --rlhf_type dpo\n", "run.sh", "is not supported"),
        ("trl dpo --config dpo.yaml\n", "run.sh", "reads dpo.yaml, which is not here"),
        ("a: [1\n", "c.yaml", "not valid YAML"),
    ],
)
def test_files_that_cannot_be_converted(text: str, name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read(write(tmp_path, text, name), None, None)


def test_a_program_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'llamafactory'"):
        read(write(tmp_path, TRL), "llamafactry", None)


COMMANDS = {
    "trl dpo --beta 0.2": ("trl", "dpo", None),
    "accelerate launch --num_processes 8 examples/scripts/dpo.py --beta 0.2": ("trl", "dpo", 8),
    "accelerate launch scripts/run_orpo.py --beta 0.2": ("trl", "orpo", None),
    "torchrun --nproc_per_node=4 trl/scripts/kto.py --beta 0.2": ("trl", "kto", 4),
    "llamafactory-cli train --stage dpo": ("llamafactory", "", None),
    "CUDA_VISIBLE_DEVICES=0,1,3 llamafactory-cli train --stage dpo": ("llamafactory", "", 3),
    "deepspeed --num_gpus 4 src/train.py --stage dpo": ("llamafactory", "", 4),
    "deepspeed --module openrlhf.cli.train_dpo --beta 0.2": ("openrlhf", "dpo", None),
    "python3 -m openrlhf.cli.train_ppo_ray --x 1": ("openrlhf", "ppo_ray", None),
    "ray job submit -- python3 -m openrlhf.cli.train_ppo_ray --x 1": ("openrlhf", "ppo_ray", None),
    "bash -c 'cd /x; deepspeed --module openrlhf.cli.train_rm --x 1'": ("openrlhf", "rm", None),
    "NPROC_PER_NODE=2 swift rlhf --rlhf_type dpo": ("swift", "rlhf", 2),
    "NPROC_PER_NODE=2 NNODES=2 swift rlhf --rlhf_type dpo": ("swift", "rlhf", 4),
    "swift sft --model m": ("swift", "sft", 1),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_recognised(command: str, tmp_path: Path) -> None:
    source = read(write(tmp_path, f"#!/bin/bash\nset -x\n{command}\n", "run.sh"), None, None)
    assert (source.tool, source.method, source.processes) == COMMANDS[command]


def test_a_config_file_of_a_command_is_read_and_its_options_have_precedence(tmp_path: Path) -> None:
    write(tmp_path, AXOLOTL)
    source = read(write(tmp_path, "axolotl train config.yaml --micro-batch-size 4\n", "run.sh"), None, None)
    assert source.values == {"base_model": "m", "rl": "dpo", "micro_batch_size": 4, "sequence_len": 512}


def test_the_method_chooses_a_command(tmp_path: Path) -> None:
    file = write(tmp_path, "trl sft --packing\ntrl dpo --beta 0.2\n", "run.sh")
    assert read(file, None, "dpo").values == {"beta": 0.2}


def test_options_of_a_command() -> None:
    text = "--a 1e-6 --b=x --c x y --flag --d -1 --no_e --long-name true --g {'h':1} i=2 --k=[1,2]"
    expected = {"a": 1e-6, "b": "x", "c": ["x", "y"], "flag": True, "d": -1, "e": False, "long_name": True}
    # a word after the values of an option belongs to this option
    assert flags_of(text.replace("'", '"').split()) == {**expected, "g": [{"h": 1}, "i=2"], "k": [1, 2]}
    assert flags_of(["--model.beta", "0.1"], dotted=True) == {"model.beta": 0.1}
