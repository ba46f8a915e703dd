"""Hub datasets: the config and split that a name refers to, and errors for other names. The Hub itself is mocked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from preftune.data.read_groups import read_groups
from preftune.errors import DataError
from preftune.formats.names import CANONICAL
from preftune.formats.parsers import Reading
from preftune.sources import hub
from preftune.sources.hub import hub_source, hub_stream, is_hub_id
from preftune.sources.known import KNOWN, columns_of
from preftune.sources.parts import parts_of
from preftune.sources.read import fingerprint, read

HUB = {
    "org/one": {"default": ["train", "test"]},
    "org/splits": {"default": ["train_prefs", "test_prefs", "train_sft"]},
    "org/configs": {"helpful": ["train", "test"], "harmless": ["train"]},
    "org/main": {"main": ["train"], "extra": ["train"]},
    "HuggingFaceH4/ultrafeedback_binarized": {"default": ["train_sft", "train_prefs", "test_prefs"]},
    "openai/summarize_from_feedback": {"axis": ["test"], "comparisons": ["train", "validation"]},
    "allenai/reward-bench": {"default": ["raw", "other"]},
    "databricks/databricks-dolly-15k": {"default": ["train"]},
}
DEFAULTS = {"org/one": "default", "org/splits": "default", "org/configs": None, "org/main": "main"}
DEFAULTS |= dict.fromkeys(HUB.keys() - DEFAULTS, None) | {"HuggingFaceH4/ultrafeedback_binarized": "default"}


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    made: list[Any] = []

    def config_of(name: str, config: str | None) -> str:
        return config or DEFAULTS[name] or next(iter(HUB[name]))

    def load(name: str, config: str | None, split: str) -> datasets.Dataset:
        made.append((name, config, split))
        assert split in HUB[name][config_of(name, config)]
        loaded = datasets.Dataset.from_list([{"x": f"{config_of(name, config)} {split}"}])
        loaded._fingerprint = f"{name} {config_of(name, config)} {split}"
        return loaded

    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: list(HUB[name]))
    monkeypatch.setattr(datasets, "get_dataset_default_config_name", lambda name: DEFAULTS[name])
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, c=None: HUB[name][config_of(name, c)])
    monkeypatch.setattr(datasets, "load_dataset", load)
    hub_source.cache_clear()
    yield made
    hub_source.cache_clear()


def read_all(name: str) -> tuple[list[str], list[str]]:
    notes: list[str] = []
    return [row.value["x"] for row in read(name, lambda text, _: notes.append(text))], notes


@pytest.mark.parametrize(
    ("name", "value", "notes"),
    [
        ("org/one", "default train", ["only split 'train' is used; also available: test (write org/one:test)"]),
        ("org/one:test", "default test", []),
        (
            "org/splits:train_prefs",
            "default train_prefs",
            ["only split 'train_prefs' is used; also available: test_prefs, train_sft (write org/splits:test_prefs)"],
        ),
        ("org/configs:harmless", "harmless train", []),
        ("org/configs:helpful:test", "helpful test", []),
        ("org/main", "main train", ["only config 'main' is used; also available: extra (write org/main:extra)"]),
        ("org/main:extra", "extra train", []),
        (
            "HuggingFaceH4/ultrafeedback_binarized",
            "default train_prefs",
            [
                "only split 'train_prefs' is used; also available: train_sft, test_prefs "
                "(write HuggingFaceH4/ultrafeedback_binarized:train_sft)"
            ],
        ),
        ("HuggingFaceH4/ultrafeedback_binarized:test_prefs", "default test_prefs", []),
        (
            "openai/summarize_from_feedback",
            "comparisons train",
            [
                "only split 'train' is used; also available: validation "
                "(write openai/summarize_from_feedback:validation)",
                "only config 'comparisons' is used; also available: axis (write openai/summarize_from_feedback:axis)",
            ],
        ),
    ],
)
def test_a_name_refers_to_one_config_and_split(name: str, value: str, notes: list[str]) -> None:
    assert read_all(name) == ([value], notes)
    assert [row.origin for row in read(name)] == [f"{name}:1"]


@pytest.mark.parametrize(
    ("name", "what", "fix"),
    [
        ("org/splits", "no split 'train'; it has train_prefs, test_prefs, train_sft", "org/splits:train_prefs"),
        ("org/one:tset", "the dataset has no split 'tset'; it has train, test", "org/one:test"),
        ("org/configs", "the dataset has the configs helpful, harmless", "such as org/configs:helpful:train"),
        (
            "org/configs:test",
            "the dataset has no config 'test'; it has the configs helpful, harmless",
            "org/configs:CONFIG:SPLIT",
        ),
        ("org/configs:harmless:test", "config 'harmless' has no split 'test'", "org/configs:harmless:train"),
        ("org/one:x:test", "the dataset has no config 'x'; its only config is 'default'", "org/one:test"),
    ],
)
def test_the_error_for_a_wrong_name_lists_configs_or_splits(name: str, what: str, fix: str, calls: list[Any]) -> None:
    with pytest.raises(DataError) as error:
        list(read(name))
    assert what in str(error.value)
    assert fix in str(error.value)
    assert calls == []


def test_a_dataset_is_loaded_once_per_process(calls: list[Any]) -> None:
    read_all("org/one")
    read_all("org/one")
    fingerprint("org/one")
    assert calls == [("org/one", None, "train")]


def test_fingerprints_differ_between_configs_and_splits() -> None:
    names = ["org/one", "org/one:test", "org/configs:helpful", "org/configs:harmless"]
    assert len({fingerprint(name) for name in names}) == len(names)


def test_the_error_for_a_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str) -> list[str]:
        raise ConnectionError("offline\nand more")

    monkeypatch.setattr(datasets, "get_dataset_config_names", offline)
    with pytest.raises(DataError, match=r"org/gone: cannot load dataset: offline\n  fix: .*org/name:config:split"):
        list(read("org/gone"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("org/name", True),
        ("org/name:test", True),
        ("org/name:config-1.0:train", True),
        ("org/name:a:b:c", False),
        ("org/name:", False),
        ("name", False),
        ("data/a.jsonl", False),
        ("data/a.jsonl.xz", False),
        ("data/a.csv.zst:train", False),
    ],
)
def test_only_some_names_can_be_hub_ids(name: str, expected: bool) -> None:
    assert is_hub_id(name) is expected


def test_a_revision_selects_a_branch_tag_or_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    revisions: list[Any] = []

    def recording(result: Any) -> Any:
        def call(*_: Any, revision: str | None = None, **__: Any) -> Any:
            revisions.append(revision)
            return result

        return call

    monkeypatch.setattr(datasets, "get_dataset_config_names", recording(["default"]))
    monkeypatch.setattr(datasets, "get_dataset_default_config_name", recording("default"))
    monkeypatch.setattr(datasets, "get_dataset_split_names", recording(["train", "test"]))
    monkeypatch.setattr(datasets, "load_dataset", recording(datasets.Dataset.from_list([{"x": i} for i in range(10)])))
    assert [row.value["x"] for row in read("org/one:test@refs/pr/1[20%:40%]")] == [2, 3]
    assert set(revisions) == {"refs/pr/1"}
    assert is_hub_id("org/one:test@v1.0")
    assert not is_hub_id("org/one:te st@v1.0")


def test_a_stream_reads_the_shards_of_one_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = datasets.Dataset.from_list([{"x": i} for i in range(10)]).to_iterable_dataset(num_shards=3)
    options_of_load: dict[str, Any] = {}

    def load(name: str, config: str | None, **options: Any) -> Any:
        options_of_load.update(options)
        return rows

    monkeypatch.setattr(hub, "_commit", lambda target, revision: f"commit of {target} {revision}")
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name, revision: ["default"])
    monkeypatch.setattr(datasets, "get_dataset_default_config_name", lambda name, revision: "default")
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, config, revision: ["train"])
    monkeypatch.setattr(datasets, "load_dataset", load)
    hub_stream.cache_clear()
    parts = parts_of("org/one")
    assert options_of_load == {"split": "train", "streaming": True, "revision": "commit of org/one None"}
    assert len(parts.parts) == 3
    assert [row.value["x"] for row in parts.rows()] == list(range(10))
    assert next(row.origin for row in parts.parts[1]()) == "org/one:shard-1:1"
    assert [row.value["x"] for row in parts_of("org/one[4:6]").rows()] == [4, 5]
    hub_stream.cache_clear()


def test_a_well_known_data_set_without_its_usual_split_is_read_as_any_other() -> None:
    with pytest.raises(DataError, match="no split 'train'; it has raw, other"):
        read_all("allenai/reward-bench")


def test_columns_of_a_well_known_data_set_are_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"instruction": "Sum up.", "context": "A long text.", "response": "Short.", "category": "summary"}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list([row]))
    [group], account = read_groups("databricks/databricks-dolly-15k")
    assert group.prompt == "Sum up.\nA long text."
    assert any("data.columns={input: context}" in note for note in account.noted)
    assert read_groups("databricks/databricks-dolly-15k", Reading(ignore=("category",)))[0] == [group]
    with pytest.raises(DataError, match="'context'"):  # the user's setting replaces it
        read_groups("databricks/databricks-dolly-15k", Reading(columns={"prompt": "instruction"}))


def test_a_folder_of_a_well_known_data_set_is_a_part_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def load(name: str, data_dir: str, split: str) -> datasets.Dataset:
        made.append((name, data_dir, split))
        return datasets.Dataset.from_list([{"x": "y"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read_all("nvidia/HelpSteer2:preference") == (["y"], [])
    assert made == [("nvidia/HelpSteer2", "preference", "train")]


def test_a_local_folder_is_not_a_well_known_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert columns_of("PKU-Alignment/BeaverTails:330k_test") == {"label": "is_safe"}
    (tmp_path / "PKU-Alignment" / "BeaverTails").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert columns_of("PKU-Alignment/BeaverTails") == {}


def test_every_known_name_and_column_exists() -> None:
    for name, facts in KNOWN.items():
        assert is_hub_id(name)
        assert set(facts.columns) <= set(CANONICAL)
