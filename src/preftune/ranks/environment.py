"""The place of this process among several, from the variables that torchrun and `preftune launch` set.

Imports nothing slow: the command line reads this before it imports torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from preftune.errors import ConfigError

LAUNCHED = "PREFTUNE_LAUNCHER"  # process id of `preftune launch`, which reports what it sees of its ranks
WEIGHTS = "PREFTUNE_WEIGHTS"  # whether each rank holds all weights or a part: auto, whole, node or sharded
COMMANDS = ("sft", "dpo", "reward", "ppo", "sample")  # commands that several ranks run together


@dataclass(frozen=True, slots=True)
class Place:
    """One of `world` processes: its number on all nodes, and its number on its node, of `local_world`."""

    rank: int
    world: int
    local_rank: int
    local_world: int


ALONE = Place(0, 1, 0, 1)


def place(variables: Mapping[str, str] | None = None) -> Place:
    """Return the place of this process. Without WORLD_SIZE it is alone. Raises ConfigError for invalid variables."""
    variables = os.environ if variables is None else variables
    if "WORLD_SIZE" not in variables:
        return ALONE
    try:
        rank, world = int(variables["RANK"]), int(variables["WORLD_SIZE"])
        local_rank = int(variables.get("LOCAL_RANK", rank))
        local_world = int(variables.get("LOCAL_WORLD_SIZE", world))
    except (KeyError, ValueError) as error:
        raise _invalid(f"WORLD_SIZE is set, but RANK or another variable is missing or not a number: {error}") from None
    if not (0 <= rank < world and 0 <= local_rank < local_world <= world):
        raise _invalid(f"RANK={rank} of WORLD_SIZE={world} with LOCAL_RANK={local_rank} of {local_world}")
    return Place(rank, world, local_rank, local_world)


def _invalid(what: str) -> ConfigError:
    fix = "start with `preftune launch --ranks N COMMAND ...` or torchrun, or unset WORLD_SIZE to run one process"
    return ConfigError(what, where="environment", fix=fix)


def require_several(arguments: list[str]) -> None:
    """Raise ConfigError for a command that cannot run on several ranks."""
    words = [argument for argument in arguments if not argument.startswith("-")]
    command = words[0] if words else ""
    if command not in COMMANDS and not {"--help", "--version"} & set(arguments):
        raise ConfigError(
            f"preftune {command}".rstrip() + " cannot run on several ranks",
            where="launch",
            why="each process would write the same files",
            fix=f"start one process; these commands can: {', '.join(COMMANDS)}",
        )
