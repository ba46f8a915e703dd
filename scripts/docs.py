"""Write the pages of docs/lookup/ that come from the code, and the links and tables of other pages.

python scripts/docs.py          write them
python scripts/docs.py --check  exit 1 if they are not current
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pictures
import reference
import tables
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from preftune.config import sampling, schema
from preftune.config.data import SourceConfig
from preftune.losses import PREFERENCE_LOSSES, listwise, pairwise, ppo, reference_free, tokenwise, unpaired
from preftune.losses.objective import is_joint, items_of
from preftune.losses.reward import bradley_terry
from preftune.losses.supervised import sft
from preftune.resolve import inputs_of, parameters_of

DOCS = Path(__file__).parents[1] / "docs"
GENERATED = "<!-- Written by scripts/docs.py from the docstrings of the code. Edit those, not this page. -->\n"
COLUMNS = ("probability", "margin")
PICTURES = pictures.losses()


def losses() -> str:
    families: list[tuple[str, str, Mapping[str, Callable[..., Any]]]] = [
        ("Pairwise losses on the log-ratio to a reference", "", pairwise.TABLE),
        ("Pairwise losses without a reference", "", reference_free.TABLE),
        ("Pairwise losses on other quantities than the two log-ratios", "", tokenwise.TABLE),
        ("Losses for labelled responses", UNPAIRED, unpaired.TABLE),
        ("Losses for rankings", RANKINGS, listwise.TABLE),
    ]
    out = [GENERATED, "# Losses\n", INTRODUCTION]
    out += [
        "| `loss.name` | parameters and defaults | uses a reference | is a function of | also reads from the data |",
        "|---|---|---|---|---|",
    ]
    for name, function in PREFERENCE_LOSSES.items():
        inputs = inputs_of(function)
        reference = "yes" if {"reference", "reference_tokens", "kl"} & set(inputs) else "no"
        taken = ", ".join(f"`{c}`" for c in COLUMNS if c in inputs) or ""
        items = items_of(inputs) + (", whole step" if is_joint(function) else "")
        out.append(f"| [`{name}`](#{name}) | {parameters(function)} | {reference} | {items} | {taken} |")
    for title, text, table in families:
        out.append(f"\n## {title}\n\n{text}" if text else f"\n## {title}\n")
        out += [entry(name, function) for name, function in table.items()]
    out += ["\n## Other methods\n", METHODS, entry("sft", sft), entry("bradley_terry", bradley_terry)]
    out += ["\n## PPO\n", PPO_TEXT, *(entry(function.__name__, function) for function in PPO)]
    return "\n".join(out)


def parameters(function: Callable[..., Any]) -> str:
    return ", ".join(f"{name} {p.default}" for name, p in parameters_of(function).items())


def entry(name: str, function: Callable[..., Any]) -> str:
    picture = f"![loss of a pair with {name}](../_static/losses/{name}.svg)\n\n" if name in PICTURES else ""
    return f"### `{name}`\n\n{picture}```\n{inspect.getdoc(function)}\n```\n"


INTRODUCTION = """\
`preftune dpo` trains with any of the losses on this page. Set one with `loss.name`, or a weighted sum of several:

```yaml
loss: {name: ipo, beta: 0.1, average: false}          # one loss
```

```yaml
loss:                                                  # a weighted sum
  - {name: sigmoid, beta: 0.1}
  - {name: nll, weight: 0.2}
```

The default is `sigmoid`, the DPO loss. A sum combines losses of the same kind only: pairs, responses or groups (the
column "is a function of"). A parameter that a loss does not have is an error. You can also write
[your own loss](../do/your-own-loss.md).

## Notation

| symbol | meaning |
|---|---|
| `w`, `l` | the chosen and the rejected response |
| `lr_y` | log-ratio of response y: `log pi(y\\|x) - log ref(y\\|x)` |
| `h` | `lr_w - lr_l`, the difference of the log-ratios of a pair |
| `\\|y\\|` | number of scored tokens of y |
| `sg` | stop-gradient |

