"""The options of a training command that plan it for several GPUs: --dry-run --ranks N --memory SIZE."""

from __future__ import annotations

from typing import Any

from preftune.config.schema import RunConfig
from preftune.errors import ConfigError


def planned(
    config: RunConfig,
    dry_run: bool,
    quiet: bool,
    ranks: int | None,
    memory: str | None,
    tflops: float | None,
    bandwidth: str | None,
) -> dict[str, Any] | None:
    """Print the plan of the run for a cluster, and return whether it fits; None if no plan was requested.

    Raises ConfigError for --ranks without --dry-run or --memory, and for the other options without --ranks.
    """
    values = {"--memory": memory, "--tflops": tflops, "--bandwidth": bandwidth}
    if ranks is None:
        unused = [name for name, value in values.items() if value is not None]
        if unused:
            raise ConfigError("the option needs --ranks", where=unused[0], fix="add --dry-run --ranks N")
        return None
    if not dry_run:
        fix = "add --dry-run; to train on several ranks, start with `preftune launch --ranks N`"
        raise ConfigError("the option plans a run and does not start it", where="--ranks", fix=fix)
    if memory is None:
        raise ConfigError(
            "the memory of each GPU is missing", where="--ranks", fix="add --memory, such as --memory 80GB"
        )
    from preftune.cli.torch_import import import_torch

    display = import_torch(quiet)
    from preftune.lifecycle.cluster import Cluster, read_bytes
    from preftune.lifecycle.cluster_run import plan_cluster

    speed = float(read_bytes(bandwidth, "--bandwidth")) if bandwidth else 0.0
    fits = plan_cluster(config, Cluster(ranks, read_bytes(memory, "--memory"), 1e12 * (tflops or 0.0), speed), display)
    return {"dry_run": True, "fits": fits}
