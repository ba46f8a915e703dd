"""Config files: what is accepted, and what is said of what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from preftune.config.load import build, dump, load
from preftune.config.sampling import IterateConfig, PPOConfig
from preftune.config.schema import DPOConfig, NoiseConfig, RewardConfig, SFTConfig, TunedConfig
from preftune.errors import ConfigError
from preftune.resolve import bind

MINIMAL = "model: {path: m}\ndata: {train: d.jsonl}\n"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_defaults_are_those_of_the_contract(tmp_path: Path) -> None:
    config = load(DPOConfig, write(tmp_path, MINIMAL))
    assert config.loss == {"name": "sigmoid", "beta": 0.1}
    assert (config.optim.name, config.optim.lr, config.optim.warmup, config.optim.max_grad_norm) == (
        "adamw",
        5e-7,
        0.1,
        1.0,
    )
    assert (config.batch.pairs, config.batch.tokens) == (64, "auto")
    assert (config.data.max_length, config.data.overlong, config.data.format) == (1024, "truncate", "auto")
    assert (config.train.epochs, config.train.max_steps, config.train.seed) == (1, None, 0)
    assert config.lora is None
    assert config.track == []


def test_the_resolved_config_is_a_valid_input(tmp_path: Path) -> None:
    config = load(
        DPOConfig, write(tmp_path, MINIMAL), ["loss=[{name: sigmoid}, {name: nll, weight: 0.5}]", "lora.rank=4"]
    )
    again = load(DPOConfig, write(tmp_path, dump(config)))
    assert again == config


@pytest.mark.parametrize(("text", "value"), [("5e-7", 5e-7), ("5.0e-7", 5e-7), ("1E-3", 1e-3), ("1", 1.0)])
def test_numbers_are_numbers_however_yaml_reads_them(tmp_path: Path, text: str, value: float) -> None:
    path = write(tmp_path, f"{MINIMAL}optim:\n  lr: {text}\n")
    assert load(DPOConfig, path).optim.lr == value
    assert load(DPOConfig, write(tmp_path, MINIMAL), [f"optim.lr={text}"]).optim.lr == value


def test_overrides_win_and_reach_into_lists(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "loss:\n  - {name: sigmoid}\n  - {name: nll}\n")
    config = load(DPOConfig, path, ["loss.1.weight=0.2", "loss.0.beta=0.3", "data.eval=0.1", "lora={rank: 2}", "out=x"])
    assert [(t.name, t.weight, t.parameters) for t in config.terms] == [
        ("sigmoid", 1.0, {"beta": 0.3}),
        ("nll", 0.2, {}),
    ]
    assert (config.data.eval, config.lora and config.lora.rank, config.out) == (0.1, 2, "x")


# what stands in the file, what is said
PROBLEMS = [
    ("optim:\n  lrr: 1\n", "run.yaml:4: optim.lrr: unknown key; did you mean 'lr'?"),
    ("optimizer: {lr: 1}\n", "run.yaml:3: optimizer: unknown key; did you mean 'optim'?"),
    ("batch:\n  pairs: 0\n", "run.yaml:4: batch.pairs: should be greater than or equal to 1, got 0"),
    (
        "optim: {lr: fast}\n",
        "run.yaml:3: optim.lr: should be a valid number, unable to parse string as a number, got 'fast'",
    ),
    ("optim: {schedule: step}\n", "run.yaml:3: optim.schedule: should be 'linear', 'cosine' or 'constant', got 'step'"),
    ("data: {train: x}\n", "run.yaml:3: 'data' is set twice"),
    ("lora:\n  rank: 4\n  rnk: 5\n", "run.yaml:5: lora.rnk: unknown key; did you mean 'rank'?"),
    ("out: !!python/object/apply:os.system [ls]\n", "not tag:yaml.org,2002:python/object/apply:os.system"),
    ("out: [a\n", "run.yaml:4: not valid YAML"),
    ("\tout: a\n", "run.yaml:3: not valid YAML"),
    ("loss: {weight: 2}\n", "run.yaml:3: loss: a weight belongs to a list of losses"),
    ("loss: []\n", "run.yaml:3: loss: at least one loss"),
    ("loss:\n  - {name: nll, weight: -1}\n", "weight must be a number above 0"),
    ("train: {seed: .nan}\n", "train.seed: should be a finite number"),
    ("optim: {weight_decay: .inf}\n", "optim.weight_decay: should be a finite number"),
    ("data2: 1\nmodel2: 2\n", "model2: unknown key"),
    ("1: {x: 2}\n", "run.yaml:3: 1: unknown key"),
    ("optim: {lr: true}\n", "run.yaml:3: optim.lr: should be a number, not true or false, got True"),
    ("data2: &a [*a]\n", "run.yaml:3: nested more than 50 deep, or an alias (*) inside what it stands for"),
    ("data2: &a {b: *a}\n", "run.yaml:3: nested more than 50 deep, or an alias (*) inside what it stands for"),
    (f"data2: {'[' * 5000}\n", "run.yaml: nested more than 50 deep"),
    (f"data2: {'1' * 5000}\n", "run.yaml:3: values are plain text, numbers and lists, not tag:yaml.org,2002:int"),
    ("loss:\n  - {name: nll, weight: .inf}\n", "weight must be a number above 0"),
    ("loss:\n  - {name: nll, weight: .nan}\n", "weight must be a number above 0"),
    ("loss:\n  - {name: nll, weight: true}\n", "weight must be a number above 0"),
    ("out: 1e5\n", "run.yaml:3: out: should be a valid string (text that looks like a number or true/false needs"),
]


@pytest.mark.parametrize(("text", "message"), PROBLEMS)
def test_problem(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(DPOConfig, write(tmp_path, MINIMAL + text))
    assert message in str(error.value)
    assert error.value.exit_code == 2


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(DPOConfig, write(tmp_path, "data: {max_length: 1, eval: 1.5}\nbatch: {tokens: few}\n"))
    text = str(error.value)
    assert all(
        part in text
        for part in ("model: required", "data.train: required", "data.max_length", "data.eval", "batch.tokens")
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr", "an override has the form section.key=value"),
        ("optim..lr=1", "an override has the form section.key=value"),
        ("optim.lr=[", "not valid YAML"),
        ("optim.warmpu=1", "override 'optim.warmpu=1': optim.warmpu: unknown key; did you mean 'warmup'?"),
        ("batch.pairs=-3", "override 'batch.pairs=-3': batch.pairs: should be greater than or equal to 1"),
        ("data.train.0=x", "data.train"),
        ("0.x=1", "override '0.x=1': 0: unknown key"),
        ("0=1", "override '0=1': 0: unknown key"),
        ("optim.²=1", "override 'optim.²=1': optim.²: unknown key"),
        ("track.²=1", "override 'track.²=1': track"),
        ("track=[tensorbord]", "(did you mean 'tensorboard'?), got 'tensorbord'"),
        ("data.ignore=&a [*a]", "an alias (*) inside what it stands for"),
        (f"data.ignore={'[' * 5000}", "not valid YAML"),
        (f"optim.lr={'1' * 5000}", "values are plain text, numbers and lists"),
        ("out=1e5", "needs quotes"),
    ],
)
def test_bad_override(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(DPOConfig, write(tmp_path, MINIMAL), [override])
    assert message in str(error.value)


def test_a_yaml_bomb_is_refused(tmp_path: Path) -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(8)
    )
    with pytest.raises(ConfigError, match="10,000 values"):
        load(DPOConfig, write(tmp_path, bomb))


def test_files_that_are_no_configs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such config file"):
        load(DPOConfig, tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="a mapping of sections"):
        load(DPOConfig, write(tmp_path, "- a\n"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(DPOConfig, tmp_path / "binary.yaml")
    (tmp_path / "binary.yaml").write_bytes(bytes(range(128)))
    with pytest.raises(ConfigError, match=r"binary.yaml: not valid YAML: unacceptable character") as error:
        load(DPOConfig, tmp_path / "binary.yaml")
    assert "\n" not in str(error.value)
    (tmp_path / "binary.yaml").write_bytes(b"x" * 1_000_001)
    with pytest.raises(ConfigError, match="larger than 1 MB"):
        load(DPOConfig, tmp_path / "binary.yaml")
    with pytest.raises(
        ConfigError, match=r"a folder, not a config file\n  fix: give one of its files: binary.yaml, run"
    ):
        load(DPOConfig, tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load(DPOConfig, "x" * 5000)


def test_a_byte_order_mark_is_no_part_of_the_config(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL, encoding="utf-8-sig")
    assert load(DPOConfig, path).model.path == "m"


@pytest.mark.parametrize("text", ["1e-1", "+1e-1", "1E-1", "1.e-1", ".1e0", "0.1E+0", "100e-3"])
def test_exponents_are_numbers_everywhere(tmp_path: Path, text: str) -> None:
    """YAML 1.1 takes some of these for text; a union of text and number, and a loss, would keep it."""
    path = write(tmp_path, f"{MINIMAL}loss: [{{name: sigmoid, weight: {text}, beta: {text}}}]\n")
    for config in (
        load(DPOConfig, path, [f"data.eval={text}"]),
        load(DPOConfig, write(tmp_path, MINIMAL), [f"loss=[{{weight: {text}, beta: {text}}}]", f"data.eval={text}"]),
    ):
        assert (config.data.eval, config.terms[0].weight, config.terms[0].parameters) == (0.1, 0.1, {"beta": 0.1})


@pytest.mark.parametrize("name", ["1e5", "2024-05-01", "2024-13-45", "5", "true", "1.5", "null"])
def test_text_that_looks_like_something_else_survives(tmp_path: Path, name: str) -> None:
    config = load(DPOConfig, write(tmp_path, MINIMAL), [f'out="{name}"'])
    assert config.out == name
    assert load(DPOConfig, write(tmp_path, dump(config))) == config


@pytest.mark.parametrize("day", ["2024-05-01", "2024-13-45"])
def test_a_date_is_text(tmp_path: Path, day: str) -> None:
    assert load(DPOConfig, write(tmp_path, f"{MINIMAL}out: {day}\n")).out == day


def numbers(schema: type[BaseModel], prefix: str = "") -> list[str]:
    """Names of all fields that are numbers."""
    found = []
    for name, field in schema.model_fields.items():
        kinds = {field.annotation, *get_args(field.annotation)}
        section = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
        found += numbers(section, f"{prefix}{name}.") if section else [f"{prefix}{name}"] * bool(kinds & {int, float})
    return found


@pytest.mark.parametrize("name", numbers(DPOConfig))
@pytest.mark.parametrize("value", ["true", "false", "yes"])
def test_true_is_no_number(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: should be a number, not true or false"):
        load(DPOConfig, write(tmp_path, MINIMAL), [f"{name}={value}"])


def test_there_are_numbers_to_test() -> None:
    assert {"optim.lr", "data.eval", "batch.tokens", "train.max_steps", "lora.rank"} <= set(numbers(DPOConfig))


def test_true_is_no_number_for_a_loss_either() -> None:
    def mine(policy: Any, *, beta: float = 0.1, few: int | None = None, log: bool = False, any_: Any = 0) -> Any:
        """A loss."""

    for key in ("beta", "few"):
        with pytest.raises(ConfigError, match=rf"loss\.{key}: must be a number, not true or false"):
            bind(mine, {key: True}, "loss", "mine")
    assert bind(mine, {"log": True, "any_": True, "few": 3}, "loss", "mine") == {
        "beta": 0.1,
        "few": 3,
        "log": True,
        "any_": True,
    }


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[3] / "configs").rglob("*.yaml")), ids=str)
def test_every_shipped_config_is_valid_and_complete(path: Path) -> None:
    """Shipped files parse, and every key they set is one that differs from nothing: no typo survives in them."""
    raw = yaml.safe_load(path.read_text())
    by_name: dict[str, type[TunedConfig]] = {
        "reward": RewardConfig,
        "ppo": PPOConfig,
        "iterate": IterateConfig,
        "noise": NoiseConfig,
    }
    config = load(by_name.get(path.stem) or (DPOConfig if "loss" in raw else SFTConfig), path)
    if isinstance(config, DPOConfig):
        from preftune.methods.objective import bind_objective
        from preftune.methods.reference import reference_kind

        reference_kind(config, bind_objective(config.terms))


def test_a_loss_by_its_name_alone() -> None:
    """`loss=ipo` on the command line is the section {name: ipo}."""
    config = build(DPOConfig, {"model": {"path": "m"}, "data": {"train": "d"}, "loss": "ipo"})
    assert config.loss == {"name": "ipo"}
    assert [(term.name, term.weight) for term in config.terms] == [("ipo", 1.0)]