The pictures show the loss of one pair against h, at the default parameters, with 12 tokens per response. Two curves
mean that it matters which response moves; one curve means that only h counts.

Log-probs are sums over the tokens of the response, including EOS, in fp32. The rewards in the metrics are `beta * lr`
with the loss's `beta` (1 if it has none). Without a reference they are `beta * log pi`.

## All preference losses

How to read the table:

- **pairs, responses, groups**: the loss has one value per preference pair, per labelled response, or per ranked group.
- **whole step**: the loss sorts or averages over all pairs of an optimizer step. It is computed over the whole step,
  so the result does not depend on the size of the micro-batches.
- **`probability`** is a soft label and **`margin`** a target margin. A loss that does not read such a column rejects
  data that have it. List the column in `data.ignore` to train without it.
- The column `weight` multiplies a judgement. Every loss over pairs uses it, except those over the whole step.
- For DPO without a reference, use `sigmoid` with `reference.kind: none`.
"""

UNPAIRED = """\
These losses also read preference pairs: the chosen response counts as good, the rejected one as bad. The mismatched
responses of `kto` are responses of the next prompt, chosen and rejected in turn, without those that the row itself has.
"""

RANKINGS = """\
These losses need a different rank for each response of a prompt. A preference pair is a ranking of two.
"""

METHODS = """\
These are the losses of `preftune sft` and `preftune reward`. Their config has no section `loss`.
"""

PPO_TEXT = """\
The parts of the objective of `preftune ppo`. Their parameters are in the section `ppo` of the
[configuration](configuration.md#preftune-ppo).
"""

COMMANDS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("sft", schema.SFTConfig),
    ("dpo", schema.DPOConfig),
    ("reward", schema.RewardConfig),
    ("ppo", sampling.PPOConfig),
    ("iterate", sampling.IterateConfig),
    ("data noise", schema.NoiseConfig),
)
ORDER = ("model", "data", "loss", "reference", "optim", "batch", "train", "best", "lora", "monitor")
HEAD = ("| key | type | default | meaning |", "|---|---|---|---|")
PPO = (
    ppo.kl_estimate,
    ppo.kl_loss,
    ppo.token_rewards,
    ppo.advantages,
    ppo.policy_loss,
    ppo.value_loss,
    ppo.explained_variance,
    ppo.adapt_kl_coefficient,
)


@dataclass
class Shared:
    """A section that several commands have."""

    name: str
    model: type[BaseModel]
    commands: list[str]

    @property
    def title(self) -> str:
        """The same name may mean two sections: `data` holds responses in some commands and prompts in others."""
        return "data of ppo and iterate" if self.model is sampling.PromptConfig else self.name

    @property
    def link(self) -> str:
        return f"[`{self.name}`](#{self.title.replace(' ', '-')})"


def config() -> str:
    """Each shared section once, then for each command its sections, its own keys and its own defaults."""
    shared = shared_sections()
    out = [GENERATED, "# Configuration\n", CONFIG_INTRODUCTION, "## Sections by command\n"]
    out += [f"| section | {' | '.join(f'`{name}`' for name, _ in COMMANDS)} |", "|---|" + "---|" * len(COMMANDS)]
    for one in shared:
        out.append(f"| {one.link} | {' | '.join('yes' if name in one.commands else '' for name, _ in COMMANDS)} |")
    out.append(CONFIG_SHARED)
    everywhere = [
        name for name in COMMANDS[0][1].model_fields if all(name in fields_of(model) for _, model in COMMANDS)
    ]
    out += HEAD
    for name in everywhere:
        defaults = dict.fromkeys(shown(model.model_fields[name].default) for _, model in COMMANDS)
        field = COMMANDS[0][1].model_fields[name]
        out.append(line(name, kind(field.annotation), ", ".join(defaults), field))
    for one in shared:
        names = ", ".join(f"`preftune {name}`" for name in one.commands)
        out += [f"\n## {one.title}\n", f"Used by {names}.{note_of(one)}\n", *HEAD, *rows(one.model, f"{one.name}.")]
    out += ["\n## Sources of a mixture\n", SOURCES, *HEAD, *rows(SourceConfig, "")]
    for command, model in COMMANDS:
        out += [f"\n## preftune {command}\n", *own_part(command, model, shared, everywhere)]
    return "\n".join(out) + "\n"


def shared_sections() -> list[Shared]:
    """The sections that at least two commands have. A section with fewer keys counts as the one that it is part of."""
    shared: list[Shared] = []
    for command, model in COMMANDS:
        for name, field in model.model_fields.items():
            inner = section(field.annotation)
            if inner is None:
                continue
            same = [s for s in shared if s.name == name and (issubclass(s.model, inner) or issubclass(inner, s.model))]
            if same:
                same[0].commands.append(command)
            else:
                shared.append(Shared(name, inner, [command]))
    several = [one for one in shared if len(one.commands) > 1]
    return sorted(several, key=lambda one: ORDER.index(one.name))


def note_of(one: Shared) -> str:
    """Which keys of a shared section a command lacks."""
    notes = []
    for command, model in COMMANDS:
        inner = section(model.model_fields[one.name].annotation) if command in one.commands else None
        missing = set(one.model.model_fields) - set(inner.model_fields) if inner else set()
        notes += [f" `preftune {command}` has no `{one.name}.{key}`." for key in sorted(missing)]
    return "".join(notes)


def fields_of(model: type[BaseModel]) -> list[str]:
    """The top-level keys of a config that are not sections."""
    return [name for name, field in model.model_fields.items() if section(field.annotation) is None]


def own_part(command: str, model: type[BaseModel], shared: Sequence[Shared], everywhere: Sequence[str]) -> list[str]:
    """A command's shared sections by link, its defaults where they differ, and the keys that only it has."""
    links = [one.link for one in shared if command in one.commands]
    out = [f"Shared sections: {', '.join(links)}."]
    own, changed = [], []
    for name, field in model.model_fields.items():
        inner = section(field.annotation)
        if inner is None or not any(one.name == name and command in one.commands for one in shared):
            if inner is not None:
                own += rows(inner, f"{name}.")
            elif name not in everywhere:
                own.append(row(name, field, field.default))
        elif isinstance(field.default, BaseModel):
            defaults = inner.model_fields
            different = [key for key in defaults if getattr(field.default, key, None) != defaults[key].default]
            changed += [f"`{name}.{key}` {shown(getattr(field.default, key))}" for key in different if key in defaults]
    if changed:
        out.append(f"\nDefaults that differ from the shared sections: {', '.join(changed)}.")
    return [*out, "", *HEAD, *own] if own else [*out, "", "No other keys."]


SOURCES = """\
Keys of an entry of the lists `data.train` and `data.eval`. See [several sources](../do/data.md#several-sources).
"""

CONFIG_INTRODUCTION = """\
A config is a YAML file. Change single keys on the command line with `SECTION.KEY=VALUE`; the command line wins over the
file, and the last of several values wins:

```
preftune dpo dpo.yaml loss.beta=0.2 data.eval=null 'lora={rank: 16}' 'data.ignore=[source, notes]'
```

- Values on the command line are read as YAML. Quote braces, brackets and spaces for the shell.
- Unknown keys are errors. All problems of a config are reported at once, each with its file and line.
- `null` means "not set". It also turns off an optional section, for example `monitor: null`.
- Every run writes the resolved config to `config.yaml` in its run folder. That file is a valid config.
- `--dry-run` prints the resolved config without training.
- In Python, the same sections and keys are keyword arguments. See [Python](../do/python.md#training).

A config can name Python files (`loss.name`, `data.format`, `reward`), and preftune runs them. Treat a config from
someone else like code.
"""

CONFIG_SHARED = """
`lora` is optional: a run without it trains all weights.

## Keys of every command
"""


def rows(model: type[BaseModel], prefix: str) -> list[str]:
    """One line per key of a section."""
    lines = []
    for name, field in model.model_fields.items():
        inner = section(field.annotation)
        lines += rows(inner, f"{prefix}{name}.") if inner else [row(prefix + name, field, field.default)]
    return lines


def row(key: str, field: FieldInfo, default: Any) -> str:
    return line(key, kind(field.annotation), "required" if field.is_required() else shown(default), field)


def line(key: str, type_: str, default: str, field: FieldInfo) -> str:
    return f"| `{key}` | {type_} | {default} | {' '.join((field.description or '').split())} |"


def section(annotation: Any) -> type[BaseModel] | None:
    options = [annotation, *get_args(annotation)]
    models = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
    return models[0] if models else None


def kind(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return kind(get_args(annotation)[0])
    if annotation is SourceConfig:
        return "section"
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
    if isinstance(value, dict) and value:
        return f"`{{{', '.join(f'{key}: {item}' for key, item in value.items())}}}`"
    return f"`{value}`"


LINK = re.compile(r"\[`(?P<name>\w+)`\]\((?P<path>\.\./\.\./src/[\w/]+\.py)(?:#L\d+)?\)")


def walkthrough() -> str:
    """The walkthrough with every link to a definition pointing at its line."""
    page = DOCS / "develop" / "walkthrough.md"

    def relink(match: re.Match[str]) -> str:
        lines = (page.parent / match["path"]).read_text().splitlines()
        definition = re.compile(rf"\s*(?:def|class) {match['name']}\b")
        [line] = [number for number, text in enumerate(lines, start=1) if definition.match(text)][:1]
        return f"[`{match['name']}`]({match['path']}#L{line})"

    return LINK.sub(relink, page.read_text())


def filled(text: str, claim: str, body: str) -> str:
    """A page's text with `body` between its marks of this claim."""
    marks = re.compile(rf"(<!-- rows: {claim} -->\n).*?(<!-- end -->)", re.DOTALL)
    return marks.sub(lambda match: f"{match[1]}{body}\n{match[2]}", text)


def performance() -> str:
    """The page with its tables made again from the rows of benchmarks/results.jsonl."""
    text = filled((DOCS / "results" / "performance.md").read_text(), "dpo step", tables.dpo_steps())
    text = filled(text, "beside trl", tables.beside_trl())
    text = filled(text, "data scale", tables.data_scale())
    return filled(text, "plan", tables.plans())


def results() -> str:
    """The page with its tables made again from the newest row of each benchmark."""
    text = (DOCS / "results" / "results.md").read_text()
    for claim, table in tables.RESULTS.items():
        text = filled(text, claim, table())
    return text


def main() -> int:
    pages = {
        "lookup/losses.md": losses(),
        "lookup/configuration.md": config(),
        "lookup/commands.md": GENERATED + "\n" + reference.commands(),
        "lookup/api.md": GENERATED + "\n" + reference.api(),
        "develop/walkthrough.md": walkthrough(),
        "results/performance.md": performance(),
        "results/results.md": results(),
        **{f"_static/losses/{name}.svg": text for name, text in PICTURES.items()},
        "../README.md": filled((DOCS / "../README.md").read_text(), "trl table", tables.trl_table()),
    }
    stale = [name for name, text in pages.items() if not (DOCS / name).is_file() or (DOCS / name).read_text() != text]
    if "--check" in sys.argv:
        if stale:
            sys.stderr.write(f"not current: {', '.join(stale)}; run python scripts/docs.py\n")
        return 1 if stale else 0
    (DOCS / "_static" / "losses").mkdir(exist_ok=True)
    for name, text in pages.items():
        (DOCS / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
