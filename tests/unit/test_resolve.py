"""Functions in a user's file: errors in them are reported with file and line."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import PAIRS, write_jsonl

from preftune.cli.main import run
from preftune.errors import ConfigError, DataError
from preftune.resolve import bind, guarded, line_of, place_of, resolve


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("pairs.jsonl"), PAIRS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ndef f(:\n    pass\n", "my.py:2: SyntaxError: invalid syntax"),
        ("def f(policy):\n  x = 1\n    y = 2\n", "my.py:3: IndentationError: unexpected indent"),
        ("import math\n\nx = math.no_such\n", "my.py:3: AttributeError: module 'math' has no attribute 'no_such'"),
        ("def g():\n    return {}['k']\n\ng()\n", "my.py:2: KeyError: 'k'"),
        ("import no_such_package\n", "my.py:1: ModuleNotFoundError: No module named 'no_such_package'"),
        ("import sys\nsys.exit()\n", "my.py:2: SystemExit"),
        ("def ff(policy):\n    return 1\n", "my.py has no function 'f'; did you mean 'ff'?"),
        ("f = 3\n", "'f' in my.py is of type int, not a function"),
        ("class f:\n    pass\n", "'f' in my.py is of type type, not a function"),
        ("\nasync def f(policy):\n    return 1\n", "my.py:2: f is an async function"),
    ],
)
def test_an_unusable_file_is_reported_with_its_line(text: str, message: str) -> None:
    Path("my.py").write_text(text)
    with pytest.raises(ConfigError) as error:
        resolve("my.py:f", {}, "loss.name")
    assert message in str(error.value)


def test_a_file_without_a_function_name_is_an_error_with_the_syntax() -> None:
    Path("my.py").write_text("def f(row):\n    return None\n")
    with pytest.raises(ConfigError, match=r"my.py is a file, not a function\n  fix: write my.py:FUNCTION"):
        resolve("my.py", {}, "data.format")


def test_a_user_file_can_define_dataclasses() -> None:
    Path("my.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Answer:\n    text: str\ndef f(row):\n    return Answer('a').text\n"
    )
    assert resolve("my.py:f", {}, "data.format")({}) == "a"


def fails(value: Any) -> Any:
    return value["k"]


def first_line(function: Any) -> int:
    line: int = function.__code__.co_firstlineno
    return line


class Callable:
    def __call__(self, value: Any) -> Any:
        return fails(value)


@pytest.mark.parametrize("function", [fails, functools.partial(fails), Callable()])
def test_the_innermost_line_of_user_code_is_reported(function: Any) -> None:
    with pytest.raises(ConfigError) as error:
        guarded(function, "mine")({})
    assert f"test_resolve.py:{first_line(fails) + 1}: KeyError: 'k'" in str(error.value)


def test_a_call_with_wrong_arguments_is_reported_at_the_function() -> None:
    with pytest.raises(
        ConfigError, match=rf"test_resolve.py:{first_line(fails)}: TypeError: fails\(\) missing 1 required"
    ):
        guarded(fails, "mine")()


def test_an_error_outside_user_code_has_no_place() -> None:
    with pytest.raises(ValueError, match="invalid literal") as error:
        int("x")
    assert place_of(error.value) == ""
    assert line_of(len) == ""


def test_exceptions_to_let_through_are_not_converted() -> None:
    with pytest.raises(KeyError):
        guarded(fails, "mine", lambda error: isinstance(error, KeyError))({})


@pytest.mark.parametrize(
    ("signature", "message"),
    [
        ("policy: Missing, *, beta: float = 0.1", "my.py:2: the annotations of 'my.py:f' cannot be read: NameError"),
        ("policy, *, beta: object() = 0.1", "my.py:2: the parameters of 'my.py:f' cannot be set in a config"),
    ],
)
def test_an_unsupported_signature_is_reported_with_its_line(signature: str, message: str) -> None:
    future = "from __future__ import annotations\n" if "Missing" in signature else "\n"
    Path("my.py").write_text(f"{future}def f({signature}):\n    return 1\n")
    function = resolve("my.py:f", {}, "loss.name")
    with pytest.raises(ConfigError) as error:
        bind(function, {}, "loss", "my.py:f")
    assert message in str(error.value)


LOSSES = """
import torch
from torch.nn.functional import logsigmoid

def key(policy, reference):
    return {}["answers"]

def attribute(policy, reference):
    return policy.wins - reference.chosen

def values(policy, reference, *, beta: float = 0.1):
    return helper(policy.chosen, beta)

def helper(chosen, beta):
    return chosen.view(-1, 7919)

class Bad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, g):
        raise RuntimeError("no derivative")

def backward(policy, reference):
    return Bad.apply(policy.chosen - policy.rejected)

