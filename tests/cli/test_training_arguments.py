"""Training commands without a config file: options, overrides, and what to write instead of unknown options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from preftune.cli.main import run
from preftune.cli.training import config_from
from preftune.config.schema import DPOConfig, ModelConfig, OptimConfig
from preftune.errors import ConfigError


def test_options_alone_make_a_config() -> None:
    config = config_from("dpo", ["train.max_steps=3"], "m", ["a.jsonl"], lora=True, out="runs/x")
    assert (config.model.path, config.data.train, config.out) == ("m", "a.jsonl", "runs/x")
    assert config.lora is not None
    assert config.train.max_steps == 3
    assert config_from("dpo", [], "m", ["a.jsonl", "b.jsonl"]).data.train == ["a.jsonl", "b.jsonl"]


def test_options_replace_the_keys_of_the_file_and_overrides_add_to_them(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model: {path: old, dtype: fp32}\ndata: {train: old.jsonl, max_length: 64}\nlora: {rank: 4}\n")
    config = config_from("dpo", [str(file), "loss.beta=0.3"], "new", ["new.jsonl"], lora=True)
    assert (config.model.path, config.model.dtype) == ("new", "fp32")
    assert (config.data.train, config.data.max_length) == ("new.jsonl", 64)
    assert config.lora.rank == 4  # --lora keeps the section of the file
    assert config.loss["beta"] == 0.3


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ([], {}, "neither a config file nor a model and data"),
        (["a.yaml", "b.yaml"], {}, "2 config files"),
        ([], {"model": "m"}, r"data.train is missing(.|\n)*--data FILE"),
        (["model.path=m"], {}, r"data.train is missing"),
        ([], {"data": ["d.jsonl"]}, r"model.path is missing(.|\n)*--model MODEL"),
        (["prefs.jsonl"], {}, r"not a config file(.|\n)*--data prefs.jsonl"),
        (["model.path=b"], {"model": "a", "data": ["d"]}, "set to a by --model and to b by model.path=b"),
        (["none.yaml"], {}, "no such config file"),
        (["none.yaml"], {}, r"run preftune dpo --model MODEL --data FILE, which needs no file"),
        (["x" * 5000], {}, "no such config file"),
        (["a b.jsonl"], {}, "--data 'a b.jsonl'"),
        (["lora=null"], {"model": "a", "data": ["d"], "lora": True}, "'lora=null' turns it off"),
        (["bta=0.1"], {"model": "a", "data": ["d"]}, "unknown key 'bta'"),
        (
            ["optim.lr=x", "loss.bta=1"],
            {"model": "a", "data": ["d"]},
            r"optim.lr(.|\n)*loss.bta(.|\n)*did you mean 'beta'",
        ),
        (
            ["optim.lr=x", "loss=dpoo"],
            {"model": "a", "data": ["d"]},
            r"optim.lr(.|\n)*loss.name(.|\n)*did you mean 'dpo'",
        ),
    ],
)
def test_wrong_arguments_are_one_error(arguments: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_from("dpo", arguments, **options)


def test_the_same_value_twice_is_accepted() -> None:
    assert config_from("dpo", ["out=x"], "m", ["d"], out="x").out == "x"


@pytest.mark.parametrize(
    ("arguments", "fix"),
    [
        (["dpo", "--learning-rate", "1e-5"], "did you mean optim.lr?"),
        (["dpo", "--beta=0.1"], "did you mean loss.beta?"),
        (["sft", "--num_train_epochs", "3"], "did you mean train.epochs?"),
        (["dpo", "--optim.lr=1"], "write optim.lr=1, without dashes"),
        (["dpo", "--learning-rate", "1e-5"], "write optim.lr=1e-5\n"),
        (["dpo", "--batch-size=8"], "write batch.pairs=8\n"),
        (["ppo", "--batch-size"], "write rollout.prompts=VALUE\n"),
        (["dpo", "--dta", "x.jsonl"], "did you mean --data?"),
        (["dpo", "--modle=m"], "did you mean --model?"),
        (["chat", "--beisde", "m"], "did you mean --beside?"),
    ],
)
def test_an_unknown_option_names_the_config_key(
    arguments: list[str], fix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    assert fix in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "full"),
    [("dpo", 5e-7), ("sft", 2e-5), ("reward", 1e-5), ("ppo", 3e-6), ("iterate", 5e-7), ("noise", 5e-7)],
)
def test_the_learning_rate_depends_on_method_and_adapter(method: str, full: float) -> None:
    more = ["reward=vader"] if method in ("ppo", "iterate") else []
    for overrides in ([], ["optim.lr=auto"]):
        assert config_from(method, [*more, *overrides], "m", ["d"]).optim.lr == full
        lora = config_from(method, [*more, *overrides], "m", ["d"], lora=True)
        assert lora.optim.lr == pytest.approx(10 * full)
    assert config_from(method, [*more, "optim.lr=3e-5"], "m", ["d"], lora=True).optim.lr == 3e-5
    other = config_from(method, [*more, "optim.weight_decay=0.1"], "m", ["d"], lora=True)
    assert (other.optim.lr, other.optim.weight_decay) == (pytest.approx(10 * full), 0.1)


def test_the_schedule_of_ppo_stays_with_an_automatic_rate() -> None:
    assert config_from("ppo", ["reward=vader"], "m", ["d"], lora=True).optim.schedule == "constant"


def test_configs_in_python_have_the_same_rates() -> None:
    sections: dict[str, Any] = {"model": {"path": "m"}, "data": {"train": "d"}, "lora": {}}
    assert DPOConfig(**sections).optim.lr == pytest.approx(5e-6)
    assert DPOConfig(**sections, optim=OptimConfig(warmup=0)).optim.lr == pytest.approx(5e-6)
    assert DPOConfig(**sections, optim=OptimConfig(lr=1e-3)).optim.lr == 1e-3


@pytest.mark.parametrize(("name", "dtype"), [("float32", "fp32"), ("torch.bfloat16", "bf16"), ("bfloat16", "bf16")])
def test_names_of_torch_are_accepted(name: str, dtype: str) -> None:
    assert ModelConfig(path="m", dtype=name).dtype == dtype  # type: ignore[arg-type]


def test_float16_is_refused_with_a_reason() -> None:
    with pytest.raises(ConfigError, match="float16 is not supported, because its gradients overflow"):
        ModelConfig(path="m", dtype="float16")  # type: ignore[arg-type]


def test_a_model_folder_in_place_of_a_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=f"pass models as --model {tmp_path}"):
        config_from("dpo", [str(tmp_path)])


def test_the_config_files_of_the_folder_are_offered_for_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("")
    with pytest.raises(ConfigError, match=f"pass one of {tmp_path}/mine.yaml"):
        config_from("dpo", [str(tmp_path / "my.yaml")])


def test_the_most_similar_config_files_are_offered_first_and_hidden_ones_never(tmp_path: Path) -> None:
    for name in (".hidden.yaml", "a.yaml", "mine.yaml", "my run.yml"):
        (tmp_path / name).write_text("")
    with pytest.raises(ConfigError, match="no such config file") as caught:
        config_from("dpo", [str(tmp_path / "miine.yaml")])
    assert f"pass one of {tmp_path}/mine.yaml, {tmp_path}/a.yaml, '{tmp_path}/my run.yml';" in caught.value.fix


def test_a_setting_may_be_longer_than_a_file_name(tmp_path: Path) -> None:
    columns = ", ".join(f"name{i}: column{i}" for i in range(500))
    config = config_from("dpo", [f"data.columns={{{columns}}}"], "m", ["d"])
    assert len(config.data.columns) == 500


def test_an_option_with_braces_is_quoted_for_the_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["dpo", "--loss", "{name: ipo, terms: [1]}"]) == 2
    assert "write 'loss={name: ipo, terms: [1]}'\n" in capsys.readouterr().err
