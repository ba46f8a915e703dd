"""Config files and overrides: accepted values, and the messages for rejected ones."""

from __future__ import annotations

from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from preftune.config.commands import CONFIGS
from preftune.config.hints import TRL_NAMES, suggest
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


def test_defaults_are_the_documented_ones(tmp_path: Path) -> None:
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
def test_every_way_to_write_a_number_is_read_as_a_number(tmp_path: Path, text: str, value: float) -> None:
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


# text of the file, part of the message
PROBLEMS = [
    ("optim:\n  lrr: 1\n", "run.yaml:4: unknown key 'optim.lrr'; did you mean optim.lr?"),
    ("optimizer: {lr: 1}\n", "run.yaml:3: unknown key 'optimizer'; did you mean optim?"),
    ("batch:\n  pairs: 0\n", "run.yaml:4: batch.pairs: must be at least 1, got 0"),
    (
        "optim: {lr: fast}\n",
        "run.yaml:3: optim.lr: must be a number, got 'fast'",
    ),
    ("optim: {schedule: step}\n", "run.yaml:3: optim.schedule: must be linear, cosine or constant, got 'step'"),
    ("data: {train: x}\n", "run.yaml:3: 'data' is set twice"),
    ("lora:\n  rank: 4\n  rnk: 5\n", "run.yaml:5: unknown key 'lora.rnk'; did you mean lora.rank?"),
    ("out: !!python/object/apply:os.system [ls]\n", "not tag:yaml.org,2002:python/object/apply:os.system"),
    ("out: [a\n", "run.yaml:4: not valid YAML"),
    ("\tout: a\n", "run.yaml:3: not valid YAML"),
    ("loss: {weight: 2}\n", "run.yaml:3: loss: weight applies to a list of losses"),
    ("loss: []\n", "run.yaml:3: loss: the list needs at least one loss"),
    ("loss:\n  - {name: nll, weight: -1}\n", "weight must be a number above 0"),
    ("train: {seed: .nan}\n", "train.seed: must be a finite number"),
    ("optim: {weight_decay: .inf}\n", "optim.weight_decay: must be a finite number"),
    ("data2: 1\nmodel2: 2\n", "unknown key 'model2'"),
    ("1: {x: 2}\n", "run.yaml:3: unknown key '1'"),
    ("optim: {lr: true}\n", "run.yaml:3: optim.lr: must be a number, not true or false, got True"),
    ("data2: &a [*a]\n", "run.yaml:3: more than 50 levels of nesting, or an alias (*) inside the value"),
    (
        "data2: &a {b: *a}\n",
        "run.yaml:3: more than 50 levels of nesting, or an alias (*) inside the value it refers to",
    ),
    (f"data2: {'[' * 5000}\n", "run.yaml: more than 50 levels of nesting"),
    (f"data2: {'1' * 5000}\n", "run.yaml:3: cannot read '11111111111111111111' as int"),
    ("loss:\n  - {name: nll, weight: .inf}\n", "weight must be a number above 0"),
    ("loss:\n  - {name: nll, weight: .nan}\n", "weight must be a number above 0"),
    ("loss:\n  - {name: nll, weight: true}\n", "weight must be a number above 0"),
    ("out: 1e5\n", "run.yaml:3: out: must be text (put quotes around text that"),
    (
        "loss: 3\n",
        "run.yaml:3: loss: must be a name (ipo), a section ({name: ipo, beta: 0.1}), or a list of these",
    ),
    ("track: tensorboard\n", "run.yaml:3: track: must be a list, got 'tensorboard'"),
    (
        "reference: {kind: nonne}\n",
        "reference.kind: must be auto, frozen, adapter-off, cached or none (did you mean 'none'?)",
    ),
    ("train: {epochs: 1.5}\n", "train.epochs: must be a whole number, got 1.5"),
    ("optim: {lr: 2}\n", "optim.lr: must be at most 1, got 2"),
    ("lora: {targets: {a: b}}\n", "run.yaml:3: lora.targets: must be text, or a list"),
    ("lora: {targets: [a, [b]]}\n", "run.yaml:3: lora.targets.1: must be text"),
    ("lora: {init: pissa_niter_4}\n", "lora.init: pissa_niter_4 moves a part of the base weights into the adapter"),
    ("lora: {init: LoftQ}\n", "lora.init: loftq moves a part of the base weights into the adapter"),
    ("lora: {init: eva}\n", "lora.init: eva needs a pass over the data before training"),
    ("lora: {init: false}\n", "lora.init: with false, the adapter changes the outputs"),
    ("lora: {dora: true, adapter: keep}\n", "with dora, two adapters cannot be saved as one"),
    ("optim: fast\n", "run.yaml:3: optim is a section, not a value; set optim.name or optim.lr or"),
]