def positional(policy, reference, /):
    return policy.chosen
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("key", "my.py:6: KeyError: 'answers'\n  raised in my.py:key"),
        ("attribute", "my.py:9: AttributeError: 'PairLogps' object has no attribute 'wins'"),
        ("values", "my.py:15: RuntimeError: shape '[-1, 7919]' is invalid"),
        ("backward", "my.py:24: RuntimeError: no derivative"),
        ("positional", "my.py:29: TypeError: positional() got some positional-only arguments"),
    ],
)
def test_a_failing_user_loss_exits_2_and_names_its_line(
    model_folder: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    Path("my.py").write_text(LOSSES)
    Path("run.yaml").write_text(f"model: {{path: {model_folder}}}\ndata: {{train: pairs.jsonl}}\nmonitor: null\n")
    assert run(["dpo", "run.yaml", f"loss.name=my.py:{name}"]) == 2
    stderr = capsys.readouterr().err
    assert message in stderr
    assert "defect" not in stderr


def test_a_failing_format_function_makes_a_bad_row_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("fmt.py").write_text("def f(row):\n    return row['answers'] if len(row['prompt']) > 6 else None\n")
    assert run(["data", "convert", "pairs.jsonl", "--format", "fmt.py:f", "--out", "o.jsonl"]) == 3
    stderr = capsys.readouterr().err
    assert "pairs.jsonl:1: fmt.py:2: KeyError: 'answers', raised in fmt.py:f" in stderr
    assert "fmt.py:f failed in 6 of 8 rows (lines 1, 2, 3, ...)" in stderr


def test_a_format_function_with_a_wrong_return_type_is_reported_with_the_expected_types() -> None:
    from preftune.data.read_groups import read_groups
    from preftune.formats.parsers import Reading

    Path("fmt.py").write_text("def f(row):\n    return row['prompt']\n\ndef none(row):\n    return None\n")
    with pytest.raises(DataError) as error:
        read_groups("pairs.jsonl", Reading("fmt.py:f"))
    assert "fmt.py:f returned a value of type str; return a PreferenceGroup, a list of them" in str(error.value)
    assert "fmt.py:f failed in 8 of 8 rows" in str(error.value)
    for function, fix in (("f", "returned a value of type str"), ("none", "the format function returned None")):
        _, account = read_groups("pairs.jsonl", Reading(f"fmt.py:{function}", bad_rows="drop"))
        with pytest.raises(DataError) as error:
            account.check(0.2)
        assert fix in str(error.value)
        assert f"fix: look at the function fmt.py:{function}" in str(error.value)


def test_a_row_for_which_the_format_function_returns_none_is_dropped_and_counted() -> None:
    from preftune.data.read_groups import read_groups
    from preftune.formats.parsers import Reading

    Path("fmt.py").write_text(
        "from preftune import Judgement, PreferenceGroup\ndef f(row):\n"
        "    if row['prompt'] == 'a dog':\n        return None\n"
        "    return PreferenceGroup(row['prompt'], (row['chosen'], row['rejected']), (Judgement(0, 1),))\n"
    )
    groups, account = read_groups("pairs.jsonl", Reading("fmt.py:f"))
    assert len(groups) == 7
    assert account.dropped == {"the format function returned None": ["pairs.jsonl:4"]}


@pytest.mark.parametrize("signature", ["row, more", "", "*, row"])
def test_a_format_function_must_accept_exactly_one_argument(signature: str) -> None:
    from preftune.data.read_groups import read_groups
    from preftune.formats.parsers import Reading

    Path("fmt.py").write_text(f"def f({signature}):\n    return None\n")
    with pytest.raises(ConfigError, match=r"fmt\.py:1: fmt\.py:f cannot be called with one argument"):
        read_groups("pairs.jsonl", Reading("fmt.py:f"))


def test_a_failing_user_reward_exits_2_and_names_its_line(
    model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("r.py").write_text("def f(prompts, responses):\n    return [{}['score'] for r in responses]\n")
    Path("ppo.yaml").write_text(
        f"model: {{path: {model_folder}}}\ndata: {{train: pairs.jsonl}}\nreward: r.py:f\n"
        "rollout: {max_new_tokens: 4}\n"
    )
    write_jsonl(Path("samples.jsonl"), [{"prompt": "a", "responses": ["b", "c"]}])
    for command in (
        ["ppo", "ppo.yaml"],
        ["pairs", "samples.jsonl", "--reward", "r.py:f"],
        ["score", "--data", "pairs.jsonl", "--reward", "r.py:f"],
    ):
        assert run(command) == 2
        stderr = capsys.readouterr().err
        assert "r.py:2: the reward function raised KeyError: 'score'" in stderr
        assert "defect" not in stderr
