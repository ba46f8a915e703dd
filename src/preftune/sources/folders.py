"""Find which files of a data folder belong to which config and split, by the rules of the `datasets` library.

A data folder was written by `save_to_disk`, has a README.md that lists configs, or contains any other data files.
Splits, configs and files that are not read are reported in the notes.
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
from preftune.sources.compressed import file_suffixes
from preftune.sources.files import READERS, is_data_file
from preftune.sources.rows import Source
from preftune.sources.splits import TRAIN, choose_part, join_names, notes_on_unread_parts

#: The words in names of files and folders that identify a split, as in datasets/data_files.py.
SPLIT_WORDS = {
    TRAIN: ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SHARD_NAME = re.compile(r"data/(?P<split>\w+(\.\w+)*)-\d{5}-of-\d{5}[^/]*\.[^/]*")
#: Files that describe a dataset and contain no rows.
DESCRIPTIONS = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
STATE_FILE, INFO_FILE, SPLITS_FILE = "state.json", "dataset_info.json", "dataset_dict.json"

Splits = Mapping[str, tuple[str, ...]]  # the files of each split, relative to the folder


@dataclass(frozen=True, slots=True)
class FolderSplits:
    """The files of each config and split of a folder, and the config of a name without parts."""

    configs: dict[str, Splits]
    default: str | None


def folder_source(folder: Path, target: str, parts: Sequence[str]) -> Source:
    """Find the data that `target` (the folder as the user wrote it) followed by `parts` refers to.

    Raises DataError for a folder without data files. If the name is ambiguous, the error lists configs or splits.
    """
    name = ":".join([target, *parts])
    if _is_saved_dataset(folder):
        return _saved_source(folder, name, target, parts)
    all_files = tuple(_files(folder))
    data = [file for file in all_files if is_data_file(file) and PurePosixPath(file).name not in DESCRIPTIONS]
    if (folder / SPLITS_FILE).is_file():
        splits = _saved_splits(folder, target)
        config, split = choose_part(target, parts, ("default",), None, lambda _: splits)
        notes = notes_on_unread_parts(target, parts, ("default",), config, split, splits)
        notes += _notes_on_other_files([file for file in data if PurePosixPath(file).parts[0] not in splits])
        return _saved_source(folder / split, name, target, (), notes)
    parents = {str(PurePosixPath(file).parent) for file in all_files}
    if inside := sorted(parent for parent in parents if _is_saved_dataset(folder / parent)):
        outer = [str(PurePosixPath(inner).parent) for inner in inside]
        sets = sorted({o if (folder / o / SPLITS_FILE).is_file() else i for i, o in zip(inside, outer, strict=True)})
        fix = f"use one of them, for example {_join(target, sets[0])}"
        raise DataError(f"the subfolders are saved datasets: {join_names(sets)}", where=name, fix=fix)
    if not data:
        what = f"the folder {f'has no data files, only {join_names(all_files)}' if all_files else 'is empty'}"
        raise DataError(what, where=name, fix=f"use a folder with files of these types: {', '.join(READERS)}")
    layout = _folder_splits(folder, target, data)
    names = list(layout.configs)
    config, split = _choose(folder, target, parts, layout)
    files = layout.configs[config][split]
    if not files:
        raise DataError(f"split {split!r} has no files", where=name, fix=f"correct data_files in {target}/README.md")
    notes = notes_on_unread_parts(target, parts, names, config, split, list(layout.configs[config]))
    notes += _notes_on_unread_files(all_files, data, layout)
    return Source(name, tuple((folder / file, _join(target, file)) for file in files), folder, notes=tuple(notes))


def _choose(folder: Path, target: str, parts: Sequence[str], layout: FolderSplits) -> tuple[str, str]:
    """Choose config and split. If a part is the name of a subfolder, the error says how to write that."""
    configs = layout.configs
    try:
        return choose_part(target, parts, list(configs), layout.default, lambda config: list(configs[config]))
    except DataError as error:
        if parts and (folder / parts[0]).is_dir():
            name = ":".join([_join(target, parts[0]), *parts[1:]])
            fix = f"to read the subfolder, write {name}"
            raise DataError(error.what, where=error.where, why=error.why, fix=fix) from None
        raise


def _join(target: str, file: str) -> str:
    return f"{target.rstrip('/')}/{file}"


def _saved_source(folder: Path, name: str, target: str, parts: Sequence[str], notes: Sequence[str] = ()) -> Source:
    """Return the source of one dataset that `save_to_disk` wrote. It may store the name of its split."""
    if not _is_saved_dataset(folder):
        what = f"{folder} is not a saved dataset: {STATE_FILE} or {INFO_FILE} is missing"
        raise DataError(what, where=name, fix="save it again")
    state = _read_json(folder / STATE_FILE, name)
    if parts and list(parts) != [state.get("_split")]:
        raise DataError("a single saved dataset has no configs or splits", where=name, fix=f"write {target}")
    own = [str(file.get("filename")) for file in state.get("_data_files") or [] if isinstance(file, dict)]
    rest = [file for file in _files(folder) if is_data_file(file) and file not in (*own, *DESCRIPTIONS)]
    return Source(name, saved=folder, notes=(*notes, *_notes_on_other_files(rest)))


def _is_saved_dataset(folder: Path) -> bool:
    return (folder / STATE_FILE).is_file() and (folder / INFO_FILE).is_file()


def _notes_on_other_files(files: Sequence[str]) -> list[str]:
    """Note the data files in the folder of a saved dataset that do not belong to it."""
    rest = [file for file in files if not PurePosixPath(file).name.startswith("cache-")]  # `datasets` writes cache-*
    return [f"not read because they are not part of the saved dataset: {join_names(rest)}"] if rest else []


def _saved_splits(folder: Path, target: str) -> list[str]:
    splits = _read_json(folder / SPLITS_FILE, target).get("splits")
    if not isinstance(splits, list) or not all(isinstance(split, str) for split in splits):
        raise DataError(f"{SPLITS_FILE} does not list splits", where=target, fix="save the dataset again")
    return splits


def _read_json(path: Path, where: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path.name} cannot be read: {error}", where=where, fix="save the dataset again") from None
    return value if isinstance(value, dict) else {}


def _files(folder: Path) -> Iterator[str]:
    """Yield all files in a folder, sorted, except hidden files and files in hidden folders or in __folders."""
    paths, visited = [], set[str]()

    def refuse(error: OSError) -> None:
        what, fix = f"the folder cannot be read: {error.strerror}", "check the permissions of the folder"
        raise DataError(what, where=str(error.filename), fix=fix)

    for directory, subfolders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(directory)
        if real in visited:  # a link to a folder above
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = [name for name in subfolders if not name.startswith((".", "__"))]
        relative = Path(directory).relative_to(folder)
        names = [(relative / name).as_posix() for name in files if not name.startswith(".")]
        paths += [name for name in names if (folder / name).is_file()]
    yield from sorted(paths)


def split_files(files: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Assign files to splits by their names. If no name contains a split, all files are `train`.

    The first rule that matches any file is used: data/SPLIT-00000-of-00001.KIND, then a folder named after a split,
    then a file named after a split. Files that do not match that rule belong to no split.
    """
    shards = {file: match["split"] for file in files if (match := SHARD_NAME.fullmatch(file))}
    if shards:
        names = set(shards.values())
        ordered = [split for split in SPLIT_WORDS if split in names] + sorted(names - set(SPLIT_WORDS))
        return {split: tuple(file for file in files if shards.get(file) == split) for split in ordered}
    for part in (slice(None, -1), slice(-1, None)):  # the folders of a path, then its file name
        splits = {
            split: tuple(file for file in files if any(_has_word(p, split) for p in PurePosixPath(file).parts[part]))
            for split in SPLIT_WORDS
        }
        if any(splits.values()):
            return {split: members for split, members in splits.items() if members}
    return {TRAIN: tuple(files)}


