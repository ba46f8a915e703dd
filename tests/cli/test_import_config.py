"""`preftune import-config` writes a config that `--dry-run` accepts, and an account of every key."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.conftest import PAIRS, write_jsonl

from preftune.cli.main import run

TRL = """\
model_name_or_path: MODEL
dataset_name: prefs.jsonl
loss_type: [sigmoid, sft]
loss_weights: [1.0, 0.2]
beta: 0.05
per_device_train_batch_size: 2
gradient_accumulation_steps: 4
num_train_epochs: 1
bf16: false
output_dir: out
push_to_hub: true
"""
OPENRLHF = """\
BETA=0.05
deepspeed --module openrlhf.cli.train_dpo \\
   --model.model_name_or_path MODEL --data.dataset prefs.jsonl \\
   --model.beta $BETA --train.batch_size 8 --ckpt.output_dir out
"""
AXOLOTL = """\
base_model: MODEL
rl: simpo
rl_beta: 2.0
simpo_gamma: 1.0
datasets: [{path: prefs.jsonl, ds_type: json, type: chatml.intel}]
micro_batch_size: 8
learning_rate: 1e-6
bf16: false
output_dir: out
"""
LLAMAFACTORY = """\
model_name_or_path: MODEL
stage: dpo
finetuning_type: lora
pref_loss: ipo
dataset: prefs.jsonl
learning_rate: 1.0e-6
per_device_train_batch_size: 8
output_dir: out
"""
SWIFT = "swift rlhf --rlhf_type orpo --model MODEL --dataset ./prefs.jsonl --output_dir out --learning_rate 1e-6\n"
CONFIGS = {
    "trl-dpo.yaml": TRL, "openrlhf.sh": OPENRLHF, "axolotl.yml": AXOLOTL, "lf.yaml": LLAMAFACTORY, "swift.sh": SWIFT
}  # fmt: skip


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("prefs.jsonl"), PAIRS)
    for name, text in CONFIGS.items():
        Path(name).write_text(text)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_result_passes_a_dry_run(name: str, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path(name).write_text(CONFIGS[name].replace("MODEL", str(model_folder)))
    assert run(["import-config", name, "data.as_chat=false", "model.dtype=fp32", "--out", "ours.yaml"]) == 0
    printed = capsys.readouterr().out
    assert "trains " in printed
    assert "preftune dpo ours.yaml --dry-run\n" in printed
    assert run(["dpo", "ours.yaml", "--dry-run"]) == 0, capsys.readouterr().err
    assert not Path("out").exists()


def test_without_out_the_config_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["import-config", "trl-dpo.yaml", "--processes", "4"]) == 0
    captured = capsys.readouterr()
    assert yaml.safe_load(captured.out)["batch"] == {"pairs": 32}
    assert "push_to_hub: true: upload the result with preftune export" in captured.err


def test_a_file_is_not_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    Path("ours.yaml").write_text("mine")
    assert run(["import-config", "trl-dpo.yaml", "--out", "ours.yaml"]) == 2
    assert "ours.yaml: the file exists" in capsys.readouterr().err
    assert Path("ours.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.yaml"], "none.yaml: no such config file"),
        (["trl-dpo.yaml", "other.yaml"], "'other.yaml' is not a setting"),
        (["trl-dpo.yaml", "--from", "trll"], "did you mean 'trl'?"),
        (["trl-dpo.yaml", "--method", "grpo"], "cannot run grpo of TRL"),
        (["trl-dpo.yaml", "optim.lrr=1"], "unknown key 'optim.lrr'"),
    ],
)
def test_mistakes_are_reported(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["import-config", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["trl-dpo.yaml", "axolotl.yml", "lf.yaml"])
def test_training_commands_name_the_command_for_configs_of_other_programs(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["dpo", name]) == 2
    assert f"run preftune import-config {name} --out dpo.yaml" in capsys.readouterr().err


def test_import_config_imports_no_torch() -> None:
    code = (
        "import sys; from preftune.cli.main import run; "
        "code = run(['import-config', 'trl-dpo.yaml', '--out', 'o.yaml']); "
        "print(code, [m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
