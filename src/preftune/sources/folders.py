"""Folders of data: which files belong to which config and split, by the rules of the `datasets` library.

A folder is one that `save_to_disk` wrote, one whose README.md lists configs, or any other with data files. Nothing in
it is left out silently: other splits and configs and files that are not read are in the notes.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from preftune.errors import DataError
from preftune.sources.compressed import kind_of
from preftune.sources.files import READERS, is_data_file
from preftune.sources.rows import Source
from preftune.sources.splits import TRAIN, choose, listed, not_read

#: The words in names of files and folders that tell the split, as in datasets/data_files.py.
WORDS = {
    TRAIN: ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SHARD = re.compile(r"data/(?P<split>\w+(\.\w+)*)-\d{5}-of-\d{5}[^/]*\.[^/]*")
#: Files that describe a dataset and are not part of it.
DESCRIPTIONS = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
SAVED, SAVED_INFO, SAVED_SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"

Splits = Mapping[str, tuple[str, ...]]  # the files of each split, relative to the folder


@dataclass(frozen=True, slots=True)
class Layout:
    """What a folder holds: the files of each config and split, and the config that a bare name means."""

    configs: dict[str, Splits]
    default: str | None


def folder_source(folder: Path, target: str, parts: Sequence[str]) -> Source:
    """What `target` (the folder as the user named it) with these parts stands for.

    Raises DataError that lists splits or configs if the name does not say which, and for a folder without data files.
    """
    name = ":".join([target, *parts])
    if _is_saved(folder):
        return _saved(folder, name, target, parts)
    every = tuple(_files(folder))
    data = [file for file in every if is_data_file(file) and PurePosixPath(file).name not in DESCRIPTIONS]
    if (folder / SAVED_SPLITS).is_file():
        splits = _saved_splits(folder, target)
        config, split = choose(target, parts, ("default",), None, lambda _: splits)
        notes = not_read(target, parts, ("default",), config, split, splits)
        notes += _beside([file for file in data if PurePosixPath(file).parts[0] not in splits])
        return _saved(folder / split, name, target, (), notes)
    if inside := sorted({p for file in every if _is_saved(folder / (p := str(PurePosixPath(file).parent)))}):
        outer = [str(PurePosixPath(one).parent) for one in inside]
        sets = sorted({o if (folder / o / SAVED_SPLITS).is_file() else i for i, o in zip(inside, outer, strict=True)})
        fix = f"name one of them, such as {_join(target, sets[0])}"
        raise DataError(f"its subfolders are saved datasets: {listed(sets)}", where=name, fix=fix)
    if not data:
        fix = f"give a folder with files of these kinds: {', '.join(READERS)}"
        raise DataError(f"the folder holds no data file; it has {listed(every) or 'no file'}", where=name, fix=fix)
    layout = _layout(folder, target, data)
    names = list(layout.configs)
    config, split = _chosen(folder, target, parts, layout)
    files = layout.configs[config][split]
    if not files:
        raise DataError(f"no file of split {split!r} is there", where=name, fix=f"see data_files in {target}/README.md")
    notes = not_read(target, parts, names, config, split, list(layout.configs[config]))
    return Source(
        name,
        tuple((folder / file, _join(target, file)) for file in files),
        folder,
        notes=(*notes, *_left_out(every, data, layout)),
    )


def _chosen(folder: Path, target: str, parts: Sequence[str], layout: Layout) -> tuple[str, str]:
    """Config and split that the name means. A subfolder is neither: the error then says how to write it."""
    try:
        return choose(target, parts, list(layout.configs), layout.default, lambda config: list(layout.configs[config]))
    except DataError as error:
        if parts and (folder / parts[0]).is_dir():
            name = ":".join([_join(target, parts[0]), *parts[1:]])
            raise DataError(
                error.what, where=error.where, why=error.why, fix=f"for the subfolder write {name}"
            ) from None
        raise


def _join(target: str, file: str) -> str:
    return f"{target.rstrip('/')}/{file}"


def _saved(folder: Path, name: str, target: str, parts: Sequence[str], notes: Sequence[str] = ()) -> Source:
    """One dataset that `save_to_disk` wrote. It has no splits, but may know which one it was."""
    if not _is_saved(folder):
        what = f"{folder} is not a saved dataset: it lacks {SAVED} or {SAVED_INFO}"
        raise DataError(what, where=name, fix="save it again")
    state = _read_json(folder / SAVED, name)
    if parts and list(parts) != [state.get("_split")]:
        raise DataError("it is one saved dataset, without configs or splits", where=name, fix=f"write {target}")
    own = [str(file.get("filename")) for file in state.get("_data_files") or [] if isinstance(file, dict)]
    rest = [file for file in _files(folder) if is_data_file(file) and file not in (*own, *DESCRIPTIONS)]
    return Source(name, saved=folder, notes=(*notes, *_beside(rest)))


def _is_saved(folder: Path) -> bool:
    return (folder / SAVED).is_file() and (folder / SAVED_INFO).is_file()


def _beside(files: Sequence[str]) -> list[str]:
    """A note on data files in the folder of a saved dataset that are not its own."""
    rest = [file for file in files if not PurePosixPath(file).name.startswith("cache-")]  # of `datasets` itself
    return [f"not read, as they are not part of the saved dataset: {listed(rest)}"] if rest else []


def _saved_splits(folder: Path, target: str) -> list[str]:
    splits = _read_json(folder / SAVED_SPLITS, target).get("splits")
    if not isinstance(splits, list) or not all(isinstance(split, str) for split in splits):
        raise DataError(f"{SAVED_SPLITS} does not list splits", where=target, fix="save the dataset again")
    return splits


def _read_json(path: Path, where: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path.name} cannot be read: {error}", where=where, fix="save the dataset again") from None
    return value if isinstance(value, dict) else {}


def _files(folder: Path) -> Iterator[str]:
    """All files in a folder, sorted, without hidden ones and without folders whose name begins with two underscores."""
    found, visited = [], set[str]()

    def refuse(error: OSError) -> None:
        raise DataError(f"cannot be read: {error.strerror}", where=str(error.filename))

    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in visited:  # a link to a folder above
            folders.clear()
            continue
        visited.add(real)
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        at = Path(place).relative_to(folder)
        names = [(at / name).as_posix() for name in files if not name.startswith(".")]
        found += [name for name in names if (folder / name).is_file()]
    yield from sorted(found)


def split_files(files: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The files of each split, told by their names; all are `train` if no name tells a split.

    The first rule that fits any file decides: data/SPLIT-00000-of-00001.KIND, then a folder named after a split,
    then a file named after one. Files that do not fit that rule are in no split.
    """
    shards = {file: match["split"] for file in files if (match := SHARD.fullmatch(file))}
    if shards:
        names = set(shards.values())
        ordered = [split for split in WORDS if split in names] + sorted(names - set(WORDS))
        return {split: tuple(file for file in files if shards.get(file) == split) for split in ordered}
    for part in (slice(None, -1), slice(-1, None)):  # the folders of a path, its name
        splits = {
            split: tuple(file for file in files if any(_has_word(p, split) for p in PurePosixPath(file).parts[part]))
            for split in WORDS
        }
        if any(splits.values()):
            return {split: members for split, members in splits.items() if members}
    return {TRAIN: tuple(files)}


