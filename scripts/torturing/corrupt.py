"""Damage a file that a command reads again. The rerun repairs it, refuses it or does not need it.

A rerun that succeeds with other files than an undisturbed one, without a word about it, is a failure.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torturing import calls, forks
from torturing.kill import number_of_calls
from torturing.results import Result
from torturing.world import BY_NAME, Command, World, difference, files_of

TARGETS = ("sft", "dpo", "reward", "ppo", "iterate", "sample", "eval winrate")
NOT_READ = (".html", ".svg", ".png", ".lock")
MODEL_CARD = ("README.md", "figures")
STOPPED_AT = (0.45, 0.65, 0.8)  # shares of a command's calls after which its files are damaged; also after its end


def case(world: World, draw: random.Random, number: int) -> list[Result]:
    """Damage one file of a stopped or finished command, and rerun the command."""
    command = BY_NAME[draw.choice(TARGETS)]
    stopped = draw.choice((*STOPPED_AT, 1.0))
    expected = world.whole(command)
    folder = world.folder(f"corrupt-{number}")
    shutil.copytree(state(world, command, stopped), folder, dirs_exist_ok=True)
    before = files_of(folder)
    path = draw.choice(list(read_again(folder)))
    kind = draw.choice(list(DAMAGES))
    name = path.relative_to(folder).as_posix()
    DAMAGES[kind](path, draw)
    row = f"{command.name}, {'finished' if stopped == 1 else 'stopped'}"
    done = forks.run([word for word in command.arguments if word != "--quiet"], folder)
    outcome, failure = judged(done, name, expected, files_of(folder), before)
    if failure:
        return [Result(row, outcome, f"{kind} of {name}: {failure}", number)]
    world.remove(folder)
    return [Result(row, outcome, number=number)]


def judged(
    done: forks.Ended, name: str, expected: dict[str, bytes], files: dict[str, bytes], before: dict[str, bytes]
) -> tuple[str, str]:
    """Return the outcome of a rerun after the file `name` was damaged, and why it is a failure, or ""."""
    file = name.rpartition("/")[2]
    is_named = any(part in done.output for part in (file, file.removesuffix(".part"), name.split("/")[-2:][0]))
    if done.crashed:
        return "crashed", done.crashed
    if done.code:
        text = done.output.strip().replace("\n", " ")[-300:]
        return ("refused", "") if is_named else ("refused", f"code {done.code} without the name of the file: {text}")
    problem = difference(expected, files)
    others = names_in(expected, files)
    if not problem:
        outcome = "repaired" if "damaged" in done.output or "changed" in done.output else "harmless"
    elif others == [name] and before.get(name) == expected.get(name):
        outcome = "left as it is"  # a finished command that does not read the file
    elif others == [name] and file.endswith(".jsonl") and same_lines(expected[name], files.get(name)):
        outcome = "harmless"  # a repeated line of a journal is read once
    elif "metrics.jsonl" in done.output and "damaged" in done.output and all("metrics.jsonl" in o for o in others):
        outcome = "reported"
    else:
        return "accepted", f"{problem}: {done.output.strip()[-200:]}"
    return outcome, ""


def names_in(one: dict[str, bytes], two: dict[str, bytes]) -> list[str]:
    """Return the names of the files that differ."""
    return sorted(name for name in {*one, *two} if one.get(name) != two.get(name))


def same_lines(one: bytes, two: bytes | None) -> bool:
    """Return whether two normalised files of JSON lines have the same lines, some of them repeated."""
    return two is not None and {json.dumps(row) for row in json.loads(one)} == {
        json.dumps(row) for row in json.loads(two)
    }


def state(world: World, command: Command, stopped: float) -> Path:
    """Return the folder of a command that was killed after a share of its calls, or that has finished."""
    folder = world.root / f"state-{command.name.replace(' ', '-')}-{stopped}"
    if not folder.is_dir():
        folder.mkdir()
        prepare = calls.kill_at(round(stopped * number_of_calls(world, command))) if stopped < 1 else None
        forks.run(command.arguments, folder, prepare)
    return folder


def read_again(folder: Path) -> Iterable[Path]:
    """Return the files that a command may read again: all but pages, pictures, model cards and locks."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and path.suffix not in NOT_READ and not {*parts} & {*MODEL_CARD}:
            yield path


def flip(path: Path, draw: random.Random) -> None:
    """Flip one bit."""
    data = bytearray(path.read_bytes()) or bytearray(b"\1")
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def truncate(path: Path, draw: random.Random) -> None:
    """Cut the file at a random length."""
    data = path.read_bytes()
    path.write_bytes(data[: draw.randrange(len(data) + 1)])


def delete(path: Path, _draw: random.Random) -> None:
    """Delete the file."""
    path.unlink()


def zero(path: Path, draw: random.Random) -> None:
    """Set a block to zero, as after a power failure."""
    data = bytearray(path.read_bytes())
    at = draw.randrange(len(data) + 1)
    data[at : at + 512] = bytes(len(data[at : at + 512]))
    path.write_bytes(data)


def edit(path: Path, draw: random.Random) -> None:
    """Change one value of JSON, of a line of JSON lines, or of a line of text. The result is valid."""
    text = path.read_bytes().decode("utf-8", "replace")
    try:
        if path.suffix == ".json":
            value = json.loads(text)
            path.write_text(json.dumps(_changed(value, draw)))
        else:
            lines = text.splitlines()
            at = draw.randrange(len(lines))
            lines[at] = json.dumps(_changed(json.loads(lines[at]), draw))
            path.write_text("".join(line + "\n" for line in lines))
    except (ValueError, IndexError):
        flip(path, draw)


def _changed(value: Any, draw: random.Random) -> Any:
    """Return a JSON value with one change at a random place."""
    if isinstance(value, dict) and value:
        key = draw.choice(list(value))
        return {**value, key: _changed(value[key], draw)}
    if isinstance(value, list) and value:
        at = draw.randrange(len(value))
        return [*value[:at], _changed(value[at], draw), *value[at + 1 :]]
    if isinstance(value, bool) or value is None:
        return not value
    return value + 1 if isinstance(value, int | float) else f"{value}x"


def duplicate(path: Path, draw: random.Random) -> None:
    """Repeat a line, or append the beginning of the file."""
    lines = path.read_bytes().splitlines(keepends=True) or [b""]
    at = draw.randrange(len(lines))
    path.write_bytes(b"".join([*lines[: at + 1], *lines[at:]]))


def replace_by_another(path: Path, draw: random.Random) -> None:
    """Replace the file by another one of the same name, such as that of an earlier checkpoint."""
    root = next(parent for parent in path.parents if parent.name.startswith("corrupt-"))
    others = [other for other in root.rglob(path.name) if other != path]
    if others:
        shutil.copy(draw.choice(sorted(others)), path)
    else:
        truncate(path, draw)


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "flip": flip,
    "truncate": truncate,
    "delete": delete,
    "zero": zero,
    "edit": edit,
    "duplicate": duplicate,
    "another": replace_by_another,
}