def _has_word(part: str, split: str) -> bool:
    """Return whether a file or folder name contains a word for this split, delimited by -, ., _, blanks or digits."""
    return any(re.fullmatch(rf"(.*[-._ 0-9])?{word}([-._ 0-9].*)?", part) for word in SPLIT_WORDS[split])


def _folder_splits(folder: Path, target: str, data: Sequence[str]) -> FolderSplits:
    configs = _configs_of_card(folder, target)
    if not configs:
        return FolderSplits({"default": split_files(data)}, "default")
    layouts: dict[str, Splits] = {}
    defaults = []
    for config in configs:
        name = config["config_name"]
        prefix = f"{str(config.get('data_dir') or '').strip('/')}/".lstrip("/")
        inner = [file.removeprefix(prefix) for file in data if file.startswith(prefix)]
        if config.get("data_files") is None:
            splits: Splits = split_files(inner)
        else:
            splits = _files_of_splits(folder / prefix, config["data_files"], f"{target}/README.md")
        layouts[name] = {split: tuple(prefix + file for file in files) for split, files in splits.items()}
        if name == "default" or config.get("default"):
            defaults.append(name)
    return FolderSplits(layouts, defaults[0] if len(defaults) == 1 else None)


def _configs_of_card(folder: Path, target: str) -> list[dict[str, Any]]:
    """Return the list `configs` in the YAML header of README.md, or an empty list."""
    card = folder / "README.md"
    if not card.is_file():
        return []
    text = card.read_text("utf-8-sig", "replace").replace("\r\n", "\n")
    match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.S)
    try:
        head = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{target}/README.md{f':{mark.line + 2}' if mark else ''}"
        raise DataError("the YAML header cannot be read", where=where, fix="repair or remove the header") from None
    configs = head.get("configs") if isinstance(head, dict) else None
    if configs is None:
        return []
    valid = isinstance(configs, list) and all(isinstance(c, dict) and _is_name(c.get("config_name")) for c in configs)
    if not valid:
        fix = "write `- config_name: NAME` and `data_files: ...` for each config"
        raise DataError("`configs` must be a list of named configs", where=f"{target}/README.md", fix=fix)
    return list(configs)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _files_of_splits(base: Path, data_files: Any, where: str) -> dict[str, tuple[str, ...]]:
    """Return the files of each split of `data_files`: a pattern, a list of patterns, or a list of {split, path}."""
    entries = data_files if isinstance(data_files, list) else [data_files]
    if all(isinstance(entry, str) for entry in entries):
        entries = [{"split": TRAIN, "path": entries}]
    splits: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        paths = entry.get("path") if isinstance(entry, dict) else None
        patterns = [paths] if isinstance(paths, str) else paths
        valid = isinstance(patterns, list) and all(isinstance(pattern, str) for pattern in patterns)
        if not valid or not _is_name(entry.get("split")) or entry["split"] in splits:
            fix = "list each split once, as `- split: train` and `path: ...`"
            raise DataError(f"`data_files` cannot be used: {entry}", where=where, fix=fix)
        files = [file for pattern in patterns or [] for file in _matching_files(base, pattern, where)]
        splits[entry["split"]] = tuple(dict.fromkeys(files))
    return splits