def test_a_key_of_several_types_has_one_message(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(DPOConfig, write(tmp_path, MINIMAL), ["model.compile=maybe", "lora.targets=[a, [b]]"])
    assert str(error.value).splitlines() == [
        "override 'model.compile=maybe': model.compile: must be true or false, or auto, got 'maybe'",
        "override 'lora.targets=[a, [b]]': lora.targets.1: must be text",
    ]


@pytest.mark.parametrize(("text", "message"), PROBLEMS)
def test_a_wrong_config_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(DPOConfig, write(tmp_path, MINIMAL + text))
    assert message in str(error.value)
    assert error.value.exit_code == 2


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(DPOConfig, write(tmp_path, "data: {max_length: 1, eval: 1.5}\nbatch: {tokens: few}\n"))
    text = str(error.value)
    assert all(
        part in text
        for part in ("model is required", "data.train is required", "data.max_length", "data.eval", "batch.tokens")
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr", "an override has the form section.key=value"),
        ("optim..lr=1", "an override has the form section.key=value"),
        ("optim.lr=[", "not valid YAML"),
        ("optim.warmpu=1", "override 'optim.warmpu=1': unknown key 'optim.warmpu'; did you mean optim.warmup?"),
        ("batch.pairs=-3", "override 'batch.pairs=-3': batch.pairs: must be at least 1"),
        ("data.train.0=x", "data.train"),
        ("0.x=1", "override '0.x=1': unknown key '0'"),
        ("0=1", "override '0=1': unknown key '0'"),
        ("optim.²=1", "override 'optim.²=1': unknown key 'optim.²'"),
        ("model=gpt2", "override 'model=gpt2': model is a section, not a value; set model.path"),
        ("track.²=1", "override 'track.²=1': track"),
        ("track=[tensorbord]", "(did you mean 'tensorboard'?), got 'tensorbord'"),
        ("data.ignore=&a [*a]", "an alias (*) inside the value it refers to"),
        (f"data.ignore={'[' * 5000}", "not valid YAML"),
        (f"optim.lr={'1' * 5000}", "cannot read '11111111111111111111' as int"),
        ("out=1e5", "put quotes around"),
    ],
)
def test_a_wrong_override_is_refused_with_its_text(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(DPOConfig, write(tmp_path, MINIMAL), [override])
    assert message in str(error.value)


def test_an_override_of_a_missing_list_entry_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "loss: [{name: sigmoid}]\n")
    with pytest.raises(ConfigError, match="1 is not an index of this list, which has 1 entries"):
        load(DPOConfig, path, ["loss.1.weight=2"])


