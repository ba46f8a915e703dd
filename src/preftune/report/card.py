"""The model card (README.md) and its pictures in a model folder, from the files of the run that trained the model.

A card has no dates, timings or absolute paths, so that a resumed run writes the same card as an uninterrupted one, and
a published card does not show the folders of the machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from preftune.errors import RunError
from preftune.files import write_text
from preftune.report import harness
from preftune.report.figures.curves import DRIFT, TRAINING, is_number
from preftune.report.read import method_of, read_metrics
from preftune.report.svg import line_chart
from preftune.train.manifest import read as read_manifest

CARD, FIGURES = "README.md", "figures"
DOCS = "https://github.com/preftune/preftune/blob/main/docs"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
TIMINGS = {"step", "split", "epoch", "pairs_per_s", "tokens_per_s", "samples_per_s", "seconds"}
METHODS = {
    "dpo": "preference training",
    "sft": "supervised fine-tuning",
    "reward": "reward modelling (Bradley-Terry)",
    "ppo": "reinforcement learning with PPO",
    "iterate": "rounds of sampling and preference training",
}
LIMITS = """\
- The model learned from the data above, with their errors and their bias. It prefers what the annotators preferred,
  which is not always what is true or safe.
- Metrics on held-out pairs say how well the model ranks responses. They do not say how good its own responses are.
- The card lists every evaluation that preftune knows of. Safety, other languages and other tasks were not evaluated
  unless the card says otherwise.
- The limits of the base model apply, too."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What a card is about.

    name      name of the model
    kind      "model", "adapter", "reward" (a sequence classifier with one label) or "gguf"
    base      folder or Hub id of the model that was trained; None if it is not known
    run       run folder; None for a model from elsewhere
    notes     lines about this export, such as the result of the check of a merge
    """

    name: str
    kind: str
    base: str | None
    run: Path | None = None
    notes: Sequence[str] = ()


def write_card(folder: Path, subject: Subject) -> Path:
    """Write README.md and figures/ into `folder`, and return the path of the card. Raises StorageError."""
    config, manifest, lines = run_files(subject.run)
    for old in (folder / FIGURES).glob("*.svg"):
        old.unlink()
    pictures = []
    for title, file, svg in charts(lines):
        write_text(folder / FIGURES / file, [svg])
        pictures.append(f"![{title}]({FIGURES}/{file})\n")
    origins = lineage(subject.base)
    method = method_of(config)
    parts = [f"---\n{yaml.safe_dump(front_matter(subject, origins, method, config), sort_keys=False)}---\n"]
    parts.append(f"# {subject.name}\n\n{summary(subject, origins, method)}\n")
    if config:
        parts.append(f"## Training\n\n{table(training_rows(origins, config, manifest))}")
    if lines:
        parts.append(f"## Metrics\n\n{table(metric_rows(lines))}\n{advice(manifest)}")
    results = harness.rows(subject.run)
    if results:
        parts.append(f"## lm-evaluation-harness\n\n{table(results)}")
    if pictures:
        parts.append("## Curves\n\n" + "\n".join(pictures))
    parts.append(f"## How to load it\n\n{loading(subject, origins)}")
    if subject.notes:
        parts.append("## This export\n\n" + "".join(f"- {note}\n" for note in subject.notes))
    parts.append(f"## Limits\n\n{LIMITS}\n")
    if config:
        shown = yaml.safe_dump(without_folders(config), sort_keys=False, allow_unicode=True)
        parts.append(f"## Config\n\n```yaml\n{shown}```\n")
    versions = manifest.get("versions") or {}
    if versions:
        parts.append("## Versions\n\n" + ", ".join(f"{name} {version}" for name, version in versions.items()) + "\n")
    write_text(folder / CARD, ["\n".join(parts)])
    return folder / CARD


def run_files(run: Path | None) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Return config, manifest and metric lines of a run; empty where a file is missing or damaged."""
    config: dict[str, Any] = {}
    manifest: dict[str, Any] = {}
    lines: list[dict[str, Any]] = []
    if run is not None:
        with suppress(RunError):
            manifest = read_manifest(run)
        with suppress(OSError, TypeError, ValueError, RecursionError, yaml.YAMLError):
            config = dict(yaml.safe_load((run / "config.yaml").read_text()))
        with suppress(OSError):
            lines = read_metrics(run / "metrics.jsonl")[0]
    return config, manifest, lines


