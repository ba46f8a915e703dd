"""Write docs/losses.md and docs/config.md from the code, and the links and tables of other pages.

python scripts/docs.py          write them
python scripts/docs.py --check  exit 1 if they are not current
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import tables
from pydantic import BaseModel

from preftune.config import sampling, schema
from preftune.losses import PREFERENCE_LOSSES, listwise, pairwise, ppo, reference_free, tokenwise, unpaired
from preftune.losses.joint import is_joint
from preftune.losses.objective import items_of
from preftune.losses.reward import bradley_terry
from preftune.losses.supervised import sft
from preftune.resolve import inputs_of, parameters_of

DOCS = Path(__file__).parents[1] / "docs"
GENERATED = "<!-- Written by scripts/docs.py from the code; edit the docstrings there. -->\n"
COLUMNS = ("probability", "margin")


def losses() -> str:
    families: list[tuple[str, Mapping[str, Callable[..., Any]]]] = [
        ("Pairwise, on the log-ratio to a reference", pairwise.TABLE),
        ("Pairwise, without reference", reference_free.TABLE),
        ("Pairwise, with more than two sums", tokenwise.TABLE),
        ("Unpaired: labelled responses", unpaired.TABLE),
        ("List-wise: rankings", listwise.TABLE),
    ]
    out = [GENERATED, "# Losses\n", INTRODUCTION]
    out += [
        "| `loss.name` | parameters (defaults) | needs reference | compares | takes from the data |",
        "|---|---|---|---|---|",
    ]
    for name, function in PREFERENCE_LOSSES.items():
        inputs = inputs_of(function)
        reference = "yes" if {"reference", "reference_tokens", "kl"} & set(inputs) else "no"
        taken = ", ".join(c for c in COLUMNS if c in inputs) or ""
        items = items_of(inputs) + (", whole step" if is_joint(function) else "")
        out.append(f"| `{name}` | {parameters(function)} | {reference} | {items} | {taken} |")
    for title, table in families:
        out.append(f"\n## {title}\n")
        out += [entry(name, function) for name, function in table.items()]
    out += ["\n## Other methods\n", entry("sft", sft), entry("bradley_terry", bradley_terry)]
    out += ["\n## PPO\n", *(entry(function.__name__, function) for function in PPO), OWN]
    return "\n".join(out)


def parameters(function: Callable[..., Any]) -> str:
    return ", ".join(f"{name} {p.default}" for name, p in parameters_of(function).items())


def entry(name: str, function: Callable[..., Any]) -> str:
    return f"### `{name}`\n\n```\n{inspect.getdoc(function)}\n```\n"


INTRODUCTION = """\
`lr_y = log pi(y|x) - log ref(y|x)`, `h = lr_w - lr_l`, `|y|` = scored tokens, `sg` = stop-gradient. Log-probs are sums
over the response's tokens, EOS among them, in fp32. A parameter that a loss does not have is an error.

```yaml
loss: {name: ipo, beta: 0.1, average: false}          # one loss
loss:                                                  # a weighted sum of losses over the same things
  - {name: sigmoid, beta: 0.1}
  - {name: nll, weight: 0.2}
```

Columns of the data. `weight` multiplies a judgement, wherever the loss has one value for each pair. `probability`
(a soft label) and `margin` are used by the losses that list them below; data that have such a column are refused by the
others, unless `data.ignore` names it. Reference-free DPO is `sigmoid` with `reference.kind: none`.
Losses marked *whole step* sort or average over everything in an optimizer step, exactly, whatever the micro-batches.

Implicit rewards in metrics are `beta * lr` with the loss's `beta` (1 if it has none; `log pi` alone without reference).
"""

OWN = """
## Your own loss

One function in your own file; no registration.

```python
# my_losses.py
import torch
from torch.nn.functional import logsigmoid


def focal(policy, reference, *, beta: float = 0.1, gamma: float = 1.0):
    z = beta * ((policy.chosen - reference.chosen) - (policy.rejected - reference.rejected))
    return -(torch.sigmoid(-z) ** gamma) * logsigmoid(z)
```

```
preftune dpo dpo.yaml loss.name=my_losses.py:focal loss.gamma=2
```

