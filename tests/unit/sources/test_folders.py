"""Data folders: splits and configs match `datasets`, every data file is read or reported, origins are exact."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data.read_groups import read_groups
from preftune.errors import DataError
from preftune.sources.folders import split_files
from preftune.sources.read import read

PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}


def fill(folder: Path, *files: str) -> Path:
    """Write files with one row each, whose value is the name of the file."""
    for file in files:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = file.partition(".")[2]
        if kind == "parquet":
            pyarrow.parquet.write_table(pa.Table.from_pylist([{"x": file}]), path)
        else:
            texts = {"jsonl": f'\n{{"x": "{file}"}}', "json": f'[{{"x": "{file}"}}]', "csv": f"x\n{file}\n"}
            path.write_text(texts.get(kind, "words"))
    return folder


def card(folder: Path, text: str) -> None:
    (folder / "README.md").write_text(f"---\n{text}\n---\n# Title\n")


def read_all(name: Any) -> tuple[list[str], list[str]]:
    """Return the files that were read, and the notes."""
    notes: list[str] = []
    return [row.value["x"] for row in read(str(name), lambda text, _: notes.append(text))], notes


def error_of(name: Any) -> str:
    with pytest.raises(DataError) as error:
        list(read(str(name)))
    return str(error.value)


def test_files_of_all_types_are_read_with_exact_lines(tmp_path: Path) -> None:
    fill(tmp_path, "b.parquet", "a.jsonl", "sub/deep/c.json", "d.csv")
    rows = list(read(str(tmp_path)))
    assert [row.value["x"] for row in rows] == ["a.jsonl", "b.parquet", "d.csv", "sub/deep/c.json"]
    places = ["a.jsonl:2", "b.parquet:1", "d.csv:2", "sub/deep/c.json:1"]
    assert [row.origin for row in rows] == [f"{tmp_path}/{place}" for place in places]
    assert read_all(f"{tmp_path}/")[0] == read_all(tmp_path)[0]


def test_a_source_can_be_a_list_of_folders_and_files(tmp_path: Path) -> None:
    fill(tmp_path, "a/x.jsonl", "b.csv")
    assert [row.value["x"] for row in read([str(tmp_path / "b.csv"), str(tmp_path / "a")])] == ["b.csv", "a/x.jsonl"]


def test_files_that_are_not_read_are_reported(tmp_path: Path) -> None:
    fill(
        tmp_path,
        "a.jsonl",
        "b.txt",
        "c.zip",
        "README.md",
        "LICENSE",
        ".hidden.jsonl",
        ".git/x.jsonl",
        "__pycache__/y.csv",
    )
    (tmp_path / "dataset_info.json").write_text("{}")
    assert read_all(tmp_path) == (["a.jsonl"], ["not read because their file type is unknown: b.txt, c.zip"])
    fill(tmp_path, "test.jsonl", "train.jsonl")
    files, notes = read_all(tmp_path)
    assert files == ["train.jsonl"]
    assert notes[0] == f"only split 'train' is used; also available: test (write {tmp_path}:test)"
    assert notes[1] == "not read because they belong to no split: a.jsonl"


def test_a_linked_folder_is_read_once(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", "a.jsonl")
    fill(tmp_path / "data", "b.jsonl")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data")
    assert read_all(tmp_path / "data")[0] == ["b.jsonl", "a.jsonl"]


def test_the_error_for_a_folder_without_data_lists_its_files(tmp_path: Path) -> None:
    assert "the folder is empty" in error_of(tmp_path)
    fill(tmp_path, "a.txt")
    assert "the folder has no data files, only a.txt" in error_of(tmp_path)


def test_names_of_files_and_folders_determine_the_split(tmp_path: Path) -> None:
    fill(tmp_path / "a", "train.jsonl", "train_2.csv", "my-test.jsonl", "val.parquet")
    assert read_all(tmp_path / "a")[0] == ["train.jsonl", "train_2.csv"]
    assert read_all(f"{tmp_path / 'a'}:test") == (["my-test.jsonl"], [])
    assert read_all(f"{tmp_path / 'a'}:default:validation")[0] == ["val.parquet"]
    fill(tmp_path / "b", "train/x.jsonl", "train/y.parquet", "test/x.jsonl")
    assert read_all(tmp_path / "b")[0] == ["train/x.jsonl", "train/y.parquet"]
    fill(tmp_path / "c", "data/train_prefs-00000-of-00001.parquet", "data/test_prefs-00000-of-00001-ab.parquet")
    assert f"{tmp_path / 'c'}: the dataset has no split 'train'; it has test_prefs, train_prefs" in error_of(
        tmp_path / "c"
    )
    assert f"fix: write {tmp_path / 'c'}:train_prefs" in error_of(tmp_path / "c")
    assert read_all(f"{tmp_path / 'c'}:test_prefs")[0] == ["data/test_prefs-00000-of-00001-ab.parquet"]


WORDS = ["train", "training", "test", "eval", "val", "dev", "valid", "data", "prefs", "trains", "Test", "x", "0"]
NAMES = st.lists(st.sampled_from([*WORDS, "-", "_", ".", " "]), min_size=1, max_size=4).map("".join)
SHARDS = st.builds("data/{}-{:05}-of-00002{}.jsonl".format, st.sampled_from(WORDS), st.integers(0, 1), NAMES)
PATHS = st.lists(NAMES.map(lambda name: f"n{name}"), max_size=2).flatmap(
    lambda folders: NAMES.map(lambda name: "/".join([*folders, f"{name}.jsonl"]))
)
PLAIN = st.lists(NAMES, max_size=2).flatmap(
    lambda folders: NAMES.map(lambda name: "/".join([*folders, f"{name}.jsonl"]))
)


@settings(deadline=None)
@given(st.lists(SHARDS | PATHS | PLAIN, min_size=1, max_size=5, unique=True))
def test_splits_match_the_datasets_library(files: list[str]) -> None:
    """Compare with the library's own search for data files, in a real folder."""
    import tempfile

    from datasets.data_files import DataFilesDict, get_data_patterns

    files = sorted(file for file in files if not any(p.startswith((".", "__")) for p in file.split("/")))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(os.path.realpath(place)) / "d"
        made = []
        for file in files:
            path = folder / file
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("{}")
            except OSError:  # a file where a folder is needed
                continue
            made.append(file)
        if not made:
            return
        patterns = get_data_patterns(str(folder))
        theirs = DataFilesDict.from_patterns(patterns, base_path=str(folder))
        expected = {split: {os.path.relpath(file, folder) for file in theirs[split]} for split in theirs}
    assert {split: set(members) for split, members in split_files(made).items()} == expected


