"""The data cache: entries are complete or absent, damaged ones are not used, and builders do not disturb each other."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from preftune.data import cache


def build(text: str = "content", facts: str = "fact") -> cache.Entry:
    with cache.draft() as folder:
        folder.mkdir(parents=True)
        (folder / "a.arrow").write_text(text)
        (folder / "b.npy").write_text("b")
        return cache.publish(folder, "key", {"name": facts, "numbers": (1, 2)})


def drafts() -> list[Path]:
    return list(cache.data_folder().glob(f"{cache.DRAFT}*"))


def test_an_entry_is_found_with_its_facts() -> None:
    assert cache.find("key") == (None, "")
    entry = build()
    assert cache.find("key") == (entry, "")
    assert entry.facts == {"name": "fact", "numbers": [1, 2]}
    assert (entry.folder / "a.arrow").read_text() == "content"
    assert drafts() == []


def test_the_key_of_an_entry_is_a_hash_of_its_content() -> None:
    keys = []
    for text, facts in (("content", "fact"), ("other", "fact"), ("content", "other"), ("content", "fact")):
        entry = build(text, facts)
        keys.append(entry.key)
        cache._remove(entry.folder)
    assert len(set(keys)) == 3
    assert keys[0] == keys[3]


@pytest.mark.parametrize("damage", ["changed", "shorter", "missing", "meta", "facts", "no meta"])
def test_a_damaged_entry_is_reported_and_replaced(damage: str) -> None:
    folder = build().folder
    data, meta = folder / "a.arrow", folder / cache.META
    match damage:
        case "changed":
            data.write_text("cOntent")
        case "shorter":
            data.write_text("conten")
        case "missing":
            data.unlink()
        case "meta":
            meta.write_text(meta.read_text()[:-20])
        case "facts":
            meta.write_text(meta.read_text().replace('"fact"', '"fakt"'))
        case "no meta":
            meta.unlink()
    entry, message = cache.find("key")
    assert entry is None
    assert str(folder) in message
    assert cache.find("key") == (None, message)
    build()
    assert cache.find("key")[0] is not None
    assert drafts() == []


def test_a_failed_build_leaves_nothing() -> None:
    def fail() -> None:
        with cache.draft() as folder:
            folder.mkdir(parents=True)
            (folder / "a.arrow").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(cache.data_folder().iterdir()) == []


def test_builders_of_the_same_entry_do_not_disturb_each_other() -> None:
    barrier = Barrier(8)

    def one(number: int) -> tuple[str, str]:
        barrier.wait()
        entry = build()
        again, message = cache.find("key")
        assert again is not None
        assert not message
        return entry.key, (entry.folder / "a.arrow").read_text()

    with ThreadPoolExecutor(8) as pool:
        results = set(pool.map(one, range(8)))
    assert len(results) == 1
    assert drafts() == []


def test_a_builder_replaces_an_entry_that_was_damaged_meanwhile() -> None:
    with cache.draft() as folder:
        folder.mkdir(parents=True)
        (folder / "a.arrow").write_text("content")
        (build("earlier").folder / "a.arrow").write_text("damaged")
        entry = cache.publish(folder, "key", {})
    assert (entry.folder / "a.arrow").read_text() == "content"
    assert cache.find("key") == (entry, "")


def test_old_temporary_folders_are_removed() -> None:
    old, new = (cache.data_folder() / f"{cache.DRAFT}{name}" for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (0, time.time() - cache.OLD_S - 60))
    build()
    assert drafts() == [new]
