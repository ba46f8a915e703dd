"""Commands in shell scripts are read without running the script."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from preftune.moving.shell import commands_of


def words_of(text: str) -> list[tuple[str, ...]]:
    return [command.words for command in commands_of(text)]


SCRIPTS = {
    "continuation lines": "run --a 1 \\\n  --b 'x y' \\\n  --c \"z w\"\n",
    "a variable": "LR=1e-6\nrun --lr $LR --again ${LR} --quoted \"$LR\" --not '$LR'\n",
    "a default": "run --n ${N:-8} --m ${M-4}\n",
    "arithmetic": "N=4\nrun --a $((16 / N / 2)) --b $((2 * (N + 1))) --c $(expr 16 / $N)\n",
    "an array": "ARGS=(\n  --a 1\n  --b 'x y'\n)\nrun \"${ARGS[@]}\" --c 2\n",
    "a variable with several words": 'ARGS="--a 1 --b 2"\nrun $ARGS --c 3\n',
    "a text over several lines": 'ARGS="--a 1\n--b 2"\nrun $ARGS\n',
    "appending": 'ARGS="--a 1"\nARGS+=" --b 2"\nrun $ARGS\n',
    "a variable before the command": "X=1 Y=2 run --a 1\n",
    "exported variables": "export A=1 B=2\nrun --a $A --b $B\n",
    "two commands": "run --a 1 && run --b 2; run --c 3\n",
    "a comment": "run --a 1 # --b 2\n",
    "a comment between options": "run --a 1 \\\n  # --b 2 \\\n",
    "a pipe": "run --a 1 2>&1 | cat\n",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_commands_are_those_that_bash_runs(name: str, tmp_path: Path) -> None:
    """bash runs the script with a command `run` that prints its arguments."""
    script = "run() { printf '%q ' run \"$@\"; echo; }\n" + SCRIPTS[name]
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    expected = [tuple(shlex.split(line.replace("$'", "'"))) for line in done.stdout.splitlines()]
    assert [words for words in words_of(SCRIPTS[name]) if words[0] == "run"] == expected
    assert expected


def test_a_here_document_becomes_a_variable() -> None:
    text = "read -r -d '' args <<EOF\nrun --a $N \\\n   --b 2\nEOF\n"
    text += 'if [[ ${1} != "x" ]]; then\n    start --module $args\nfi\n'
    [command] = [words for words in words_of("N=7\n" + text) if words[0] == "start"]
    assert command == ("start", "--module", "run", "--a", "7", "--b", "2")


def test_a_variable_that_depends_on_a_condition_stays_a_name() -> None:
    text = 'if [ "$1" = big ]; then\n  LR=1e-5\nelse\n  LR=1e-6\nfi\nrun --lr $LR\n'
    assert ("run", "--lr", "$LR") in words_of(text)
    assert ("run", "--lr", "$UNSET") in words_of("run --lr $UNSET\n")


def test_a_variable_that_is_set_again_has_its_last_value() -> None:
    assert words_of("A=1\nrun $A\nA=2\nrun $A\n") == [("run", "1"), ("run", "2")]


def test_the_environment_of_a_command() -> None:
    [command] = commands_of("export A=1\nB=2 \\\nC=3 run --x\n")
    assert (command.words, command.line) == (("run", "--x"), 2)
    assert {name: command.environment[name] for name in "ABC"} == {"A": "1", "B": "2", "C": "3"}


@pytest.mark.parametrize("text", ["run 'open", 'A="', "<<EOF\nnever ends", "$((1/0))", "a\\", "\\", "A=(", "}", "fi"])
def test_damaged_scripts_are_read_to_the_end(text: str) -> None:
    list(commands_of(text))
