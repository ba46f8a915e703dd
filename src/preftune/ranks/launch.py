"""Start the ranks of a command on this machine, forward signals to them, and return the exit code of the first cause.

The launcher imports neither torch nor the training code. Unlike torchrun, it keeps preftune's exit codes and notices
within seconds that a rank was killed or suspended.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from preftune import stop
from preftune.errors import ConfigError, RanksError, Stopped
from preftune.ranks.environment import LAUNCHED, WEIGHTS, require_several
from preftune.ranks.join import LISTEN
from preftune.ranks.processes import SUSPENDED_S, is_suspended
from preftune.stop import print_line

POLL_S = 0.1
GRACE_S = 6.0  # after the first failure, in which the other ranks end without being killed


@dataclass(frozen=True, slots=True)
class Nodes:
    """The nodes of a run: their number, the number of this one, and HOST:PORT of the first."""

    count: int = 1
    index: int = 0
    address: str | None = None


def launch(arguments: list[str], ranks: int, nodes: Nodes, weights: str | None = None) -> int:
    """Run a command on `ranks` processes per node, and return its exit code. Raises ConfigError.

    `weights`: which part of the weights each rank holds, see ranks.shard.CHOICES.
    """
    require_several(arguments)
    if nodes.count > 1 and nodes.address is None:
        fix = "pass --address HOST:PORT of the first node; it must be the same on all nodes"
        raise ConfigError("several nodes need the address of the first", where="--address", fix=fix)
    if nodes.index >= nodes.count:
        raise ConfigError(f"there are {nodes.count} nodes, numbered from 0", where="--node", fix="pass a lower number")
    if weights is not None:
        os.environ[WEIGHTS] = weights
    with stop.between_checks(lambda text: None), stop.one_tells() as tells:
        processes = _start(arguments, ranks, nodes, tells)
        try:
            return _wait(processes, nodes.index * ranks, ranks * nodes.count)
        finally:
            _kill(processes)


def _start(arguments: Sequence[str], ranks: int, nodes: Nodes, tells: int) -> list[subprocess.Popen[bytes]]:
    listening = None
    if nodes.address is None:
        listening = socket.create_server(("127.0.0.1", 0))
        host, port = "127.0.0.1", str(listening.getsockname()[1])
    else:
        host, _, port = nodes.address.rpartition(":")
        if not host or not port.isdigit():
            fix = "pass --address HOST:PORT of the first node, for example node0:29500"
            raise ConfigError(f"{nodes.address!r} is not HOST:PORT", where="--address", fix=fix)
    threads = max(1, (os.cpu_count() or 1) // ranks)
    common = {
        "WORLD_SIZE": str(ranks * nodes.count),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": host,
        "MASTER_PORT": port,
        LAUNCHED: str(os.getpid()),
    }
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, **common}
    if nodes.count == 1 and sys.platform.startswith("linux"):
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    processes = []
    for local in range(ranks):
        place = {"RANK": str(nodes.index * ranks + local), "LOCAL_RANK": str(local)}
        shared = [listening.fileno()] if listening and local == 0 else []
        place |= {LISTEN: str(shared[0])} if shared else {}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "preftune", *arguments],
                env={**environment, **place},
                stdin=subprocess.DEVNULL,
                stdout=None if local == 0 else subprocess.DEVNULL,
                pass_fds=[*shared, tells],
                start_new_session=True,  # Ctrl-C reaches the launcher only, which forwards it once
            )
        )
    if listening:
        listening.close()
    return processes


def _wait(processes: Sequence[subprocess.Popen[bytes]], first: int, world: int) -> int:
    """Wait for the ranks. Return 0, or the exit code of the first that failed, whose cause has been printed."""
    forwarded, suspended, deadline = False, dict[int, float](), None
    order: list[int] = []  # ranks in the order in which they ended with an error
    while True:
        if stop.requested() and not forwarded:
            forwarded = True
            for process in processes:
                process.send_signal(signal.SIGTERM)
        running = [number for number, process in enumerate(processes) if process.poll() is None]
        order += [n for n, p in enumerate(processes) if p.returncode not in (None, 0) and n not in order]
        now = time.monotonic()
        for number in running:
            since = suspended.setdefault(number, now)
            if not is_suspended(processes[number].pid):
                del suspended[number]
            elif now - since > SUSPENDED_S:
                order.append(number)
                processes[number].kill()
                processes[number].wait()
        if order and deadline is None:
            deadline = now + GRACE_S
        if not running or (deadline and now > deadline):
            _kill(processes)
            return _report(processes, order, set(suspended), first, world)
        time.sleep(POLL_S)


def _report(
    processes: Sequence[subprocess.Popen[bytes]], order: Sequence[int], suspended: set[int], first: int, world: int
) -> int:
    """Return the exit code of the first cause; print it for a rank that could not do so itself."""
    codes = [processes[number].returncode for number in order]
    if stop.requested() and all(code in (-signal.SIGTERM, Stopped.exit_code) for code in codes) and codes:
        stop.answered()
        if stop.tells():  # ranks that had only begun to start were ended by the signal
            print_line(stop.RERUN)
        return Stopped.exit_code
    for number, code in zip(order, codes, strict=True):
        if code >= 0 and number not in suspended:
            continue
        if any(other > 0 and other != RanksError.exit_code for other in codes[: order.index(number)]):
            break  # this rank was killed because another one had failed and printed the cause
        name = signal.Signals(-code).name if code < 0 else str(code)
        what = "was suspended" if number in suspended else f"was killed by {name}"
        memory = "the system kills processes when memory runs out" if code == -signal.SIGKILL else ""
        error = RanksError(
            f"rank {first + number} {what}",
            where=f"{world} ranks",
            why=memory if number not in suspended else "the others cannot continue without it",
            fix="rerun the same command to resume",
        )
        print_line(str(error))
        return error.exit_code
    named = [code for code in codes if code > 0 and code != RanksError.exit_code]
    if codes and not named and first:
        what, fix = "the ranks of this node lost the connection to rank 0", "see the output of the first node"
        print_line(str(RanksError(what, where=f"{world} ranks", fix=fix)))
    return named[0] if named else codes[0] if codes else 0


def _kill(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()
