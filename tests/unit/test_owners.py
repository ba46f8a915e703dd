"""Python files of other users do not run, and neither do files that a config of another user names."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from preftune import owners
from preftune.cli.main import run
from preftune.config.load import read_file
from preftune.errors import ConfigError
from preftune.owners import allowing, problem_of
from preftune.resolve import resolve

CODE = "from pathlib import Path\nPath('ran').touch()\ndef votes(row):\n    return None\n"
STRANGER = 12345

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no owners to check")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SUDO_UID", raising=False)
    Path("my.py").write_text(CODE)
    Path("rows.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    Path("run.yaml").write_text("data: {train: rows.jsonl, format: 'my.py:votes'}\n")


def give_away(file: str, group: int = -1) -> None:
    """Give a file to another user, as only root can."""
    try:
        os.chown(file, STRANGER, group)
    except PermissionError:
        pytest.skip("only root can change the owner of a file")


def check(*arguments: str) -> int:
    return run(["data", "check", "--config", "run.yaml", *arguments])


def everybody() -> None:
    Path("my.py").chmod(0o666)


def everybody_config() -> None:
    Path("run.yaml").chmod(0o646)


def other_group() -> None:
    try:
        os.chown("my.py", -1, STRANGER)
    except PermissionError:
        pytest.skip("only root can set any group")
    Path("my.py").chmod(0o664)


@pytest.mark.parametrize(
    ("change", "what", "fix"),
    [
        (lambda: give_away("my.py"), "my.py was not run: it belongs to user 12345", "read my.py and copy it"),
        (
            lambda: give_away("run.yaml"),
            "my.py was not run: the config {here}/run.yaml, which names it, belongs to user 12345",
            "read {here}/run.yaml and copy it",
        ),
        (everybody, "my.py was not run: it can be changed by every user of this machine", "run chmod go-w my.py"),
        (everybody_config, "run.yaml, which names it, can be changed by every user", "run chmod go-w {here}/run.yaml"),
        (other_group, "my.py was not run: it can be changed by group 12345", "run chmod go-w my.py"),
    ],
    ids=["file", "config", "world-writable", "world-writable config", "group-writable"],
)
def test_what_another_user_can_have_written_runs_only_with_the_option(
    change: Callable[[], None], what: str, fix: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    change()
    assert check() == 2
    message = capsys.readouterr().err
    assert what.format(here=tmp_path) in message
    assert f"fix: {fix.format(here=tmp_path)}" in message
    assert "--allow-code" in message
    assert not Path("ran").exists()
    assert check("--allow-code") == 3  # the function drops all rows
    assert Path("ran").exists()
    assert check() == 2  # the option holds for one command


def test_an_own_file_runs_also_if_the_group_of_the_user_can_write_it(capsys: pytest.CaptureFixture[str]) -> None:
    os.chown("my.py", -1, os.getegid())
    Path("my.py").chmod(0o664)
    assert check() == 3
    assert Path("ran").exists()
    assert "was not run" not in capsys.readouterr().err


def test_a_config_of_another_user_may_be_used_if_its_function_is_replaced() -> None:
    give_away("run.yaml")
    Path("own.py").write_text(CODE)
    assert check("data.format=own.py:votes") == 3
    assert Path("ran").exists()


def status(uid: int, gid: int = 7, mode: int = 0o644) -> os.stat_result:
    return os.stat_result((mode, 0, 0, 1, uid, gid, 0, 0, 0, 0))


def test_files_of_root_run_for_everybody_and_files_of_the_caller_of_sudo_for_root(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "getegid", lambda: 1000)
    assert not problem_of(status(0))
    assert not problem_of(status(1000, gid=1000, mode=0o664))
    monkeypatch.setenv("SUDO_UID", "1001")
    assert "belongs to user 1001" in problem_of(status(1001))  # the variable counts for root only
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert not problem_of(status(1001))
    assert "belongs to user 1000" in problem_of(status(1000))
    monkeypatch.setenv("SUDO_UID", "nobody")
    assert "belongs to user 1001" in problem_of(status(1001))
    monkeypatch.setenv("SUDO_GID", "1001")
    assert not problem_of(status(0, gid=1001, mode=0o664))
    monkeypatch.setattr(os, "name", "nt")
    assert not problem_of(status(4711, mode=0o666))


def test_a_compiled_copy_of_the_file_is_not_used() -> None:
    """Others may be able to write __pycache__ in a shared folder."""
    import importlib.util
    import py_compile

    Path("evil.py").write_text(CODE.replace("'ran'", "'bad'"))
    os.utime("evil.py", (1, 1))
    os.utime("my.py", (1, 1))
    Path("__pycache__").mkdir()
    py_compile.compile("evil.py", importlib.util.cache_from_source("my.py"))
    resolve("my.py:votes", {}, "data.format")
    assert Path("ran").exists()
    assert not Path("bad").exists()


def test_a_config_counts_only_while_it_names_the_file() -> None:
    give_away("run.yaml")
    with allowing(False):
        read_file("run.yaml")
        with pytest.raises(ConfigError, match="was not run"):
            resolve("my.py:votes", {}, "data.format")
        Path("mine.yaml").write_text("loss: [{name: nll}, {name: 'my.py:votes'}]\n")
        read_file("mine.yaml")  # a config of one's own, which names the same function
        resolve("my.py:votes", {}, "data.format")


def test_the_option_before_launch_reaches_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("preftune.ranks.launch.launch", lambda command, *_: started.append(command) or 0)
    assert run(["--allow-code", "launch", "dpo", "run.yaml"]) == 0
    assert run(["launch", "dpo", "run.yaml", "--allow-code"]) == 0
    assert started == [["dpo", "run.yaml", "--allow-code"]] * 2
    assert not owners.allowed()
