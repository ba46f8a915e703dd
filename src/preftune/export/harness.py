"""preftune eval harness: run lm-evaluation-harness on a model, in a separate process, and show its results.

The results of a run are stored in its folder `harness/`, where report.html and the model card read them.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from shlex import join

from preftune.errors import ConfigError, IncompleteError, require_writable
from preftune.export.subject import Exported, exported, language_model
from preftune.model import load
from preftune.report import harness
from preftune.report.card import write_card
from preftune.report.run import write_run_page
from preftune.train.display import Display

PACKAGE = "lm_eval"


@dataclass(frozen=True, slots=True)
class HarnessOptions:
    """The settings of an evaluation.

    tasks       names of tasks, separated by commas
    tasks_dir   folder with task files (YAML) of your own
    few_shot    examples in every prompt; None: as the task says
    limit       rows per task; None: all
    chat        apply the model's chat template
    """

    tasks: str
    tasks_dir: Path | None = None
    few_shot: int | None = None
    limit: int | None = None
    chat: bool = False
    batch_size: str = "8"
    dtype: str = "auto"


def run(path: str, options: HarnessOptions, out: Path | None, display: Display) -> Path:
    """Evaluate the model that `path` refers to, and return the folder of the results.

    Raises IncompleteError if lm-evaluation-harness is not installed (the command is printed) or fails.
    """
    with exported(path, None) as model:
        language_model(model, "harness")
        folder = out or (model.run / harness.FOLDER if model.run else Path(harness.FOLDER) / model.name)
        words = command(model, options, folder)
        require_writable(folder)
        if importlib.util.find_spec(PACKAGE) is None:
            sys.stdout.write(f"{join(['python', *words[1:]])}\n")
            raise IncompleteError(
                "lm-evaluation-harness is not installed, so nothing was evaluated",
                where="preftune eval harness",
                fix="pip install 'lm_eval[hf]' and rerun, or run the command above where it is installed",
            )
        display.say(join(words))
        before = set(harness.result_files(folder, nested=False))
        # its output shows the progress, and belongs to stderr
        done = subprocess.run(words, stdout=sys.stderr.fileno(), check=False, env=dict(os.environ))
        new = sorted(set(harness.result_files(folder, nested=False)) - before)
        if done.returncode != 0 or not new:
            raise IncompleteError(
                f"lm-evaluation-harness ended with exit code {done.returncode} and wrote {len(new)} result files",
                where="preftune eval harness",
                fix="see its output above",
            )
        for row in harness.rows_of(new):
            display.say("  ".join(row))
        if model.run is not None and folder == model.run / harness.FOLDER:
            _update_pages(model, display)
    return folder


def command(model: Exported, options: HarnessOptions, out: Path) -> list[str]:
    """Return the command that evaluates a model. Raises ConfigError for a checkpoint or a path with a comma."""
    if model.source is None:
        what, fix = "this is a checkpoint", "export it first: preftune export CHECKPOINT --to merged"
        raise ConfigError(what, where="preftune eval harness", fix=fix)
    base = model.source.base
    arguments = {"pretrained": str(Path(base).resolve()) if Path(base).is_dir() else base}
    if model.source.revision:
        arguments["revision"] = model.source.revision
    if model.source.adapter:
        arguments["peft"] = str(Path(model.source.adapter).resolve())
        own = load.tokenizer_folder(model.source)
        if own == model.source.adapter:
            arguments["tokenizer"] = arguments["peft"]
    if model.source.quant:
        what = f"lm-evaluation-harness would load the base model without quantisation ({model.source.quant})"
        fix = "export it first: preftune export MODEL --to merged"
        raise ConfigError(what, where="preftune eval harness", fix=fix)
    arguments["dtype"] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}.get(options.dtype, options.dtype)
    wrong = [value for value in arguments.values() if "," in value or "=" in value]
    if wrong:
        what = f"lm-evaluation-harness cannot read a path with a comma or an equals sign: {wrong[0]}"
        raise ConfigError(what, where="preftune eval harness", fix="move or rename the folder")
    words = [sys.executable, "-m", PACKAGE, "run", "--model", "hf"]
    words += ["--model_args", ",".join(f"{name}={value}" for name, value in arguments.items())]
    words += ["--tasks", options.tasks, "--batch_size", options.batch_size, "--output_path", str(out)]
    if options.tasks_dir:
        words += ["--include_path", str(options.tasks_dir)]
    if options.few_shot is not None:
        words += ["--num_fewshot", str(options.few_shot)]
    if options.limit is not None:
        words += ["--limit", str(options.limit)]
    return [*words, "--apply_chat_template"] if options.chat else words


def _update_pages(model: Exported, display: Display) -> None:
    """Write the report and the card of a run again, with the results."""
    assert model.run is not None
    kind = "adapter" if model.kind == "adapter" else "model"
    write_card(model.run / "final", model.subject(kind))
    write_run_page(model.run)
    display.say(f"done: added to {model.run / 'report.html'} and {model.run / 'final' / 'README.md'}")
