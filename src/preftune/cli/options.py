"""Arguments that several commands have. Nothing here takes time to import."""

from __future__ import annotations

from typing import Annotated

import typer

Settings = Annotated[
    list[str] | None, typer.Argument(help="Settings of a run's data section.", metavar="[data.KEY=VALUE]...")
]
