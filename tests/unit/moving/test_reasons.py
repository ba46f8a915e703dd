"""Every setting of transformers' Trainer, and of TRL where it is installed, is mapped or listed with a reason."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from preftune.errors import ConfigError
from preftune.moving import reasons, trl
from preftune.moving.draft import reason_of
from preftune.moving.read import Source
from preftune.moving.run import LOST, SAME

BASE = {"model_name_or_path": "m", "dataset_name": "d"}
FIELDS_OF_ITEMS = {"path", "name", "data_dir", "data_files", "split", "columns", "fraction"}


def unknown_keys(names: list[str], method: str) -> list[str]:
    result = []
    for name in names:
        try:
            draft = trl.convert(Source("dpo.yaml", "trl", method, BASE | {name: 1}), None)
        except ConfigError:
            continue  # 1 is not a value of this key, so the key is recognised
        if draft.refused:
            continue  # run.convert lists the keys of the loss
        draft.finish(SAME["trl"], LOST["trl"])
        result += [key for entry in draft.listed("unknown") for key in entry.keys]
    return result


def names_of(*classes: Any) -> list[str]:
    return sorted({field.name for record in classes for field in dataclasses.fields(record)} - FIELDS_OF_ITEMS)


def test_every_setting_of_the_trainer_is_recognised() -> None:
    transformers = pytest.importorskip("transformers")
    assert unknown_keys(names_of(transformers.TrainingArguments), "dpo") == []


@pytest.mark.parametrize("method", ["dpo", "kto", "reward", "sft"])
@pytest.mark.filterwarnings("ignore")
def test_every_setting_of_trl_is_recognised(method: str) -> None:
    package = pytest.importorskip("trl")
    config = getattr(package, {"dpo": "DPO", "kto": "KTO", "reward": "Reward", "sft": "SFT"}[method] + "Config")
    assert unknown_keys(names_of(config, package.ModelConfig, package.ScriptArguments), method) == []


def test_a_pattern_is_for_all_keys_that_begin_with_it() -> None:
    table = {"a_*": "all", "a_b": "one"}
    assert [reason_of(key, table) for key in ("a_b", "a_c", "a_", "a", "ba_c")] == ["one", "all", "all", None, None]


@pytest.mark.parametrize("name", [name for name in vars(reasons) if name.endswith(("_SAME", "_LOST"))])
def test_reasons_are_sentences_and_no_names(name: str) -> None:
    """A name of a reason that does not exist would be printed as it is."""
    for reason in vars(reasons)[name].values():
        assert " " in reason
        assert not reason.isupper()
