"""Build the loss function from the `loss` section, and convert the data to the form that it needs."""

from __future__ import annotations

from collections.abc import Sequence

from preftune.config.schema import LossTerm
from preftune.data.loss_items import as_labelled, as_pairs, as_rankings, require_columns, with_mismatches
from preftune.errors import ConfigError
from preftune.losses import PREFERENCE_LOSSES, Objective, Term
from preftune.losses.objective import INPUTS, items_of
from preftune.methods.own_loss import checked
from preftune.model.memory import out_of_memory
from preftune.resolve import bind, guarded, inputs_of, resolve
from preftune.types import TokenGroup


def bind_objective(terms: Sequence[LossTerm]) -> Objective:
    """Return the loss of the `loss` section. Raises ConfigError for an unknown loss, parameter or mixture."""
    bound = []
    for number, term in enumerate(terms):
        where = "loss" if len(terms) == 1 else f"loss.{number}"
        function = resolve(term.name, {**PREFERENCE_LOSSES, "dpo": PREFERENCE_LOSSES["sigmoid"]}, f"{where}.name")
        inputs = inputs_of(function)
        unknown = [name for name in inputs if name not in INPUTS]
        if unknown:
            raise ConfigError(
                f"{term.name!r} has the input {unknown[0]!r}, which does not exist",
                where=f"{where}.name",
                fix=f"use these inputs: {', '.join(INPUTS)}; parameters of the loss must be keyword-only (after a *)",
            )
        parameters = bind(function, term.parameters, where, term.name)
        items = items_of(inputs)
        if term.name not in PREFERENCE_LOSSES:
            function = checked(guarded(function, term.name, out_of_memory), term.name, items)
        bound.append(Term(term.name, function, inputs, items, parameters, term.weight))
    kinds = {term.items for term in bound}
    if len(kinds) > 1:
        raise ConfigError(
            f"losses over {' and '.join(sorted(kinds))} cannot be added",
            where="loss",
            why="they are means over different items, so their weights would have no meaning",
            fix="combine losses of the same kind; docs/lookup/losses.md lists them",
        )
    return Objective(tuple(bound))


def shape_for(objective: Objective, groups: Sequence[TokenGroup]) -> Sequence[TokenGroup]:
    """Convert the groups to the pairs, labelled responses or rankings that the loss needs.

    Raises DataError if a column that the loss needs is missing, or if the loss does not use one that is present.
    """
    name = objective.terms[0].name
    weighted = objective.items == "pairs" and not objective.joint
    if not len(groups):
        return groups
    for term in objective.terms:  # each term alone, because each must use the columns of the data
        log_margin = "margin" in term.inputs and bool(term.parameters.get("log"))
        require_columns(groups, term.name, frozenset(term.inputs), weighted, log_margin)
    shapes = {"pairs": as_pairs, "responses": as_labelled, "groups": as_rankings}
    shaped = shapes[objective.items](groups, name)
    return with_mismatches(shaped, name) if "mismatched" in objective.inputs else shaped