def test_splits_of_saved_datasets_are_read_by_name(tmp_path: Path) -> None:
    import datasets

    saved = datasets.Dataset.from_list([{"x": "1"}, {"x": "2"}])
    saved.save_to_disk(str(tmp_path / "one"))
    assert read_all(tmp_path / "one") == (["1", "2"], [])
    assert "a single saved dataset has no configs or splits\n  fix: write" in error_of(f"{tmp_path / 'one'}:train")
    datasets.DatasetDict({"train_prefs": saved, "test_prefs": saved.select([1])}).save_to_disk(str(tmp_path / "two"))
    assert "the dataset has no split 'train'; it has train_prefs, test_prefs" in error_of(tmp_path / "two")
    assert f"fix: write {tmp_path / 'two'}:train_prefs" in error_of(f"{tmp_path / 'two'}:trian")
    assert read_all(f"{tmp_path / 'two'}:test_prefs") == (["2"], [])
    files, notes = read_all(f"{tmp_path / 'two'}:train_prefs")
    assert files == ["1", "2"]
    assert "also available: test_prefs" in notes[0]
    with pytest.raises(DataError, match=r"the subfolders are saved datasets: one, two"):
        list(read(str(tmp_path)))


def test_a_damaged_saved_dataset_is_an_error(tmp_path: Path) -> None:
    import datasets

    saved = datasets.Dataset.from_list([{"x": "1"}])
    datasets.DatasetDict({"train": saved}).save_to_disk(str(tmp_path / "d"))
    next((tmp_path / "d" / "train").glob("*.arrow")).unlink()
    assert "cannot load dataset" in error_of(tmp_path / "d")
    (tmp_path / "d" / "train" / "state.json").unlink()
    assert "is not a saved dataset: state.json or dataset_info.json is missing" in error_of(tmp_path / "d")
    for text in ("{", "{}", '{"splits": [1]}'):
        (tmp_path / "d" / "dataset_dict.json").write_text(text)
        assert "dataset_dict.json" in error_of(tmp_path / "d")


