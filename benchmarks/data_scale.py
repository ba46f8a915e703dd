"""Time and memory of the data preparation of a DPO run, next to that of TRL, for data of several sizes.

python benchmarks/data_scale.py --hh hh_harmless_test.jsonl.gz --tokenizer MODEL --rows 20000 200000 --record

The rows of HH-RLHF are repeated with a different number in the first turn, as text or as chats. Each measurement runs
in a new process, whose libraries are imported before the clock starts. preftune's time is from the config to the
token ids, with reading the file; TRL's is that of `DPOTrainer._prepare_dataset`, for a `datasets.Dataset` that has
been loaded before. The second start is the same process again.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from record import record

from preftune.formats.transcripts import ASSISTANT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--hh", required=True, help="pairs of HH-RLHF, .jsonl.gz")
    parser.add_argument("--tokenizer", required=True, help="folder of a model with a chat template")
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--forms", nargs="+", default=["chat", "text"], choices=["chat", "text"])
    parser.add_argument("--systems", nargs="+", default=["preftune", "trl"], choices=["preftune", "trl"])
    parser.add_argument("--trl-rows", type=int, default=20_000, help="TRL prepares only data of up to this size")
    parser.add_argument("--record", action="store_true", help="append a row to benchmarks/results.jsonl")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(MEASURES[options.child[0]](options.child[1], options.tokenizer)))
        return
    figures: list[dict[str, Any]] = []
    for form in options.forms:
        for count in options.rows:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "rows.jsonl"
                write(path, Path(options.hh), form, count)
                for system in options.systems:
                    if system == "trl" and count > options.trl_rows:
                        continue
                    for start in ("first", "second"):
                        measured = run(system, path, options, folder)
                        figures.append({"system": system, "form": form, "rows": count, "start": start, **measured})
                        print(figures[-1], flush=True)
    if options.record:
        settings = {"hh": Path(options.hh).name, "tokenizer": Path(options.tokenizer).name}
        record("data scale", {"runs": figures}, settings)


def write(path: Path, source: Path, form: str, count: int) -> None:
    """Write `count` pairs."""
    with gzip.open(source, "rt") as file:
        pairs = [pair for pair in map(split, file) if pair]
    with path.open("w") as file:
        for index in range(count):
            prompt, chosen, rejected = pairs[index % len(pairs)]
            prompt = prompt.replace("Human:", f"Human: ({index})", 1)
            row: dict[str, Any] = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
            if form == "chat":
                turns = prompt.removesuffix(ASSISTANT).split("\n\n")[1:]
                prompt_messages = list(messages(turns))
                answers = {key: [{"role": "assistant", "content": row[key].strip()}] for key in ("chosen", "rejected")}
                row = {"prompt": prompt_messages, **answers}
            file.write(json.dumps(row) + "\n")


def split(line: str) -> tuple[str, str, str] | None:
    """Return prompt, chosen and rejected; None for a pair without a common prompt or with equal or empty responses."""
    row = json.loads(line)
    (head, marker, chosen), (other, _, rejected) = (row[key].rpartition(ASSISTANT) for key in ("chosen", "rejected"))
    usable = head == other and chosen.strip() != rejected.strip() and chosen.strip() and rejected.strip()
    return (head + marker, chosen, rejected) if usable else None


def messages(turns: list[str]) -> Iterator[dict[str, str]]:
    """Yield the messages of a transcript. Text between two turns belongs to the first of them."""
    role, content = "", ""
    for turn in turns:
        name, _, text = turn.partition(":")
        if name in ("Human", "Assistant"):
            if role:
                yield {"role": role, "content": content}
            role, content = {"Human": "user", "Assistant": "assistant"}[name], text.strip()
        else:
            content += f"\n\n{turn}"
    yield {"role": role, "content": content}


def run(system: str, path: Path, options: argparse.Namespace, folder: str) -> dict[str, float]:
    """Measure one start in a new process."""
    own = {"PREFTUNE_CACHE": f"{folder}/preftune", "HF_DATASETS_CACHE": f"{folder}/datasets", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--hh", options.hh, "--tokenizer", options.tokenizer]
    child = subprocess.run(
        [*command, "--child", system, str(path), folder], env={**os.environ, **own}, stdout=subprocess.PIPE, check=True
    )
    measured: dict[str, float] = json.loads(child.stdout.splitlines()[-1])
    return measured


def preftune(path: str, tokenizer: str) -> dict[str, float]:
    """Prepare the data as a DPO run does, up to the plan of the steps."""
    from preftune.chat.open import load_renderer
    from preftune.config.schema import DataConfig
    from preftune.data.shapes import Shapes
    from preftune.data.steps import training_steps
    from preftune.data.subset import joined
    from preftune.data.tokenize_groups import require_vocabulary
    from preftune.lifecycle.data import read_data, require_length, tokenize_data
    from preftune.methods import dpo  # noqa: F401 - all imports of a run
    from preftune.model import load

    source = load.locate(tokenizer)
    renderer = load_renderer(DataConfig(train=path), source)
    with Clock() as clock:
        config = DataConfig(train=path)
        tokens = tokenize_data(read_data(config), renderer, config)
        groups = joined(tokens.train, tokens.held_out)
        require_vocabulary(groups, 1 << 30, "")
        require_length(groups, 1 << 30, "data.max_length")
        training_steps(Shapes.of(tokens.train).size_G, 32, 0, 1)
    return clock.figures | {"kept": len(groups)}


def trl(path: str, tokenizer: str) -> dict[str, float]:
    """Prepare the data as `DPOTrainer.__init__` does with its default settings."""
    import datasets
    import transformers
    from trl import DPOConfig, DPOTrainer

    data = datasets.load_dataset("json", data_files=path, split="train")
    processing = transformers.AutoTokenizer.from_pretrained(tokenizer)
    trainer = DPOTrainer.__new__(DPOTrainer)
    trainer._tokenizer, trainer._is_vlm = processing, False
    settings = DPOConfig(output_dir=tempfile.mkdtemp(), use_cpu=True, bf16=False)
    with Clock() as clock:
        prepared = trainer._prepare_dataset(data, processing, settings, "train")
    return clock.figures | {"kept": len(prepared)}


MEASURES = {"preftune": preftune, "trl": trl}


class Clock:
    """Wall and CPU seconds of a block, and the peak memory of the process in MB.

    rss_mb   peak resident memory, with the libraries and with pages of mapped files
    anon_mb  peak anonymous memory, sampled: what the process itself has allocated
    """

    def __enter__(self) -> Clock:
        self._done, self._peak = threading.Event(), 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        self._began, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        seconds, cpu = time.perf_counter() - self._began, time.process_time() - self._cpu
        self._done.set()
        self._thread.join()
        self.figures = {
            "seconds": round(seconds, 2),
            "cpu_seconds": round(cpu, 2),
            "rss_mb": status("VmHWM") // 1024,
            "anon_mb": self._peak // 1024,
        }

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            self._peak = max(self._peak, status("RssAnon"))


def status(name: str) -> int:
    """Return a line of /proc/self/status, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


if __name__ == "__main__":
    main()
