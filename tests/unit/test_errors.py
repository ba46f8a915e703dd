"""How errors are printed."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from preftune.errors import (
    ConfigError,
    DataError,
    PreftuneError,
    Stopped,
    StorageError,
    did_you_mean,
    for_shell,
    printable,
    require_writable,
)


def test_place_reason_and_fix_are_on_separate_lines() -> None:
    error = DataError("no chosen response", where="pairs.jsonl:3", why="the row is not a pair", fix="remove the row")
    assert str(error) == "pairs.jsonl:3: no chosen response\n  the row is not a pair\n  fix: remove the row"


def test_missing_parts_are_left_out() -> None:
    assert str(PreftuneError("no data")) == "no data"
    assert str(PreftuneError("no data", fix="set data.train")) == "no data\n  fix: set data.train"


def test_a_clean_stop_prints_next_instead_of_fix() -> None:
    error = Stopped("stopped after step 3 of 12", fix="rerun the same command to resume")
    assert str(error) == "stopped after step 3 of 12\n  next: rerun the same command to resume"
    assert error.exit_code == 75


def test_a_close_name_is_suggested_and_otherwise_all_names_are_listed() -> None:
    assert did_you_mean("sigmiod", ["ipo", "sigmoid"]) == "did you mean 'sigmoid'?"
    assert did_you_mean("x", ["sigmoid", "ipo"]) == "valid names: ipo, sigmoid"
    assert did_you_mean("x", []) == "valid names: none"


def test_a_path_below_a_file_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        require_writable(tmp_path / "file" / "below")


def test_require_writable_creates_nothing(tmp_path: Path) -> None:
    require_writable(tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("fix", "shown"),
    [
        ("set data.columns={prompt: q, chosen: a}, or", "set 'data.columns={prompt: q, chosen: a}', or"),
        ('write data.columns={prompt: "my q"}; or', "write 'data.columns={prompt: \"my q\"}'; or"),
        ("set track=[tensorboard]", "set 'track=[tensorboard]'"),
        ("write 'data.columns={a: b}'", "write 'data.columns={a: b}'"),
        ("set loss.beta=0.1", "set loss.beta=0.1"),
        ("write `model: {path: ...}`", "write `model: {path: ...}`"),
    ],
)
def test_a_fix_with_braces_can_be_pasted_in_a_shell(fix: str, shown: str) -> None:
    assert PreftuneError("no", fix=fix).fix == shown


def test_a_quoted_setting_reaches_the_program_unchanged() -> None:
    setting = """data.columns={prompt: "it's"}"""
    assert shlex.split(for_shell(setting)) == [setting]


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b[2J\tb\r\n\x07\x9bä猫🎉") == "a\\x1b[2J\tb\\r\n\\x07\\x9bä猫🎉"
    assert str(ConfigError("a\x1b[2J", where="x\x07")) == "x\\x07: a\\x1b[2J"


@pytest.mark.parametrize("setting", ["a.b={c: {d: e}}", "a=[[1, 2], {b: 3}]", "where=[score >= 2]"])
def test_nested_braces_are_quoted_too(setting: str) -> None:
    assert shlex.split(for_shell(f"set {setting}, or x=1")) == ["set", f"{setting},", "or", "x=1"]