Arguments before the `*` are inputs, given by name: `policy`, `reference` (fields `chosen`, `rejected`,
`chosen_length`, `rejected_length`), `policy_tokens`, `reference_tokens` (per-token log-probs), `kl`, `collision`,
`probability`, `margin`. A loss that asks for `label` is for labelled responses, one that asks for `rank` for whole
rankings. Arguments after the `*` are its parameters, and the config may set exactly these. If it couples the pairs of a
step, decorate it with `preftune.losses.joint`. The file is run as code: use only files you trust.
"""


COMMANDS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("dpo", schema.DPOConfig),
    ("sft", schema.SFTConfig),
    ("reward", schema.RewardConfig),
    ("ppo", sampling.PPOConfig),
    ("iterate", sampling.IterateConfig),
    ("data noise", schema.NoiseConfig),
)
PPO = (
    ppo.kl_estimate,
    ppo.token_rewards,
    ppo.advantages,
    ppo.policy_loss,
    ppo.value_loss,
    ppo.explained_variance,
    ppo.steered,
)


def config() -> str:
    out = [GENERATED, "# Config\n", CONFIG_INTRODUCTION]
    for command, model in COMMANDS:
        out += [f"\n## preftune {command}\n", "| key | type | default | |", "|---|---|---|---|"]
        out += rows(model, "", None)
    return "\n".join(out) + "\n"


CONFIG_INTRODUCTION = """\
YAML, then `section.key=value` on the command line; the later one wins. Unknown keys are errors. The resolved config is
written to `config.yaml` of the run folder and is itself a valid input.
"""


def rows(model: type[BaseModel], prefix: str, given: BaseModel | None) -> list[str]:
    """One line a key; `given` holds the defaults where a command has its own."""
    found = []
    for name, field in model.model_fields.items():
        default = getattr(given, name) if given else field.default
        inner = section(field.annotation)
        if inner is None:
            value = "required" if field.is_required() else shown(default)
            text = " ".join((field.description or "").split())
            found.append(f"| `{prefix}{name}` | {kind(field.annotation)} | {value} | {text} |")
        else:
            found += rows(inner, f"{prefix}{name}.", default if isinstance(default, BaseModel) else None)
    return found


def section(annotation: Any) -> type[BaseModel] | None:
    options = [annotation, *get_args(annotation)]
    models = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
    return models[0] if models else None


def kind(annotation: Any) -> str:
    if get_origin(annotation) is not None and "Literal" in str(get_origin(annotation)):
        return " / ".join(f"`{value}`" for value in get_args(annotation))
    parts = get_args(annotation)
    if parts and get_origin(annotation) is not list and get_origin(annotation) is not dict:
        return " or ".join(kind(part) for part in parts)
    if get_origin(annotation) is list:
        return f"list of {kind(parts[0])}"
    names = {str: "text", float: "number", int: "integer", bool: "true / false", type(None): "null"}
    return names.get(annotation, "mapping")


def shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"`{value}`"


LINK = re.compile(r"\[`(?P<name>\w+)`\]\((?P<path>\.\./src/[\w/]+\.py)(?:#L\d+)?\)")


def walkthrough() -> str:
    """The walkthrough with every link to a definition pointing at its line."""

    def relink(match: re.Match[str]) -> str:
        lines = (DOCS / match["path"]).read_text().splitlines()
        definition = re.compile(rf"\s*(?:def|class) {match['name']}\b")
        [line] = [number for number, text in enumerate(lines, start=1) if definition.match(text)][:1]
        return f"[`{match['name']}`]({match['path']}#L{line})"

    return LINK.sub(relink, (DOCS / "walkthrough.md").read_text())


def filled(text: str, claim: str, body: str) -> str:
    """A page's text with `body` between its marks of this claim."""
    marks = re.compile(rf"(<!-- rows: {claim} -->\n).*?(<!-- end -->)", re.DOTALL)
    return marks.sub(lambda found: f"{found[1]}{body}\n{found[2]}", text)


def performance() -> str:
    """The page with its tables made again from the rows of benchmarks/results.jsonl."""
    text = filled((DOCS / "performance.md").read_text(), "dpo step", tables.dpo_steps())
    return filled(text, "plan", tables.plans())


def results() -> str:
    """The page with its tables made again from the newest row of each benchmark."""
    text = (DOCS / "results.md").read_text()
    for claim, table in tables.RESULTS.items():
        text = filled(text, claim, table())
    return text


def main() -> int:
    pages = {
        "losses.md": losses(),
        "config.md": config(),
        "walkthrough.md": walkthrough(),
        "performance.md": performance(),
        "results.md": results(),
    }
    stale = [name for name, text in pages.items() if not (DOCS / name).is_file() or (DOCS / name).read_text() != text]
    if "--check" in sys.argv:
        if stale:
            sys.stderr.write(f"not current: {', '.join(stale)}; run python scripts/docs.py\n")
        return 1 if stale else 0
    for name, text in pages.items():
        (DOCS / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