def _has_word(part: str, split: str) -> bool:
    """Whether the name of a file or folder has a word for this split, between -, ., _, blanks or digits."""
    return any(re.fullmatch(rf"(.*[-._ 0-9])?{word}([-._ 0-9].*)?", part) for word in WORDS[split])


def _layout(folder: Path, target: str, data: Sequence[str]) -> Layout:
    configs = _card(folder, target)
    if not configs:
        return Layout({"default": split_files(data)}, "default")
    layouts: dict[str, Splits] = {}
    defaults = []
    for config in configs:
        name = config["config_name"]
        begin = f"{str(config.get('data_dir') or '').strip('/')}/".lstrip("/")
        inner = [file.removeprefix(begin) for file in data if file.startswith(begin)]
        if config.get("data_files") is None:
            splits: Splits = split_files(inner)
        else:
            splits = _named_files(folder / begin, config["data_files"], f"{target}/README.md")
        layouts[name] = {split: tuple(begin + file for file in files) for split, files in splits.items()}
        if name == "default" or config.get("default"):
            defaults.append(name)
    return Layout(layouts, defaults[0] if len(defaults) == 1 else None)


def _card(folder: Path, target: str) -> list[dict[str, Any]]:
    """The list `configs` at the top of README.md; empty if there is none."""
    card = folder / "README.md"
    if not card.is_file():
        return []
    text = card.read_text("utf-8-sig", "replace").replace("\r\n", "\n")
    match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.S)
    try:
        head = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError as error:
        at = getattr(error, "problem_mark", None)
        where = f"{target}/README.md{f':{at.line + 2}' if at else ''}"
        raise DataError("the YAML at its top cannot be read", where=where, fix="repair it or remove it") from None
    configs = head.get("configs") if isinstance(head, dict) else None
    if configs is None:
        return []
    sound = isinstance(configs, list) and all(isinstance(c, dict) and _is_name(c.get("config_name")) for c in configs)
    if not sound:
        fix = "write `- config_name: NAME` and `data_files: ...` for each"
        raise DataError("`configs` must list configs by name", where=f"{target}/README.md", fix=fix)
    return list(configs)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _named_files(base: Path, named: Any, where: str) -> dict[str, tuple[str, ...]]:
    """The files of each split of `data_files`: a pattern, a list of them, or a list of {split, path}."""
    entries = named if isinstance(named, list) else [named]
    if all(isinstance(entry, str) for entry in entries):
        entries = [{"split": TRAIN, "path": entries}]
    splits: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        paths = entry.get("path") if isinstance(entry, dict) else None
        patterns = [paths] if isinstance(paths, str) else paths
        sound = isinstance(patterns, list) and all(isinstance(pattern, str) for pattern in patterns)
        if not sound or not _is_name(entry.get("split")) or entry["split"] in splits:
            fix = "list each split once, as `- split: train` and `path: ...`"
            raise DataError(f"`data_files` cannot be used: {entry}", where=where, fix=fix)
        files = [file for pattern in patterns or [] for file in _matches(base, pattern, where)]
        splits[entry["split"]] = tuple(dict.fromkeys(files))
    return splits


