"""The command `preftune launch`: run a training command on several ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

#: Options after the command belong to the command.
RAW = {"ignore_unknown_options": True, "allow_interspersed_args": False}


def is_launch(arguments: Sequence[str]) -> bool:
    """Return whether the command is `launch`, whose options after the command are those of its ranks."""
    return next((argument for argument in arguments if not argument.startswith("-")), "") == "launch"


def launch(
    command: Annotated[
        list[str], typer.Argument(help="The command with its arguments.", metavar="COMMAND ...", show_default=False)
    ],
    ranks: Annotated[int, typer.Option(help="Processes on this machine, one per GPU.", min=1)] = 1,
    weights: Annotated[
        str | None,
        typer.Option(help="whole: all weights on each rank; sharded: a part on each; node: a copy per machine; auto."),
    ] = None,
    nodes: Annotated[int, typer.Option(help="Number of machines; start this command on each.", min=1)] = 1,
    node: Annotated[int, typer.Option(help="Number of this machine, from 0.", min=0)] = 0,
    address: Annotated[str | None, typer.Option(help="With --nodes: HOST:PORT of machine 0.")] = None,
) -> None:
    """Run a command on several processes.

    The commands are sft, dpo, reward, ppo and sample. Example: preftune launch --ranks 4 dpo run.yaml
    """
    from preftune.owners import ALLOW, allowed
    from preftune.ranks.launch import Nodes
    from preftune.ranks.launch import launch as start

    if allowed() and ALLOW not in command:  # the option stands before `launch`
        command = [*command, ALLOW]
    code = start(command, ranks, Nodes(nodes, node, address), weights)
    if code:
        raise typer.Exit(code)
