"""Broken input of every kind: a sentence and an exit code, never a traceback, never a hang."""

from __future__ import annotations

import csv
import gzip
import json
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torturing import forks
from torturing.corrupt import state
from torturing.results import Result
from torturing.world import BY_NAME, World

EXPECTED = (0, 2, 3, 4, 5, 6, 7, 9)
SPARE = 8 * 2**30  # bytes of address space that a case may add to those of its parent
CPU_S = 20.0
VALUES: list[Any] = [None, True, -1, 0, 1, 2.5, 1e308, 10**30, "", "x", " ", "\ud83d", "\x00", "x" * 20_000, [], {}]
VALUES += [[None], {"a": 1}, [[[[[1]]]]], ["x", 1], "1e-5", "../../x", "{{ 1 }}", [{"role": "user", "content": 1}]]
SNIPPETS = [b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"NaN", b"1e999", b"-Infinity", b"[" * 3000, b"{", b"}", b'"']
SNIPPETS += [b"\\ud83d", b"\r\n", b"\n\n", b"\t", b"9" * 400, b"&a [*a]", b"!!python/object:os.system x", b"{{ 1/0 }}"]
SNIPPETS += [
    b"{% for i in range(999999999) %}xx{% endfor %}",
    b"{{ ''.__class__.__mro__ }}",
    b"null",
    b": ",
    b"- ",
    b"\x1b[31m",
]
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|a|>{% endif %}"
)

Target = Callable[[World, Path, random.Random], tuple[Path, list[str]]]


def case(world: World, draw: random.Random, number: int) -> list[Result]:
    """Change one file of the input of a command, and run the command."""
    name = draw.choice(list(TARGETS))
    folder = world.folder(f"input-{number}")
    path, arguments = TARGETS[name](world, folder, draw)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        mutate(path, draw)
    done = forks.run(arguments, folder, limit_memory, CPU_S)
    failure = done.crashed
    if not failure and done.code not in EXPECTED:
        failure = f"exit code {done.code}: {done.output.strip()[-300:]}"
    if not failure and done.code and not done.output.strip():
        failure = f"exit code {done.code} without a sentence"
    if failure:
        text = f"{' '.join(arguments)}, with a changed {path.relative_to(folder)}: {failure}"
        return [Result(name, "failed", text, number)]
    world.remove(folder)
    return [Result(name, f"code {done.code}", number=number)]


def limit_memory() -> None:
    """Let an allocation fail that would take the memory of others."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + SPARE
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def mutate(path: Path, draw: random.Random) -> None:
    """Change a file: values of JSON, or bytes."""
    data = path.read_bytes()
    if draw.random() < 0.6:
        try:
            if path.suffix == ".json":
                path.write_text(json.dumps(changed(json.loads(data), draw)))
                return
            if path.suffix == ".jsonl":
                lines = data.decode().splitlines()
                at = draw.randrange(len(lines))
                lines[at] = json.dumps(changed(json.loads(lines[at]), draw))
                path.write_text("\n".join(lines) + "\n")
                return
        except (ValueError, RecursionError):
            pass
    at = draw.randrange(len(data) + 1)
    if path.suffix == ".safetensors" and draw.random() < 0.7:
        at = draw.randrange(min(len(data), 2000) + 1)  # the header
    end = at + draw.choice([0, 0, 1, 10, 1000, len(data)])
    middle = draw.choice([draw.choice(SNIPPETS), b"", draw.randbytes(draw.choice([1, 8, 300]))])
    path.write_bytes(data[:at] + middle + data[end:])


def changed(value: Any, draw: random.Random) -> Any:
    """Return a JSON value with another value, a missing or a renamed key at a random place."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        rest = {name: entry for name, entry in value.items() if name != key}
        kind = draw.random()
        if kind < 0.1:
            return rest
        return {**rest, f"{key}x": value[key]} if kind < 0.2 else {**value, key: changed(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        at = draw.randrange(len(value))
        return [*value[:at], changed(value[at], draw), *value[at + 1 :]]
    return draw.choice(VALUES)


def data(_: World, folder: Path, draw: random.Random) -> tuple[Path, list[str]]:
    """Preference data of several file types."""
    rows = [json.loads(line) for line in (folder.parent / "inputs" / "pairs.jsonl").read_text().splitlines()]
    kind = draw.choice(["jsonl", "jsonl", "json", "csv", "parquet", "jsonl.gz"])
    path = folder / f"data.{kind}"
    if kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        text = json.dumps(rows) if kind == "json" else "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if kind.endswith("gz") else text.encode())
    dry = ["dpo", "../inputs/dpo.yaml", f"data.train={path.name}", "--dry-run"]
    return path, draw.choice([["data", "check", path.name], ["data", "convert", path.name, "--out", "x.jsonl"], dry])


def config(world: World, folder: Path, draw: random.Random) -> tuple[Path, list[str]]:
    """The config of a run."""
    name = draw.choice(["sft", "dpo", "reward", "ppo", "iterate"])
    shutil.copy(world.root / "inputs" / f"{name}.yaml", folder / "c.yaml")
    return folder / "c.yaml", [name, "c.yaml", "--dry-run"]


def model(world: World, folder: Path, draw: random.Random) -> tuple[Path, list[str]]:
    """The files of a model and its tokenizer."""
    shutil.copytree(world.root / "inputs" / "model", folder / "model")
    path = draw.choice(sorted((folder / "model").iterdir()))
    sample = ["sample", "--model", "model", "--prompts", "../inputs/pairs.jsonl", "--max-new-tokens", "3"]
    return path, draw.choice([sample, ["dpo", "../inputs/dpo.yaml", "model.path=model", "--dry-run"]])


def template(_: World, folder: Path, draw: random.Random) -> tuple[Path, list[str]]:
    """A chat template."""
    path = folder / "t.jinja"
    path.write_text(TEMPLATE)
    chat = ["--chat-template", "t.jinja", "--as-chat", "--max-new-tokens", "3"]
    sample = ["sample", "--model", "../inputs/model", "--prompts", "../inputs/pairs.jsonl", *chat]
    dry = ["dpo", "../inputs/dpo.yaml", "data.chat_template=t.jinja", "data.as_chat=true", "--dry-run"]
    return path, draw.choice([sample, dry])


def run(world: World, folder: Path, draw: random.Random) -> tuple[Path, list[str]]:
    """The files of a finished run, which other commands read."""
    shutil.copytree(state(world, BY_NAME[draw.choice(["sft", "dpo", "reward"])], 1.0) / "run", folder / "run")
    path = draw.choice([path for path in sorted((folder / "run").rglob("*")) if path.is_file()])
    score = ["score", "--data", "../inputs/pairs.jsonl", "--policy", "run", "--reference", "../inputs/model"]
    sample = ["sample", "--model", "run", "--prompts", "../inputs/pairs.jsonl", "--max-new-tokens", "3"]
    merged = ["export", "run", "--to", "merged", "--out", "merged"]
    return path, draw.choice([["report", "run"], score, sample, merged])


def samples(world: World, folder: Path, draw: random.Random) -> tuple[Path, list[str]]:
    """Sampled responses."""
    shutil.copy(world.root / "inputs" / "samples.jsonl", folder / "s.jsonl")
    pairs = ["pairs", "s.jsonl", "--reward", "length"]
    return folder / "s.jsonl", draw.choice([pairs, ["label", "s.jsonl", "--no-page"], ["data", "check", "s.jsonl"]])


TARGETS: dict[str, Target] = {
    "data": data,
    "config": config,
    "model": model,
    "template": template,
    "run folder": run,
    "samples": samples,
}
