"""Run the command line on several ranks. All ranks are forked from one process, which has imported everything once."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.ranks_preload"])
LIMIT_S = 300.0


def start(
    world: int, target: Callable[..., None], arguments: Sequence[Any], local: int = 0, **variables: str
) -> list[Any]:
    """Start `target(*arguments)` on `world` ranks and return their processes. `local`: ranks that form a machine."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **variables}
    common |= {name: os.environ[name] for name in ("PREFTUNE_CACHE",) if name in os.environ}
    processes = []
    for rank in range(world):
        place = (
            {"RANK": str(rank), "LOCAL_RANK": str(rank % (local or world)), **common} if world > 1 else dict(variables)
        )
        place["LOCAL_WORLD_SIZE"] = str(local or world)
        process = CONTEXT.Process(target=in_rank, args=(place, target, arguments))
        process.start()
        processes.append(process)
    return processes


def in_rank(variables: dict[str, str], target: Callable[..., None], arguments: Sequence[Any]) -> None:
    """Run in a new process: set the variables of the rank, then call `target`."""
    os.environ.update({"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo", **variables})
    target(*arguments)


def command(arguments: Sequence[str], log: Path) -> None:
    """Run a command and exit with its exit code. Its output is appended to a file.

    IN_THREADS is set: threads write the checkpoints of the training loop, as they do for large models.
    """
    from preftune.cli.main import run
    from preftune.train import in_flight

    _print_to(log)
    if os.environ.get("IN_THREADS"):
        in_flight.SMALL = 0
    code = run(list(arguments))
    sys.stdout.flush()
    os._exit(code)


def _print_to(log: Path) -> None:
    """Append what this process prints to a file, and compute with one thread."""
    import torch

    descriptor = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)


def commands(series: Sequence[tuple[Sequence[str], str]], log: Path) -> None:
    """Run several commands, one after another, in processes that join once. Each has its own PREFTUNE_WEIGHTS."""
    from preftune.cli.main import app
    from preftune.ranks.join import join

    _print_to(log)
    ranks = join(list(series[0][0]))
    try:
        for arguments, weights in series:
            os.environ["PREFTUNE_WEIGHTS"] = weights
            app(list(arguments), standalone_mode=False)
        if ranks:
            ranks.finish(interrupted=False)
    except BaseException as error:
        traceback.print_exc(file=sys.__stderr__)
        if ranks:
            ranks.fail(error, lambda: 1)
        os._exit(1)


def run_commands(world: int, series: Sequence[tuple[Sequence[str], str]]) -> tuple[list[int], str]:
    """Run several commands in the same ranks. Return the exit codes and the output of all."""
    return _run(world, commands, [([str(argument) for argument in arguments], way) for arguments, way in series])


def run_command(world: int, arguments: Sequence[str], **variables: str) -> tuple[list[int], str]:
    """Run a command on several ranks. Return the exit codes and the output of all."""
    return _run(world, command, [str(argument) for argument in arguments], **variables)


def _run(world: int, target: Callable[..., None], what: Sequence[Any], **variables: str) -> tuple[list[int], str]:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        processes = start(world, target, (what, log), **variables)
        codes = exit_codes(processes)
        return codes, log.read_text() if log.exists() else ""


def exit_codes(processes: Sequence[Any]) -> list[int]:
    """Wait for processes, at most LIMIT_S seconds, and return their exit codes."""
    for process in processes:
        process.join(LIMIT_S)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]
