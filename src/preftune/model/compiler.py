"""Settings of torch.compile."""

from __future__ import annotations

import inspect
from typing import Any

import torch

RECOMPILE_LIMIT = 64  # enough for 4 batch lengths, longer groups, windows, and runs with and without gradient


def compiler_settings(dynamic: bool | None) -> dict[str, Any]:
    """Return the arguments of torch.compile. Above its limit of recompilations, a function would run uncompiled.

    dynamic: compile once for all lengths. None: once for the first length, and once for all others.
    """
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        return {"dynamic": dynamic, "recompile_limit": RECOMPILE_LIMIT}
    torch._dynamo.config.recompile_limit = max(RECOMPILE_LIMIT, torch._dynamo.config.recompile_limit)  # torch 2.11
    return {"dynamic": dynamic}
