"""The place of a process among several, and commands that cannot run on several ranks."""

from __future__ import annotations

import pytest

from preftune.errors import ConfigError
from preftune.ranks.environment import ALONE, COMMANDS, Place, place, require_several

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}


def test_a_process_without_variables_is_alone() -> None:
    assert place({}) == ALONE == Place(0, 1, 0, 1)


def test_the_variables_of_torchrun_are_read() -> None:
    assert place(TORCHRUN) == Place(5, 8, 1, 4)


@pytest.mark.parametrize(
    "change",
    [{"RANK": "8"}, {"RANK": "x"}, {"WORLD_SIZE": ""}, {"LOCAL_RANK": "4"}, {"RANK": "-1"}, {"LOCAL_WORLD_SIZE": "9"}],
)
def test_invalid_variables_are_an_error(change: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="unset WORLD_SIZE to run one process"):
        place({**TORCHRUN, **change})


def test_a_rank_without_number_is_an_error() -> None:
    with pytest.raises(ConfigError, match="RANK"):
        place({"WORLD_SIZE": "2"})


@pytest.mark.parametrize("arguments", [["demo"], ["data", "check", "x.jsonl"], ["iterate", "c.yaml"], []])
def test_a_command_that_would_write_the_same_files_on_all_ranks_is_refused(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match="cannot run on several ranks"):
        require_several(arguments)


@pytest.mark.parametrize("command", COMMANDS)
def test_training_commands_run_on_several_ranks(command: str) -> None:
    require_several(["--quiet", command, "config.yaml"])