def _matching_files(base: Path, pattern: str, where: str) -> list[str]:
    if "://" in pattern or PurePosixPath(pattern).is_absolute() or ".." in PurePosixPath(pattern).parts:
        raise DataError(f"{pattern!r} is outside the folder", where=where, fix="list only files in this folder")
    matches = sorted(glob.glob(pattern, root_dir=base, recursive=True))
    files = [PurePosixPath(file).as_posix() for file in matches if (base / file).is_file()]
    if not files and not glob.has_magic(pattern):
        raise DataError(f"{pattern!r} does not exist", where=where, fix="correct `data_files`, or add the file")
    return [file for file in files if PurePosixPath(file).name not in (*DESCRIPTIONS, "README.md")]


def _notes_on_unread_files(all_files: Sequence[str], data: Sequence[str], layout: FolderSplits) -> list[str]:
    """Notes on data files outside every config and split, and on files of an unsupported type."""
    used = {file for splits in layout.configs.values() for files in splits.values() for file in files}
    rest = [file for file in data if file not in used]
    notes = [f"not read because they belong to no split: {join_names(rest)}"] if rest else []
    unknown = [file for file in all_files if file not in data and file not in used and not _is_description(file)]
    return notes + ([f"not read because their file type is unknown: {join_names(unknown)}"] if unknown else [])


def _is_description(file: str) -> bool:
    name = PurePosixPath(file).name
    return name in DESCRIPTIONS or file_suffixes(Path(name))[0] == ".md" or name.upper().startswith("LICENSE")