def test_a_yaml_bomb_is_refused(tmp_path: Path) -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(8)
    )
    with pytest.raises(ConfigError, match="10,000 values"):
        load(DPOConfig, write(tmp_path, bomb))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such config file"):
        load(DPOConfig, tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="a mapping of sections"):
        load(DPOConfig, write(tmp_path, "- a\n"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="byte 0 is not UTF-8"):
        load(DPOConfig, tmp_path / "binary.yaml")
    (tmp_path / "binary.yaml").write_bytes(bytes(range(128)))
    with pytest.raises(ConfigError, match=r"binary.yaml: not valid YAML: unacceptable character") as error:
        load(DPOConfig, tmp_path / "binary.yaml")
    assert "\n" not in error.value.what
    (tmp_path / "binary.yaml").write_bytes(b"x" * 1_000_001)
    with pytest.raises(ConfigError, match="the file is larger than 1 MB"):
        load(DPOConfig, tmp_path / "binary.yaml")
    with pytest.raises(
        ConfigError, match=r"this is a folder, not a config file\n  fix: pass one of its files: binary.yaml, run"
    ):
        load(DPOConfig, tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load(DPOConfig, "x" * 5000)


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL, encoding="utf-8-sig")
    assert load(DPOConfig, path).model.path == "m"


@pytest.mark.parametrize("text", ["1e-1", "+1e-1", "1E-1", "1.e-1", ".1e0", "0.1E+0", "100e-3"])
def test_exponents_are_read_as_numbers(tmp_path: Path, text: str) -> None:
    """Some of these are text in YAML 1.1, and would stay text in a loss and in a union of text and number."""
    path = write(tmp_path, f"{MINIMAL}loss: [{{name: sigmoid, weight: {text}, beta: {text}}}]\n")
    for config in (
        load(DPOConfig, path, [f"data.eval={text}"]),
        load(DPOConfig, write(tmp_path, MINIMAL), [f"loss=[{{weight: {text}, beta: {text}}}]", f"data.eval={text}"]),
    ):
        assert (config.data.eval, config.terms[0].weight, config.terms[0].parameters) == (0.1, 0.1, {"beta": 0.1})


@pytest.mark.parametrize("name", ["1e5", "2024-05-01", "2024-13-45", "5", "true", "1.5", "null"])
def test_quoted_text_that_looks_like_a_number_stays_text(tmp_path: Path, name: str) -> None:
    config = load(DPOConfig, write(tmp_path, MINIMAL), [f'out="{name}"'])
    assert config.out == name
    assert load(DPOConfig, write(tmp_path, dump(config))) == config


@pytest.mark.parametrize("day", ["2024-05-01", "2024-13-45"])
def test_a_date_is_text(tmp_path: Path, day: str) -> None:
    assert load(DPOConfig, write(tmp_path, f"{MINIMAL}out: {day}\n")).out == day


def kinds_of(annotation: Any) -> set[Any]:
    """Return the types that a value may have: the members of unions, also inside Annotated."""
    if get_origin(annotation) is Annotated:
        return kinds_of(get_args(annotation)[0])
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()
    return set().union(*map(kinds_of, members)) if members else {annotation}


def numbers(schema: type[BaseModel], prefix: str = "") -> list[str]:
    """Return the names of all fields that are numbers."""
    names = []
    for name, field in schema.model_fields.items():
        kinds = kinds_of(field.annotation)
        section = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
        names += numbers(section, f"{prefix}{name}.") if section else [f"{prefix}{name}"] * bool(kinds & {int, float})
    return names


@pytest.mark.parametrize("name", numbers(DPOConfig))
@pytest.mark.parametrize("value", ["true", "false", "yes"])
def test_true_is_not_accepted_as_a_number(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: must be a number, not true or false"):
        load(DPOConfig, write(tmp_path, MINIMAL), [f"{name}={value}"])


def test_the_number_fields_include_nested_and_optional_ones() -> None:
    assert {"optim.lr", "data.eval", "batch.tokens", "train.max_steps", "lora.rank"} <= set(numbers(DPOConfig))


def test_true_is_not_accepted_as_a_number_by_a_loss() -> None:
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
def test_every_shipped_config_is_valid(path: Path) -> None:
    """The files in configs/ parse, so they have no misspelt key."""
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


def test_a_name_of_a_loss_is_short_for_its_section() -> None:
    config = build(DPOConfig, {"model": {"path": "m"}, "data": {"train": "d"}, "loss": "ipo"})
    assert config.loss == {"name": "ipo"}
    assert [(term.name, term.weight) for term in config.terms] == [("ipo", 1.0)]


@pytest.mark.parametrize(
    ("loss", "section"),
    [
        ("dpo", {"name": "sigmoid"}),
        ({"name": "dpo", "beta": 0.2}, {"name": "sigmoid", "beta": 0.2}),
        ([{"name": "nll"}, {"name": "dpo", "weight": 2}], [{"name": "nll"}, {"name": "sigmoid", "weight": 2}]),
    ],
)
def test_dpo_is_a_name_of_the_loss_sigmoid(loss: Any, section: Any) -> None:
    """The config holds `sigmoid`, so saved configs and metrics name it the same way."""
    config = build(DPOConfig, {"model": {"path": "m"}, "data": {"train": "d"}, "loss": loss})
    assert config.loss == section
    assert "sigmoid" in dump(config)


TRL_CASES = [
    (DPOConfig, "beta", "loss.beta"),
    (DPOConfig, "loss_type", "loss.name"),
    (DPOConfig, "learning_rate", "optim.lr"),
    (SFTConfig, "per_device_train_batch_size", "batch.pairs"),
    (PPOConfig, "per_device_train_batch_size", "rollout.prompts"),
    (RewardConfig, "num_train_epochs", "train.epochs"),
    (DPOConfig, "max_prompt_length", "data.max_prompt_length"),
    (DPOConfig, "train.warmup_ratio", "optim.warmup"),
    (PPOConfig, "beta", "ppo.kl_coef"),
    (IterateConfig, "beta", "pairs.beta or loss.beta"),
    (DPOConfig, "batch_size", "batch.pairs"),
    (PPOConfig, "batch_size", "rollout.prompts"),
    (DPOConfig, "lr", "optim.lr"),
    (DPOConfig, "epochs", "train.epochs"),
    (DPOConfig, "max_length", "data.max_length"),
    (DPOConfig, "cutoff_len", "data.max_length"),
    (IterateConfig, "cutoff_len", "max_length"),
    (DPOConfig, "output_dir", "out"),
    (RewardConfig, "center_rewards_coefficient", "centre"),
]


@pytest.mark.parametrize(("schema", "name", "key"), TRL_CASES)
def test_a_name_that_trl_uses_gets_the_key_of_preftune(
    tmp_path: Path, schema: type[TunedConfig], name: str, key: str
) -> None:
    text = MINIMAL + ("reward: length\n" if schema in (PPOConfig, IterateConfig) else "")
    with pytest.raises(ConfigError) as error:
        load(schema, write(tmp_path, text), [f"{name}=1"])
    assert f"unknown key {name!r}; did you mean {key}?" in str(error.value)


def test_a_name_that_trl_uses_gets_no_hint_where_no_key_does_the_same(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key 'beta'; known keys: batch, best, data, lora"):
        load(SFTConfig, write(tmp_path, MINIMAL), ["beta=0.1"])


def test_every_key_that_is_suggested_for_a_trl_name_exists() -> None:
    for name, keys in TRL_NAMES.items():
        hints = " ".join(suggest(schema, (name,)) for schema in CONFIGS.values())
        for key in keys.split():
            assert f" {key}" in hints, name
