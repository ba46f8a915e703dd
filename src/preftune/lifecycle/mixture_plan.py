"""How a run uses each source of a mixture: for its plan, its manifest and the names of its metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from preftune.config.schema import DataConfig
from preftune.data.mixture import mixture_of
from preftune.data.shapes import MARGIN, Shapes
from preftune.data.steps import Steps, training_steps
from preftune.data.subset import sources_of
from preftune.errors import DataError
from preftune.lifecycle.sources import training_sources
from preftune.types import TokenGroup


@dataclass(frozen=True, slots=True)
class SourceUse:
    """How a run uses one source.

    groups      groups that can be used for training
    per_epoch   groups in an epoch
    share       share of the groups of an epoch
    in_run      groups in all steps of the run; `items` are their judgements, labels or responses
    most_often  how often a group is used in the run, at most
    """

    name: str
    path: str
    groups: int
    per_epoch: int
    share: float
    in_run: int
    items: int
    most_often: int

    def line(self) -> str:
        """Return the numbers as a line of the plan."""
        part = f"{self.per_epoch:,} of {self.groups:,}" if self.per_epoch != self.groups else f"{self.groups:,}"
        most = "once" if self.most_often == 1 else f"{self.most_often} times"
        used = f"{self.in_run:,} in this run, each at most {most}" if self.in_run else "none in this run"
        return f"  {self.name}: {part} groups per epoch ({self.share:.1%}), {used}"


def mixed_steps(
    config: DataConfig, shapes: Shapes, pairs: int, seed: int, epochs: int, max_steps: int | None
) -> tuple[Steps, tuple[SourceUse, ...]]:
    """Return the steps of a run, and how it uses each source, if there are several."""
    sources = training_sources(config)
    mixture = mixture_of(shapes.source_G, [source.amount for source in sources])
    steps = training_steps(shapes.size_G, pairs, seed, epochs, max_steps, mixture)
    if len(sources) == 1 and mixture is None:
        return steps, ()
    sizes = np.bincount(shapes.source_G, minlength=len(sources)).tolist()
    counts = dict(zip(np.unique(shapes.source_G).tolist(), mixture.counts, strict=True)) if mixture else {}
    uses_G = steps.uses(len(shapes.size_G))
    result = []
    for number, source in enumerate(sources):
        own, count = shapes.source_G == number, counts.get(number, sizes[number])
        result.append(
            SourceUse(
                source.name,
                source.path,
                sizes[number],
                count,
                count / sum(counts.values() if counts else sizes),
                int(uses_G[own].sum()),
                int((uses_G * shapes.size_G)[own].sum()),
                int(uses_G[own].max(initial=0)),
            )
        )
    return steps, tuple(result)


def mixture_lines(uses: Sequence[SourceUse]) -> list[str]:
    """Return the lines of the plan on a mixture; none for a single source."""
    if not uses:
        return []
    total = sum(use.per_epoch for use in uses)
    return [
        f"mixture: {len(uses)} source{'s' * (len(uses) > 1)}, {total:,} groups per epoch",
        *(u.line() for u in uses),
    ]


def mixture_record(uses: Sequence[SourceUse]) -> list[dict[str, Any]]:
    """Return the mixture for the manifest."""
    return [asdict(use) for use in uses]


def names_in(groups: Sequence[TokenGroup], names: Sequence[str]) -> Mapping[int, str]:
    """Return the names of the sources of these groups, by number; empty for fewer than two sources."""
    numbers = np.unique(sources_of(groups)).tolist()
    return {number: names[number] for number in numbers} if len(numbers) > 1 else {}


def require_same_margins(groups: Sequence[TokenGroup], names: Sequence[str]) -> None:
    """Raise DataError if only some of the sources have margins: those of the others would silently be 0."""
    shapes = Shapes.of(groups)
    judged, margins = shapes.judgements_G > 0, (shapes.flags_G & MARGIN) > 0
    having = [n for n in range(len(names)) if margins[shapes.source_G == n].any()]
    lacking = [n for n in range(len(names)) if n not in having and judged[shapes.source_G == n].any()]
    if having and lacking:
        first = int(np.flatnonzero((shapes.source_G == lacking[0]) & judged)[0])
        raise DataError(
            f"source {names[lacking[0]]!r} has no margins, but source {names[having[0]]!r} has some",
            where=groups[first].origin,
            why="its margins would be 0",
            fix=f"add a column `margin` to its rows, or ignore that of {names[having[0]]!r}: "
            "{path: ..., ignore: [margin]}",
        )
