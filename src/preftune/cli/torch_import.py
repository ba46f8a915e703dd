"""Import torch, which takes a second, after the first line of a command."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from preftune import stop

if TYPE_CHECKING:
    from preftune.train.display import Display


def import_torch(quiet: bool = False) -> Display:
    """Print that torch is being loaded, import it, and return the command's display."""
    from preftune.train.display import Display

    display = Display(quiet)
    if "torch" not in sys.modules:
        with stop.at_once():  # libraries swallow an exception that is raised inside of their import, or rename it
            display.say("loading torch")
            import torch  # noqa: F401
    return display
