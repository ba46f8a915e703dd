"""docs/lookup/errors.md lists every error of the code by its words, below its exit code."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from preftune import errors
from preftune.config.load import load
from preftune.config.schema import DPOConfig
from preftune.formats.values import BadRow, Drop

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "lookup" / "errors.md").read_text()


@pytest.fixture(scope="module")
def reader() -> ModuleType:
    """docs/_ext/messages.py, which is not part of a package."""
    spec = importlib.util.spec_from_file_location("messages", ROOT / "docs" / "_ext" / "messages.py")
    assert spec
    assert spec.loader
    module = sys.modules["messages"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fixed_words(text: str) -> list[str]:
    return [part.strip() for part in text.split("...") if part.strip()]


def test_every_class_of_errors_has_a_list_below_its_exit_code() -> None:
    sections = {}
    for title, body in re.findall(r"^## (.+?)$(.*?)(?=^## |\Z)", PAGE, re.M | re.S):
        for name in re.findall(r"^```\{error-messages\} (\w+)", body, re.M):
            sections[name] = int(re.findall(r"exit code (\d+)", title)[0])
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    raised = {c.__name__: c.exit_code for c in classes if issubclass(c, errors.PreftuneError)}
    del raised["PreftuneError"], raised["Stopped"]  # a base class; not an error
    assert sections == {**raised, BadRow.__name__: 3, Drop.__name__: 3}


def test_a_message_is_listed_with_its_words_and_its_fix(reader: ModuleType, tmp_path: Path) -> None:
    config = tmp_path / "run.txt"
    config.write_text("model: {path: x}\n")
    with pytest.raises(errors.ConfigError) as caught:
        load(DPOConfig, config, ["loss"])
    listed = reader.messages("ConfigError")
    hits = [one for one in listed if all(part in caught.value.what for part in fixed_words(one.what))]
    assert hits
    assert any(all(part in caught.value.fix for part in fixed_words(fix)) for one in hits for fix in one.fix)


def test_most_messages_are_listed(reader: ModuleType) -> None:
    """Those whose text comes from elsewhere, such as the operating system, are left out."""
    for name, least in {"ConfigError": 200, "DataError": 90, "ModelError": 50, "RunError": 30, "Drop": 15}.items():
        listed = reader.messages(name)
        assert len(listed) > least, name
        assert len({one.what for one in listed}) == len(listed)
        assert name == "Drop" or sum(bool(one.fix) for one in listed) > 0.6 * len(listed), name


def test_texts_of_all_forms_are_read(reader: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(
        "HINT = 'read the page'\n"
        "def one(a, b):\n"
        "    why = 'the disk is full' if a else 'the file is missing'\n"
        "    raise DataError(f'{a} of {b} rows are ' + 'broken', where='x', why=why, fix=HINT)\n"
        "def two():\n"
        "    raise errors.DataError('nothing is left', fix='use more')\n"
        "def three(text):\n"
        "    raise DataError(text)\n"
        "def four():\n"
        "    raise DataError('nothing is left', fix=hint(1))\n"
        "def hint(number):\n"
        "    return 'drop less' if number else ''\n"
    )
    rows, nothing = sorted(reader.messages("DataError", tmp_path), key=lambda one: "nothing" in one.what)
    assert rows == reader.Message(
        "... of ... rows are broken", ("the disk is full", "the file is missing"), ("read the page",)
    )
    assert nothing == reader.Message("nothing is left", (), ("use more", "drop less"))


def test_checks_of_config_values_are_listed(reader: ModuleType) -> None:
    texts = [one.what for one in reader.messages("ConfigError")]
    assert any(text.startswith("best needs held-out data") for text in texts)
    assert any(text.startswith("model.quant needs lora") for text in texts)