def test_other_files_in_the_folder_of_a_saved_dataset_are_reported(tmp_path: Path) -> None:
    import datasets

    saved = datasets.Dataset.from_list([{"x": "1"}])
    saved.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": saved}).save_to_disk(str(tmp_path / "two"))
    assert read_all(tmp_path / "one")[1] == read_all(tmp_path / "two")[1] == []
    for folder in ("one", "two", "two/train"):
        fill(tmp_path / folder, "a.jsonl", "cache-1.arrow", "b.txt")
    what = "not read because they are not part of the saved dataset"
    assert read_all(tmp_path / "one") == (["1"], [f"{what}: a.jsonl"])
    assert read_all(tmp_path / "two") == (["1"], [f"{what}: a.jsonl"] * 2)


TWO = """configs:
- config_name: helpful
  data_files:
  - {split: train, path: helpful/train.jsonl}
  - {split: test, path: [helpful/test*]}
- config_name: harmless
  data_files: "harmless/*.jsonl"
"""


def test_configs_come_from_the_dataset_card(tmp_path: Path) -> None:
    fill(tmp_path, "helpful/train.jsonl", "helpful/test_1.csv", "harmless/a.jsonl", "raw/b.jsonl")
    card(tmp_path, TWO)
    message = error_of(tmp_path)
    assert "the dataset has the configs helpful, harmless" in message
    assert f"write {tmp_path}:CONFIG or {tmp_path}:CONFIG:SPLIT, such as {tmp_path}:helpful:train" in message
    files, notes = read_all(f"{tmp_path}:helpful")
    assert files == ["helpful/train.jsonl"]
    assert notes == [
        f"only split 'train' is used; also available: test (write {tmp_path}:helpful:test)",
        "not read because they belong to no split: raw/b.jsonl",
    ]
    assert read_all(f"{tmp_path}:helpful:test")[0] == ["helpful/test_1.csv"]
    assert read_all(f"{tmp_path}:harmless:train")[0] == ["harmless/a.jsonl"]
    assert "config 'harmless' has no split 'test'; it has train" in error_of(f"{tmp_path}:harmless:test")
    assert f"such as {tmp_path}:helpful:train" in error_of(f"{tmp_path}:helpfull")
    assert f"such as {tmp_path}:harmless:train" in error_of(f"{tmp_path}:harmles:train")


def test_the_default_config_is_read_and_the_others_are_reported(tmp_path: Path) -> None:
    fill(tmp_path, "a/train.jsonl", "b/train.jsonl", "b/test.jsonl")
    card(tmp_path, "configs:\n- {config_name: a, data_dir: a}\n- {config_name: b, data_dir: b, default: true}")
    files, notes = read_all(tmp_path)
    assert files == ["b/train.jsonl"]
    assert f"only config 'b' is used; also available: a (write {tmp_path}:a)" in notes
    assert read_all(f"{tmp_path}:test")[0] == ["b/test.jsonl"]
    assert read_all(f"{tmp_path}:a")[0] == ["a/train.jsonl"]


