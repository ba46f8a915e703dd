"""Import the libraries that take seconds, after a message."""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from preftune import stop

if TYPE_CHECKING:
    from preftune.train.display import Display

HEAVY = {"torch": "torch", "transformers": "transformers.modeling_utils", "peft": "peft"}


def import_libraries(quiet: bool, *names: str) -> Display:
    """Import torch, and those of transformers and peft that are in `names`. Return the command's display."""
    from preftune.train.display import Display

    display = Display(quiet)
    modules = {name: HEAVY[name] for name in ("torch", *names)}
    if all(module in sys.modules for module in modules.values()):
        return display
    display.say(f"loading {_listed(list(modules))}")
    with stop.at_once():  # an exception inside the import of a library could be swallowed or reported as its error
        gc.disable()  # a search for garbage among a million new objects takes 0.5 s and finds nothing
        try:
            for module in modules.values():
                import_module(module)
        finally:
            gc.freeze()
            gc.enable()
    return display


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