def _matches(base: Path, pattern: str, where: str) -> list[str]:
    if "://" in pattern or PurePosixPath(pattern).is_absolute() or ".." in PurePosixPath(pattern).parts:
        raise DataError(f"{pattern!r} is not inside the folder", where=where, fix="name files of this folder only")
    found = sorted(glob.glob(pattern, root_dir=base, recursive=True))
    files = [PurePosixPath(file).as_posix() for file in found if (base / file).is_file()]
    if not files and not glob.has_magic(pattern):
        raise DataError(f"{pattern!r} is not there", where=where, fix="correct `data_files`, or get the file")
    return [file for file in files if PurePosixPath(file).name not in (*DESCRIPTIONS, "README.md")]


def _left_out(every: Sequence[str], data: Sequence[str], layout: Layout) -> list[str]:
    """Notes on files that no config and split has, and on files of a kind that is not read."""
    used = {file for splits in layout.configs.values() for files in splits.values() for file in files}
    rest = [file for file in data if file not in used]
    notes = [f"not read, as they belong to no split: {listed(rest)}"] if rest else []
    unknown = [file for file in every if file not in data and file not in used and not _is_description(file)]
    return notes + ([f"not read, as they are not data files of a known kind: {listed(unknown)}"] if unknown else [])


def _is_description(file: str) -> bool:
    name = PurePosixPath(file).name
    return name in DESCRIPTIONS or kind_of(Path(name))[0] == ".md" or name.upper().startswith("LICENSE")
