"""The JSON Schema of configs accepts what the commands accept, and refuses what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from preftune.cli.main import run
from preftune.config.commands import CONFIGS
from preftune.config.json_schema import json_schema, keys_of, values_of
from preftune.config.load import read_file

ROOT = Path(__file__).resolve().parents[3]
MINIMAL: dict[str, Any] = {"model": {"path": "m"}, "data": {"train": "d.jsonl"}}
ACCEPTED: list[dict[str, Any]] = [
    {},
    {"loss": "ipo"},
    {"loss": "dpo"},
    {"loss": {"beta": 0.3}},
    {"loss": {"name": "simpo", "beta": 2.0, "gamma": 1.0}},
    {"loss": {"name": "my.py:focal", "gamma": 2}},
    {"loss": [{"name": "sigmoid", "weight": 1.0}, "nll"]},
    {"model": {"path": "m", "dtype": "float32"}},
    {"optim": {"lr": "auto"}},
    {"lora": None},
    {"lora": {"rank": 8}},
    {"monitor": None},
    {"best": "loss", "train": {"eval_every": 5}, "data": {"train": "d.jsonl", "eval": 0.1}},
    {"data": {"train": ["a", "b"], "eval": 0.1}},
]
REFUSED: list[dict[str, Any]] = [
    {"beta": 0.1},
    {"loss": "sigmiod"},
    {"loss": {"name": "ipo", "gamma": 1.0}},
    {"loss": {"gamma": 1.0}},
    {"loss": {"name": "sigmoid", "weight": 1.0}},
    {"loss": []},
    {"model": {"path": "m", "dtype": "float16"}},
    {"optim": {"lr": "fast"}},
    {"optim": {"lr": 2}},
    {"data": {"train": "d.jsonl", "eval": 1.5}},
    {"data": {"train": "d.jsonl", "max_length": 1}},
    {"train": {"epoch": 1}},
]


def validator(method: str) -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft7Validator.check_schema(json_schema(method))
    return jsonschema.Draft7Validator(json_schema(method))


@pytest.mark.parametrize("method", CONFIGS)
def test_the_schema_has_every_key_with_its_description(method: str) -> None:
    def keys(model: type[BaseModel], prefix: str = "") -> set[str]:
        names: set[str] = set()
        for name, field in model.model_fields.items():
            inner = [part for part in (field.annotation, *getattr(field.annotation, "__args__", ())) if is_model(part)]
            names |= keys(inner[0], f"{prefix}{name}.") if inner else {f"{prefix}{name}"}
            if inner and type(None) in getattr(field.annotation, "__args__", ()):
                names.add(f"{prefix}{name}")
        return names

    def is_model(part: Any) -> bool:
        return isinstance(part, type) and issubclass(part, BaseModel)

    schema = keys_of(method)
    assert {key for key in schema if not key.startswith("loss.")} == keys(CONFIGS[method]) - {"loss"}
    without = {key for key, node in schema.items() if "description" not in node}
    assert {key for key in without if not key.startswith("loss.")} <= {"lora", "monitor", "best"}


def test_values_are_listed_for_names_and_switches() -> None:
    keys = keys_of("dpo")
    assert values_of(keys["reference.kind"]) == ["auto", "frozen", "adapter-off", "cached", "none"]
    assert values_of(keys["model.compile"]) == ["true", "false", "auto"]
    assert {"sigmoid", "dpo", "kto"} <= set(values_of(keys["loss.name"]))
    assert values_of(keys["train.epochs"]) == []


def test_the_command_writes_the_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "schema", "ppo"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema("ppo")
    file = tmp_path / "new" / "dpo.schema.json"
    assert run(["config", "schema", "dpo", "--out", str(file)]) == 0
    assert json.loads(file.read_text()) == json_schema("dpo")
    assert "# yaml-language-server: $schema=dpo.schema.json" in capsys.readouterr().out
    assert run(["config", "schema", "dppo"]) == 2
    assert "did you mean" in capsys.readouterr().err


@pytest.mark.parametrize("changes", ACCEPTED, ids=str)
def test_what_the_command_accepts_is_valid(changes: dict[str, Any]) -> None:
    config = {**MINIMAL, **changes}
    CONFIGS["dpo"].model_validate(config)
    assert [error.message for error in validator("dpo").iter_errors(config)] == []


@pytest.mark.parametrize("changes", REFUSED, ids=str)
def test_what_the_command_refuses_is_not_valid(changes: dict[str, Any]) -> None:
    assert not validator("dpo").is_valid({**MINIMAL, **changes})


@pytest.mark.parametrize("file", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_the_configs_of_the_repository_are_valid(file: Path) -> None:
    from preftune.cli.init import command_of

    method = command_of(file.relative_to(ROOT / "configs").with_suffix("").as_posix()).split()[-1]
    assert [error.message for error in validator(method).iter_errors(read_file(file)[0])] == []