def test_configs_match_the_datasets_library(tmp_path: Path) -> None:
    import datasets

    fill(tmp_path, "helpful/train.jsonl", "helpful/test_1.jsonl", "harmless/a.jsonl", "harmless/sub/b.jsonl")
    card(tmp_path, TWO)
    for config in datasets.get_dataset_config_names(str(tmp_path)):
        for split in datasets.get_dataset_split_names(str(tmp_path), config):
            theirs = datasets.load_dataset(str(tmp_path), config, split=split, cache_dir=str(tmp_path / ".cache"))
            assert read_all(f"{tmp_path}:{config}:{split}")[0] == theirs["x"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("configs: 3", "`configs` must be a list of named configs"),
        ("configs: [{data_files: a.jsonl}]", "`configs` must be a list of named configs"),
        ("configs: [{config_name: a, data_files: 3}]", "`data_files` cannot be used: 3"),
        ("configs: [{config_name: a, data_files: [{split: train}]}]", "`data_files` cannot be used"),
        ("configs: [{config_name: a, data_files: ../a.jsonl}]", "'../a.jsonl' is outside the folder"),
        ("configs: [{config_name: a, data_files: 'https://x.org/a.jsonl'}]", "is outside the folder"),
        ("configs: [{config_name: a, data_files: b.jsonl}]", "'b.jsonl' does not exist"),
        ("configs: [{config_name: a, data_files: 'b*'}]", "split 'train' has no files"),
        ("a: [", "README.md:2: the YAML header cannot be read"),
    ],
)
def test_an_invalid_dataset_card_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    fill(tmp_path, "a.jsonl")
    card(tmp_path, text)
    assert message in error_of(tmp_path)


def test_a_dataset_card_without_configs_has_no_effect(tmp_path: Path) -> None:
    fill(tmp_path, "a.jsonl")
    for text in ("license: mit", "", "- 1"):
        card(tmp_path, text)
        assert read_all(tmp_path) == (["a.jsonl"], [])


def test_a_name_that_is_both_a_config_and_a_split_is_an_error(tmp_path: Path) -> None:
    fill(tmp_path, "a/train.jsonl", "a/test.jsonl", "b/train.jsonl")
    card(tmp_path, "configs:\n- {config_name: default, data_dir: a}\n- {config_name: test, data_dir: b}")
    message = error_of(f"{tmp_path}:test")
    assert "'test' is both a config and a split" in message
    assert f"write {tmp_path}:test:train or {tmp_path}:default:test" in message


def test_a_split_of_a_file_is_an_error(tmp_path: Path) -> None:
    fill(tmp_path, "a.jsonl")
    assert f"a file has no configs or splits\n  fix: write {tmp_path / 'a.jsonl'}" in error_of(
        f"{tmp_path / 'a.jsonl'}:train"
    )


def test_notes_are_part_of_the_account(tmp_path: Path) -> None:
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text(json.dumps(PAIR) + "\n")
    _, account = read_groups(str(tmp_path))
    assert account.kept == 1
    assert f"  note    only split 'train' is used; also available: test (write {tmp_path}:test)" in account.lines()


def test_the_error_for_a_subfolder_says_how_to_name_it(tmp_path: Path) -> None:
    for part in ("helpful", "harmless"):
        (tmp_path / "hh" / part).mkdir(parents=True)
        (tmp_path / "hh" / part / "train.jsonl").write_text('{"text": "x"}\n')
    for part in ("helpful", "helpful:train"):
        with pytest.raises(DataError) as caught:
            list(read(f"{tmp_path}/hh:{part}"))
        name = caught.value.fix.removeprefix("to read the subfolder, write ")
        assert name == f"{tmp_path}/hh/{part}"
        assert len(list(read(name))) == 1
