"""Whole conversions: every key is accounted for, the result is a valid config, and the objective is what they train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from preftune.config.commands import CONFIGS
from preftune.config.load import load
from preftune.errors import ConfigError
from preftune.moving.ours import has_key, has_mixtures
from preftune.moving.run import Imported, convert

TRL = {
    "model_name_or_path": "m", "dataset_name": "d", "output_dir": "o", "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2, "learning_rate": 5e-7, "num_train_epochs": 1, "beta": 0.05,
}  # fmt: skip
LLAMAFACTORY = {
    "model_name_or_path": "m", "stage": "dpo", "finetuning_type": "lora", "dataset": "d.json", "template": "qwen",
    "output_dir": "o", "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "learning_rate": 5e-6,
}  # fmt: skip
AXOLOTL = {
    "base_model": "m", "rl": "dpo", "datasets": [{"path": "d", "type": "chatml.intel", "split": "train"}],
    "micro_batch_size": 2, "gradient_accumulation_steps": 4, "learning_rate": 1e-5, "sequence_len": 1024,
}  # fmt: skip
OPENRLHF = "deepspeed --module openrlhf.cli.train_dpo --model.model_name_or_path m --data.dataset d "
SWIFT = "NPROC_PER_NODE=2 swift rlhf --rlhf_type dpo --model m --dataset d "
BASES = {"trl": TRL, "llamafactory": LLAMAFACTORY, "axolotl": AXOLOTL}


def run(folder: Path, values: dict[str, Any] | str, **options: Any) -> tuple[Imported, dict[str, Any]]:
    """Convert a config or a command, load the result as preftune does, and return it as plain data."""
    file = folder / ("run.sh" if isinstance(values, str) else "dpo.yaml")
    file.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    result = convert(str(file), **options)
    (folder / "ours.yaml").write_text(result.text)
    missing = [f"{key}=x" for key in result.missing]
    load(CONFIGS[result.method], folder / "ours.yaml", missing)
    return result, yaml.safe_load(result.text)


def loss_of(folder: Path, tool: str, **changes: Any) -> Any:
    return run(folder, BASES[tool] | changes, tool=tool)[1]["loss"]


def test_a_config_of_trl(tmp_path: Path) -> None:
    result, config = run(tmp_path, TRL)
    assert result.method == "dpo"
    assert config["model"] == {"path": "m", "dtype": "bf16"}
    assert config["data"] == {"train": "d:train", "max_length": 1024}
    assert config["loss"] == {"name": "sigmoid", "beta": 0.05}
    # TRL's defaults differ from preftune's, so they are written
    expected = {"lr": 5e-7, "schedule": "linear", "warmup": 0, "weight_decay": 0.0, "max_grad_norm": 1.0}
    assert {key: float(v) if key == "lr" else v for key, v in config["optim"].items()} == expected
    assert config["batch"] == {"pairs": 8}
    assert config["train"] == {"epochs": 1, "save_every": 500, "log_every": 10, "seed": 42}
    assert config["out"] == "o"


@pytest.mark.parametrize("tool", BASES)
def test_every_key_is_in_the_report_and_in_the_file(tool: str, tmp_path: Path) -> None:
    values = BASES[tool] | {
        "no_such_key": 7, "bf16": True, "warmup_ratio": 0.1, "report_to": "wandb", "deepspeed": "x.json", "seed": 3,
        "neftune_noise_alpha": 5, "trust_remote_code": True, "load_in_4bit": False, "max_steps": 7, "empty": None,
    }  # fmt: skip
    result, _ = run(tmp_path, values, tool=tool)
    report = "\n".join(result.report)
    assert [key for key in values if key not in report] == []
    assert [key for key in values if key not in result.text] == []
    assert "no_such_key: 7" in report.partition("keys that are not recognised")[2]


def test_all_options_of_commands_are_in_the_report(tmp_path: Path) -> None:
    options = "--adam.lr 1e-6 --no.such.key 7 --ds.zero_stage 3 --logger.wandb.key abc --data.max_samples 9"
    result, config = run(tmp_path, OPENRLHF + options)
    report = "\n".join(result.report)
    assert [word for word in options.split() if word.startswith("--") and word[2:] not in report] == []
    assert "abc" not in report + result.text  # a secret is not copied
    assert config["track"] == ["wandb"]


PRECISE = {"trl": 1e-6, "llamafactory": 5e-5}


@pytest.mark.parametrize(
    ("tool", "changes", "expected"),
    [
        ("trl", {}, {"name": "sigmoid", "beta": 0.05}),
        ("trl", {"beta": None}, {"name": "sigmoid", "beta": 0.1}),
        # TRL 0.29 and later ignore label_smoothing; earlier versions, which have rpo_alpha, do not
        ("trl", {"label_smoothing": 0.1}, {"name": "sigmoid", "beta": 0.05}),
        (
            "trl",
            {"label_smoothing": 0.1, "max_prompt_length": 5},
            {"name": "sigmoid", "beta": 0.05, "label_smoothing": 0.1},
        ),
        ("trl", {"loss_type": "ipo"}, {"name": "ipo", "beta": 0.05, "average": True}),
        ("trl", {"loss_type": ["sppo_hard"]}, {"name": "sppo", "beta": 0.05}),
        ("trl", {"loss_type": "bco_pair"}, {"name": "bco_pair", "beta": 0.05, "threshold": False}),
        ("trl", {"loss_type": "sigmoid_norm"}, {"name": "sigmoid_norm", "beta": 0.05}),
        (
            "trl",
            {"loss_type": "robust", "label_smoothing": 0.2},
            {"name": "robust", "beta": 0.05, "label_smoothing": 0.2},
        ),
        ("trl", {"f_divergence_type": "js_divergence"}, {"name": "jensen_shannon", "beta": 0.05}),
        (
            "trl",
            {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3},
            {"name": "alpha_divergence", "beta": 0.05, "alpha": 0.7},
        ),
        ("trl", {"ld_alpha": 0.5}, {"name": "ld_dpo", "beta": 0.05, "alpha": 0.5}),
        ("trl", {"use_weighting": True}, {"name": "wpo", "beta": 0.05}),
        ("trl", {"loss_type": "discopop"}, {"name": "discopop", "beta": 0.05, "tau": 0.05}),
        (
            "trl",
            {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
            [
                {"name": "sigmoid", "beta": 0.05, "weight": 0.8},
                {"name": "bco_pair", "beta": 0.05, "threshold": False, "weight": 0.2},
                {"name": "nll", "weight": 1.0},
            ],
        ),
        (
            "trl",
            {"rpo_alpha": 0.5},
            [{"name": "sigmoid", "beta": 0.05, "weight": 1.0}, {"name": "nll", "weight": 0.5}],
        ),
        ("llamafactory", {}, {"name": "sigmoid", "beta": 0.1}),
        ("llamafactory", {"dpo_label_smoothing": 0.1}, {"name": "sigmoid", "beta": 0.1, "label_smoothing": 0.1}),
        ("llamafactory", {"pref_loss": "ipo"}, {"name": "sigmoid_norm", "beta": 0.1}),
        ("llamafactory", {"pref_loss": "hinge"}, {"name": "sigmoid", "beta": 0.1}),
        ("llamafactory", {"pref_loss": "simpo", "pref_beta": 2}, {"name": "simpo", "beta": 2.0, "gamma": 0.5}),
        ("llamafactory", {"pref_loss": "orpo"}, {"name": "orpo", "beta": 0.1}),
        (
            "llamafactory",
            {"pref_bco_weight": 1.0, "pref_ftx": 0.2},
            [
                {"name": "sigmoid", "beta": 0.1, "weight": 0.5},
                {"name": "bco_pair", "beta": 0.1, "weight": 0.5},
                {"name": "nll", "weight": 0.2},
            ],
        ),
        ("axolotl", {}, {"name": "sigmoid", "beta": 0.1}),
        ("axolotl", {"dpo_label_smoothing": 0.1}, {"name": "sigmoid", "beta": 0.1}),
        ("axolotl", {"rl": "ipo", "rl_beta": 0.2}, {"name": "ipo", "beta": 0.2, "average": True}),
        ("axolotl", {"rl": "orpo", "orpo_alpha": 0.3}, {"name": "orpo", "beta": 0.3}),
        (
            "axolotl",
            {"rl": "simpo", "rl_beta": 2, "simpo_gamma": 1.0},
            [{"name": "simpo", "beta": 2.0, "gamma": 1.0, "weight": 1.0}, {"name": "nll", "weight": 1.0}],
        ),
        ("axolotl", {"rl": "simpo", "simpo_gamma": 1.0, "cpo_alpha": 0}, {"name": "simpo", "beta": 0.1, "gamma": 1.0}),
        (
            "axolotl",
            {"rl": "kto", "kto_desirable_weight": 0.2},
            {"name": "kto", "beta": 0.1, "desirable": 0.2, "undesirable": 1.0},
        ),
    ],
)
def test_the_loss_is_what_the_program_trains(tool: str, changes: dict[str, Any], expected: Any, tmp_path: Path) -> None:
    assert loss_of(tmp_path, tool, **changes) == expected


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (OPENRLHF, {"name": "sigmoid", "beta": 0.1}),
        (OPENRLHF + "--model.label_smoothing 0.1", {"name": "sigmoid", "beta": 0.1, "label_smoothing": 0.1}),
        (OPENRLHF + "--model.ipo_enable --model.beta 0.2", {"name": "ipo", "beta": 0.2, "average": False}),
        (OPENRLHF + "--ipo --beta 0.2", {"name": "ipo", "beta": 0.2, "average": False}),
        (
            OPENRLHF + "--model.nll_loss_coef 0.3",
            [{"name": "sigmoid", "beta": 0.1, "weight": 1.0}, {"name": "nll", "weight": 0.3}],
        ),
        (SWIFT + "--label_smoothing 0.1", {"name": "sigmoid", "beta": 0.1, "label_smoothing": 0.1}),
        (
            SWIFT.replace("dpo", "simpo"),
            [{"name": "simpo", "beta": 2.0, "gamma": 1.0, "weight": 1.0}, {"name": "nll", "weight": 1.0}],
        ),
        (SWIFT.replace("dpo", "simpo") + "--cpo_alpha 0", {"name": "simpo", "beta": 2.0, "gamma": 1.0}),
        (SWIFT.replace("dpo", "cpo"), {"name": "cpo", "beta": 0.1, "alpha": 1.0}),
        (SWIFT + "--rpo_alpha 0.1", [{"name": "sigmoid", "beta": 0.1, "weight": 1.0}, {"name": "nll", "weight": 0.1}]),
    ],
)
def test_the_loss_of_commands(command: str, expected: Any, tmp_path: Path) -> None:
    assert run(tmp_path, command)[1]["loss"] == expected


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"label_smoothing": 0.1}, "TRL ignores label_smoothing with loss_type sigmoid"),
        ({"loss_type": "aot"}, "TRL sorts within each micro-batch"),
        ({"loss_type": "sft"}, "averages over all chosen tokens of a micro-batch"),
        ({"loss_type": "ipo"}, "the paper has sums"),
    ],
)
def test_differences_between_name_and_formula_are_reported(changes: dict[str, Any], note: str, tmp_path: Path) -> None:
    result, _ = run(tmp_path, TRL | changes)
    assert note in "\n".join(result.report)
    assert note in result.text


def test_the_formula_is_printed(tmp_path: Path) -> None:
    result, _ = run(tmp_path, TRL | {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]})
    report = "\n".join(result.report)
    assert "trains sigmoid: [-log sigmoid(beta h)], beta 0.05" in report
    assert "trains nll: 0.5 x [-log pi_w/|y_w|]" in report
    assert "h = lr_w - lr_l" in report


@pytest.mark.parametrize(
    "changes",
    [
        {"loss_type": "made_up"},
        {"loss_type": "hinge", "ld_alpha": 0.5},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 2.0},
        {"ld_alpha": 0.5, "use_weighting": True},
    ],
)
def test_an_objective_that_preftune_does_not_have_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the objective cannot be carried over"):
        run(tmp_path, TRL | changes)
    assert run(tmp_path, TRL | changes, settings=["loss.name=ipo"])[1]["loss"]["name"] == "ipo"


@pytest.mark.parametrize(
    ("values", "options", "pairs"),
    [
        (TRL, {}, 8),
        (TRL, {"processes": 8}, 64),
        (TRL | {"per_device_train_batch_size": None, "gradient_accumulation_steps": None}, {}, 8),
        (AXOLOTL, {"processes": 4}, 32),
        (AXOLOTL | {"gradient_accumulation_steps": None, "batch_size": 6}, {}, 6),
        (LLAMAFACTORY, {"processes": 2}, 16),
        (OPENRLHF + "--train.batch_size 96 --train.micro_batch_size 2", {"processes": 8}, 96),
        (SWIFT, {}, 16),  # ms-swift accumulates to at least 16
        (SWIFT + "--per_device_train_batch_size 3 --gradient_accumulation_steps 5", {}, 30),
    ],
)
def test_pairs_per_step(values: Any, options: dict[str, Any], pairs: int, tmp_path: Path) -> None:
    assert run(tmp_path, values, **options)[1]["batch"]["pairs"] == pairs


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"warmup_ratio": 0.1}, {"schedule": "linear", "warmup": 0.1}),
        ({"warmup_steps": 20, "warmup_ratio": 0.1}, {"schedule": "linear", "warmup": 20}),
        ({"lr_scheduler_type": "cosine", "warmup_steps": 0.05}, {"schedule": "cosine", "warmup": 0.05}),
        ({"lr_scheduler_type": "constant", "warmup_ratio": 0.1}, {"schedule": "constant", "warmup": 0}),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5}, {"schedule": "constant", "warmup": 5}),
        ({"lr_scheduler_type": "polynomial"}, {"schedule": "linear", "warmup": 0}),
        ({"max_grad_norm": 0.3, "weight_decay": 0.01}, {"max_grad_norm": 0.3, "weight_decay": 0.01}),
        ({"optim": "rmsprop"}, {"name": "rmsprop"}),
        ({"optim": "paged_adamw_8bit"}, {"name": "adamw"}),
    ],
)
def test_the_optimizer(changes: dict[str, Any], expected: dict[str, Any], tmp_path: Path) -> None:
    optim = run(tmp_path, TRL | changes)[1]["optim"]
    assert {key: optim[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_train_epochs": 3.0}, {"epochs": 3}),
        ({"max_steps": 70}, {"epochs": 1000, "max_steps": 70}),
        ({"max_steps": -1, "num_train_epochs": 2}, {"epochs": 2}),
        ({"save_strategy": "no"}, {"save_every": None}),
        ({"save_steps": 0.5}, {"save_every": None}),
        ({"logging_steps": 5, "seed": 7}, {"log_every": 5, "seed": 7}),
        ({"eval_strategy": "steps", "eval_steps": 50}, {"eval_every": 50}),
    ],
)
def test_the_length_of_the_run(changes: dict[str, Any], expected: dict[str, Any], tmp_path: Path) -> None:
    train = run(tmp_path, TRL | changes)[1]["train"]
    assert {key: train.get(key) for key in expected} == expected


def test_held_out_data(tmp_path: Path) -> None:
    assert "eval" not in run(tmp_path, TRL)[1]["data"]
    assert run(tmp_path, TRL | {"eval_strategy": "epoch"})[1]["data"]["eval"] == "d:test"
    assert run(tmp_path, AXOLOTL | {"val_set_size": 0.05})[1]["data"]["eval"] == 0.05
    assert run(tmp_path, LLAMAFACTORY | {"val_size": 0.1, "eval_strategy": "steps"})[1]["data"]["eval"] == 0.1


@pytest.mark.parametrize(
    ("tool", "changes", "expected"),
    [
        ("trl", {"use_peft": True}, {"rank": 16, "alpha": 32.0, "targets": ["q_proj", "v_proj"]}),
        ("trl", {"use_peft": True, "lora_target_modules": "all-linear"}, {"targets": "all-linear"}),
        ("trl", {"use_peft": True, "use_rslora": True, "lora_r": 64}, {"rank": 64, "alpha": 32.0, "rslora": True}),
        ("llamafactory", {}, {"rank": 8, "alpha": 16.0, "targets": "all-linear"}),
        (
            "llamafactory",
            {"lora_rank": 4, "lora_target": "q_proj,v_proj"},
            {"alpha": 8.0, "targets": ["q_proj", "v_proj"]},
        ),
        ("axolotl", {"adapter": "qlora", "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True}, {"rank": 8}),
    ],
)
def test_adapters(tool: str, changes: dict[str, Any], expected: dict[str, Any], tmp_path: Path) -> None:
    lora = run(tmp_path, BASES[tool] | changes, tool=tool)[1]["lora"]
    assert {key: lora[key] for key in expected} == expected


def test_an_adapter_that_is_off_is_not_written(tmp_path: Path) -> None:
    assert "lora" not in run(tmp_path, TRL | {"use_peft": False, "lora_r": 16})[1]
    assert "lora" not in run(tmp_path, LLAMAFACTORY | {"finetuning_type": "full"})[1]


def test_data_sets_of_llamafactory_are_found_in_dataset_info(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    info = '{"d": {"file_name": "d.jsonl", "ranking": true, "columns": {"prompt": "q", "chosen": "c"}}}'
    (tmp_path / "data" / "dataset_info.json").write_text(info)
    config = run(tmp_path, LLAMAFACTORY | {"dataset": "d"})[1]
    assert config["data"]["train"] == "data/d.jsonl"
    assert config["data"]["columns"] == {"prompt": "q", "chosen": "c"}


def test_other_methods(tmp_path: Path) -> None:
    result, config = run(tmp_path, TRL | {"center_rewards_coefficient": 0.01, "beta": None}, method="reward")
    assert (result.method, config["centre"]) == ("reward", 0.01)
    assert run(tmp_path, LLAMAFACTORY | {"stage": "sft", "mask_history": True})[0].method == "sft"
    result, config = run(tmp_path, "python -m openrlhf.cli.train_ppo_ray --actor.model_name_or_path m "
                         "--reward.model_name_or_path r --data.prompt_dataset d --rollout.batch_size 64 "
                         "--train.batch_size 16 --algo.kl.init_coef 0.02 --actor.adam.lr 5e-7")  # fmt: skip
    assert (result.method, config["reward"], config["rollout"]["prompts"]) == ("ppo", "r", 64)
    assert (config["ppo"]["minibatches"], config["ppo"]["kl_coef"], config["ppo"]["lam"]) == (4, 0.02, 1.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (TRL | {"reward_funcs": "x", "beta": None}, "GRPO"),
        (AXOLOTL | {"rl": "grpo"}, "grpo is not converted"),
        (LLAMAFACTORY | {"stage": "pt"}, "stage pt"),
        (SWIFT.replace("dpo", "gkd"), "gkd is not converted"),
        ("python -m openrlhf.cli.train_ppo_ray --algo.advantage.estimator rloo", "PPO with GAE"),
    ],
)
def test_methods_that_preftune_does_not_have(values: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, values)


def test_a_value_that_cannot_be_read_is_listed(tmp_path: Path) -> None:
    result, config = run(tmp_path, OPENRLHF + "--adam.lr $LR --train.batch_size 8")
    assert "adam.lr: $LR: the value is not a number; set it yourself" in "\n".join(result.report)
    assert "lr" not in config["optim"]


def test_a_folder_in_use_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "checkpoint-500").mkdir()
    assert run(tmp_path, TRL | {"output_dir": str(tmp_path / "o")})[1]["out"] == f"{tmp_path / 'o'}-preftune"


def test_settings_replace_values(tmp_path: Path) -> None:
    settings = ["model.path=mine", "data.train=[a.jsonl, b.jsonl]", "loss.beta=0.3"]
    config = run(tmp_path, TRL, settings=settings)[1]
    assert (config["model"]["path"], config["data"]["train"]) == ("mine", ["a.jsonl", "b.jsonl"])
    assert config["loss"] == {"name": "sigmoid", "beta": 0.3}
    with pytest.raises(ConfigError, match="lrr"):
        run(tmp_path, TRL, settings=["optim.lrr=1"])


def test_the_best_weights_and_early_stopping(tmp_path: Path) -> None:
    evaluated = {"eval_strategy": "steps", "eval_steps": 50, "load_best_model_at_end": True}
    evaluated |= {"metric_for_best_model": "eval_rewards/accuracies", "greater_is_better": True}
    config = run(tmp_path, TRL | evaluated)[1]
    assert config["best"] == {"metric": "rewards/accuracies", "direction": "higher"}
    config = run(tmp_path, TRL | evaluated | {"load_best_model_at_end": False, "early_stopping_patience": 3})[1]
    assert (config["best"]["final"], config["best"]["patience"]) == ("last", 3)
    result, config = run(tmp_path, TRL | {"load_best_model_at_end": True})
    assert "best" not in config
    assert "load_best_model_at_end: true: set data.eval" in "\n".join(result.report)


def test_variants_of_adapters(tmp_path: Path) -> None:
    values = {"use_peft": True, "load_in_8bit": True, "use_dora": True, "lora_modules_to_save": ["lm_head"]}
    config = run(tmp_path, TRL | values)[1]
    assert config["model"]["quant"] == "int8"
    assert (config["lora"]["dora"], config["lora"]["modules_to_save"]) == (True, ["lm_head"])
    lora = {"lora_r": 8, "lora_alpha": 16, "lora_target_linear": True}
    assert run(tmp_path, AXOLOTL | lora | {"adapter": "qlora"})[1]["model"]["quant"] == "nf4"
    assert run(tmp_path, AXOLOTL | lora | {"adapter": "lora", "load_in_8bit": True})[1]["model"]["quant"] == "int8"
    _, config = run(tmp_path, TRL | {"load_in_4bit": True})
    assert "quant" not in config["model"]


def test_settings_that_preftune_has_too(tmp_path: Path) -> None:
    """Theirs are listed where preftune does not have the key."""
    mixture = {"datasets": [{"id": "a", "weight": 0.5}, {"id": "b"}]}
    train = run(tmp_path, TRL | {"dataset_name": None, "dataset_mixture": mixture})[1]["data"]["train"]
    expected = [{"path": "a:train", "weight": 0.5}, {"path": "b:train", "weight": 1}]
    assert train == (expected if has_mixtures() else ["a:train", "b:train"])
    limited = run(tmp_path, LLAMAFACTORY | {"max_samples": 100})[1]["data"]
    assert limited.get("limit") == (100 if has_key("data.limit") else None)


def test_what_is_missing_is_listed(tmp_path: Path) -> None:
    result, _ = run(tmp_path, {"beta": 0.1, "loss_type": "sigmoid", "per_device_train_batch_size": 1})
    assert result.missing == ["model.path", "data.train"]
