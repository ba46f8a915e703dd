"""The Python function preftune.check_data."""

from __future__ import annotations

from typing import Any, Unpack

from preftune.api.inputs import Held, data_name, folder_name
from preftune.api.results import DataReport
from preftune.api.settings import DataSettings, data_section
from preftune.api.training import loss_section
from preftune.errors import ConfigError, did_you_mean
from preftune.in_memory import holding

METHODS = ("dpo", "sft", "reward")


def check_data(
    data: Any,
    *,
    eval: Any = None,
    model: Any = None,
    method: str = "dpo",
    loss: Any = None,
    strict: bool = False,
    **settings: Unpack[DataSettings],
) -> DataReport:
    """Report how preference data are read, and whether a run accepts them.

    data, eval, loss  as in preftune.dpo
    model      folder or Hub id of the model whose tokenizer counts lengths; by default, lengths are in characters
    method     training method that the data are for: dpo, sft or reward
    strict     raise the error that the run would raise; by default, the report has it as `refusal`
    settings   keys of the section `data`: format, columns, max_length, overlong, ignore, bad_rows, ...

    The report counts rows that cannot be read, with their line numbers.
    """
    from preftune.config.load import build
    from preftune.config.schema import DPOConfig

    where, held = "preftune.check_data()", Held()
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}; {did_you_mean(method, METHODS)}", where=where)
    keys: dict[str, Any] = dict(settings)
    if eval is not None:
        keys["eval"] = eval if isinstance(eval, int | float) else data_name(eval, "eval", held)
    config = data_section(data_name(data, "data", held), keys, held, where)
    raw = {"model": {"path": "-"}, "data": config.model_dump(), "loss": loss_section(loss or "sigmoid", held)}
    terms = build(DPOConfig, raw, source=where).terms
    from preftune.chat.open import load_renderer
    from preftune.model.load import load_config, locate, max_positions
    from preftune.workflows.check_data import check

    renderer = limit = None
    with holding(held):
        if model is not None:
            source = locate(folder_name(model, f"{where}: model"), "model")
            limit = max_positions(load_config(source))
            renderer = load_renderer(config, source)
        checked = check(config, method, terms, renderer, limit)
    if strict and checked.refusal:
        raise checked.refusal
    return DataReport(checked.account, checked.audit, checked.refusal)