def charts(lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Return title, file name and SVG of each curve that the run has."""
    out = []
    for chart in (*TRAINING, *DRIFT):
        series = {
            f"{name}, {word}": [
                (line["step"], line[name]) for line in lines if line["split"] == split and is_number(line.get(name))
            ]
            for name in chart.names
            for split, word in (("train", "training"), ("eval", "held out"))
        }
        if any(series.values()):
            file = re.sub(r"[^a-z0-9]+", "-", chart.title.partition(":")[0].lower()).strip("-") + ".svg"
            out.append((chart.title, file, line_chart(chart.title, chart.y, series)))
    return out


def lineage(base: str | None) -> list[str]:
    """Return the base model and, as long as it is the result of a run, the model that this run started from."""
    origins: list[str] = []
    while base and base not in origins:
        origins.append(base)
        folder = Path(base).expanduser()
        run = folder.parent if folder.name in ("final", "base") else folder
        config = run_files(run)[0] if folder.is_dir() else {}
        base = (config.get("model") or {}).get("path")
    return origins


def shown_base(origin: str) -> str:
    """Return the name of a base model for a card: a Hub id, or the last parts of a folder."""
    if is_hub_id(origin):
        return origin
    folder = Path(origin)
    return f"{folder.parent.name}/{folder.name}" if folder.name in ("final", "base") else folder.name


def is_hub_id(origin: str) -> bool:
    """Return whether the name of a model is a Hub id, and not a folder of this machine."""
    return bool(HUB_ID.fullmatch(origin.partition("@")[0])) and not Path(origin).expanduser().exists()


def front_matter(subject: Subject, origins: Sequence[str], method: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the YAML header that the Hub reads. Entries that are not known are left out."""
    library = {"adapter": "peft", "gguf": "gguf"}.get(subject.kind, "transformers")
    header: dict[str, Any] = {"library_name": library}
    hub = next((origin.partition("@")[0] for origin in origins if is_hub_id(origin)), None)
    if hub:
        header["base_model"] = hub
        header["base_model_relation"] = "adapter" if subject.kind == "adapter" else "finetune"
    names = {license_of(origin) for origin in origins} - {None}
    if len(names) == 1:
        header["license"] = names.pop()
    train = (config.get("data") or {}).get("train") or []
    sources = [train] if isinstance(train, str) else [s if isinstance(s, str) else s["path"] for s in train]
    names_of = [source.partition("[")[0].partition(":")[0].partition("@")[0] for source in sources]
    data = [name for name in names_of if is_hub_id(name)]
    if data and not any(name.endswith((".jsonl", ".json", ".parquet", ".gz", ".csv")) for name in data):
        header["datasets"] = data
    header["pipeline_tag"] = "text-classification" if subject.kind == "reward" else "text-generation"
    header["tags"] = ["preftune", *([method] if method else []), *(["lora"] if config.get("lora") else [])]
    return header


def license_of(origin: str) -> str | None:
    """Return the license in the header of the model's README.md, in its folder or in the Hub's cache."""
    path: Any = Path(origin).expanduser() / CARD
    if is_hub_id(origin):
        from huggingface_hub import try_to_load_from_cache

        name, _, revision = origin.partition("@")
        path = try_to_load_from_cache(name, CARD, revision=revision or None)
    if not isinstance(path, str | Path):
        return None
    with suppress(OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        name = yaml.safe_load(Path(path).read_text(encoding="utf-8").split("---")[1])["license"]
        return name if isinstance(name, str) else None
    return None


def summary(subject: Subject, origins: Sequence[str], method: str) -> str:
    """Return the first sentences of a card."""
    what = {"adapter": "A LoRA adapter for", "reward": "A reward model, trained from"}.get(subject.kind, "A version of")
    base = f"`{shown_base(origins[0])}`" if origins else "a model that is not known"
    how = f", trained by {METHODS[method]}" if method else ""
    return f"{what} {base}{how} with [preftune](https://github.com/preftune/preftune)."


def training_rows(
    origins: Sequence[str], config: Mapping[str, Any], manifest: Mapping[str, Any]
) -> list[Sequence[str]]:
    """Return the table of what was trained on what."""
    method, lora = method_of(config), config.get("lora")
    rows: list[Sequence[str]] = [("", ""), ("base model", ", from ".join(shown_base(origin) for origin in origins))]
    rows.append(("method", f"`preftune {method}`: {METHODS[method]}"))
    if "loss" in config:
        rows.append(("loss", f"{loss_text(config['loss'])} ([formulas]({DOCS}/lookup/losses.md))"))
    if "reward" in config:
        rows.append(("reward", shortened_path(str(config["reward"]))))
    shown = {key: value for key, value in (lora or {}).items() if value not in (False, [], "default", "merge")}
    settings = ", ".join(f"{key} {value}" for key, value in shown.items())
    rows.append(("trained weights", f"LoRA adapter ({settings})" if lora else "all weights"))
    quant = (config.get("model") or {}).get("quant")
    if quant:
        rows.append(("base weights in training", f"linear layers of the blocks in {quant}"))
    rows.append(("steps", str(manifest.get("steps", ""))))
    if manifest.get("precision"):
        rows.append(("precision", str(manifest["precision"])))
    for source, facts in (manifest.get("data") or {}).items():
        if isinstance(facts, Mapping):
            text = f"{facts.get('read')} rows read, {facts.get('kept')} used, format {facts.get('format')}"
            rows.append((f"data `{shortened_path(source)}`", text))
    fingerprint = (manifest.get("identity") or {}).get("data")
    if fingerprint:
        rows.append(("SHA-256 of the data", f"`{fingerprint}`"))
    if manifest.get("start_weights"):
        rows.append(("SHA-256 of the weights at step 0", f"`{manifest['start_weights']}`"))
    return rows


def loss_text(loss: Any) -> str:
    """Return a loss, or a weighted sum of losses, as text."""
    if isinstance(loss, Mapping):
        parameters = {**loss, **(loss.get("parameters") or {})}
        others = [f"{key} {value}" for key, value in parameters.items() if key not in ("name", "parameters")]
        return f"`{loss.get('name')}`" + (f" ({', '.join(others)})" if others else "")
    return " + ".join(map(loss_text, loss)) if isinstance(loss, list) else str(loss)


def metric_rows(lines: Sequence[Mapping[str, Any]]) -> list[Sequence[str]]:
    """Return the first and last value of every metric, in training and on held-out data."""
    by_split = {split: [line for line in lines if line["split"] == split] for split in ("train", "eval")}
    columns = [(split, index) for split, rows in by_split.items() if rows for index in (0, -1)]
    titles = {"train": "training", "eval": "held out"}
    rows: list[Sequence[str]] = [
        ("metric", *(f"{titles[split]}, step {by_split[split][index]['step']}" for split, index in columns))
    ]
    names = sorted({name for line in lines for name in line} - TIMINGS - {"lr"})
    for name in names:
        values = [by_split[split][index].get(name) for split, index in columns]
        if any(value is not None for value in values):
            rows.append((f"`{name}`", *("" if value is None else number(value) for value in values)))
    return rows


def number(value: Any) -> str:
    """Return a number with four digits, anything else as text."""
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


def advice(manifest: Mapping[str, Any]) -> str:
    """Return the warnings of the run as a list."""
    entries = manifest.get("advice") or {}
    return "".join(f"- {name}, step {entry['step']}: {entry['text']}\n" for name, entry in entries.items())


def loading(subject: Subject, origins: Sequence[str]) -> str:
    """Return the commands that load the model. MODEL is this folder, or the id of its repository."""
    base = origins[0] if origins and is_hub_id(origins[0]) else "BASE"  # a folder here is another one elsewhere
    classes = "AutoModelForSequenceClassification" if subject.kind == "reward" else "AutoModelForCausalLM"
    code = f"""\
from transformers import {classes}, AutoTokenizer

model = {classes}.from_pretrained("MODEL", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("MODEL")
"""
    if subject.kind == "adapter":
        code = """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("MODEL")
tokenizer = AutoTokenizer.from_pretrained("MODEL")
"""
    serve = "vllm serve MODEL\ntransformers serve MODEL"
    if subject.kind == "adapter":
        serve = f"vllm serve {base} --enable-lora --lora-modules {subject.name}=MODEL"
    if subject.kind == "gguf":
        return "`MODEL` is the file.\n\n```\nllama-cli -m MODEL\nllama-server -m MODEL\n```\n"
    meaning = "`MODEL` is this folder, or the id of its repository."
    if subject.kind == "adapter" and base == "BASE":
        what = f"`{shown_base(origins[0])}`" if origins else "that the adapter was trained on"
        meaning += f" `BASE` is the folder of the base model {what}, or the id of its repository."
    text = f"{meaning}\n\n```python\n{code}```\n"
    return text if subject.kind == "reward" else f"{text}\n```\n{serve}\n```\n"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table. The first row has the headers."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(cells[0]), *lines[1:]]) + "\n"


def without_folders(value: Any) -> Any:
    """Return a config in which absolute paths are replaced with their last part."""
    if isinstance(value, Mapping):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    return shortened_path(value) if isinstance(value, str) else value


def shortened_path(text: str) -> str:
    """Return `text`; for an absolute path or a path in the home folder, only its last part."""
    return re.sub(r"(?<![\w.:/])(?:~|/)[^\s:,]*/([^\s:,/]+)", r"\1", text)
