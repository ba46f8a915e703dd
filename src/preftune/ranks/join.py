"""Join the other ranks of a command: connect, watch each other, and silence all but rank 0."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

from preftune import stop
from preftune.ranks.environment import Place, place, require_several
from preftune.ranks.watch import Watch

MEETING = timedelta(minutes=10)  # in which all ranks must have started
ANSWER = timedelta(seconds=30)  # of the store, once all ranks have joined
LISTEN = "PREFTUNE_LISTEN_FD"  # socket that `preftune launch` opened for the store of rank 0


@dataclass(frozen=True, slots=True)
class Ranks:
    """The connection of this process to the other ranks."""

    watch: Watch

    def finish(self, interrupted: bool) -> None:
        """Wait for the other ranks to finish, too, and disconnect. Raises KeyboardInterrupt if `interrupted`."""
        if interrupted:
            raise KeyboardInterrupt  # on this rank only
        import torch.distributed as dist

        from preftune.ranks import group

        self.watch.finishing()
        group.barrier()
        self.watch.close()
        with suppress(Exception):  # another rank may already be gone
            dist.destroy_process_group()

    def fail(self, error: BaseException, report: Callable[[], int]) -> NoReturn:
        """End this process and all other ranks after an exception; see Watch.fail."""
        self.watch.fail(error, report)


def join(arguments: list[str]) -> Ranks | None:
    """Join the other ranks of a command, or return None for a single process. Raises ConfigError."""
    own = place()
    if own.world == 1:
        return None
    if own.rank:
        _silence()
    require_several(arguments)
    try:
        return _connect(own)
    except KeyboardInterrupt:
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # no other rank may have been stopped
        raise


def _connect(own: Place) -> Ranks:
    """Connect to the other ranks, and begin to watch them."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch prints the stack of each lost connection as a warning
    with stop.at_once():
        import torch

        from preftune.ranks import group
    device = None
    if torch.cuda.is_available():
        device = torch.device("cuda", own.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    group.connect(_group_store(own), own.rank, own.world, device)
    return Ranks(Watch(_watch_store(own), own))


def _silence() -> None:
    """Discard what this process prints; rank 0 prints the same. Failures are printed on file descriptor 2."""
    null = open(os.devnull, "w")  # noqa: SIM115
    sys.stdout = sys.stderr = null


def _address() -> tuple[str, int]:
    return os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ["MASTER_PORT"])


def _group_store(own: Place) -> Any:
    """Return the store of the process group. Rank 0 hosts it, or torchrun does."""
    import torch

    dist: Any = torch.distributed
    host, port = _address()
    hosts = own.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    fd = os.environ.get(LISTEN)
    options: dict[str, Any] = {"master_listen_fd": int(fd)} if hosts and fd else {}
    store = dist.TCPStore(host, port, own.world, hosts, timeout=MEETING, wait_for_workers=False, **options)
    return dist.PrefixStore(f"preftune/{_attempt()}/group", store)


def _watch_store(own: Place) -> Any:
    """Return a second connection to the store: a connection answers one request at a time."""
    import torch

    dist: Any = torch.distributed
    host, port = _address()
    store = dist.TCPStore(host, port, own.world, False, timeout=ANSWER, wait_for_workers=False)
    return dist.PrefixStore(f"preftune/{_attempt()}/watch", store)


def _attempt() -> str:
    """Return the number of times that torchrun has restarted the ranks; its store lives on."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
