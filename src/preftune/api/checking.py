"""preftune.check_data: what preference data are read as, before training on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from preftune.api.inputs import Held, data_name, folder_name, function_name, plain_settings
from preftune.api.results import DataReport
from preftune.api.training import loss_section
from preftune.errors import ConfigError, did_you_mean
from preftune.objects import holding

METHODS = ("dpo", "sft", "reward")


def check_data(
    data: Any,
    *,
    eval: Any = None,
    model: Any = None,
    method: str = "dpo",
    loss: Any = None,
    format: str | Callable[..., Any] | None = None,
    strict: bool = False,
    **settings: Any,
) -> DataReport:
    """What preference data are read as, and whether a run would accept them.

    data, eval, format, loss  as in preftune.dpo
    model      folder or Hub id whose tokenizer counts; without it lengths are in characters
    method     dpo, sft or reward: the run that the data are for
    strict     raise what the run would raise; otherwise it is the report's `refusal`
    settings   keys of the section `data`: columns, max_length, overlong, ignore, bad_rows, ...

    Rows that cannot be read are counted in the report, with their lines.
    """
    from preftune.config.load import build
    from preftune.config.schema import DataConfig, DPOConfig

    where, held = "preftune.check_data()", Held()
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}; {did_you_mean(method, METHODS)}", where=where)
    section = {**plain_settings(settings), "train": data_name(data, "data", held)}
    if eval is not None:
        section["eval"] = eval if isinstance(eval, int | float) else data_name(eval, "eval", held)
    if format is not None:
        section["format"] = function_name(format, held)
    config = build(DataConfig, section, source=where)
    shell = {"model": {"path": "-"}, "data": config.model_dump(), "loss": loss_section(loss or "sigmoid", held)}
    terms = build(DPOConfig, shell, source=where).terms
    from preftune.methods.check import check
    from preftune.methods.prepare import load_renderer
    from preftune.model.load import load_config, locate, positions

    renderer = limit = None
    with holding(held):
        if model is not None:
            source = locate(folder_name(model, f"{where}: model"), "model")
            limit = positions(load_config(source))
            renderer = load_renderer(config, source)
        found = check(config, method, terms, renderer, limit)
    if strict and found.refusal:
        raise found.refusal
    return DataReport(found.account, found.audit, found.refusal)
