"""metrics.jsonl is cut to the lines of the checkpoint, damage is reported, and a full disk loses no line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from preftune.train.metrics_file import NAME, MetricsFile, valid_lines


def line(step: int, split: str = "train", **metrics: float) -> dict[str, Any]:
    return {"step": step, "split": split, "loss": 1 / (step + 1), **metrics}


@pytest.fixture
def messages() -> list[str]:
    return []


@pytest.fixture
def file(tmp_path: Path, messages: list[str]) -> MetricsFile:
    file = MetricsFile(tmp_path, messages.append)
    file.add(line(0, "eval"))
    for step in range(1, 4):
        file.add(line(step))
    return file


def test_a_resumed_run_has_the_bytes_of_its_checkpoint(file: MetricsFile, messages: list[str]) -> None:
    before, position = file.path.read_bytes(), json.loads(json.dumps(file.position()))
    file.add(line(3, "eval"))
    file.add(line(4))
    with file.path.open("ab") as raw:
        raw.write(b'{"step": 5, "spl')
    MetricsFile(file.path.parent, messages.append).rewind(position, 3, evaluation_due=True)
    assert file.path.read_bytes() == before
    assert messages == []


@pytest.mark.parametrize("damage", ["digit", "missing line", "not UTF-8", "not JSON", "another object", "file"])
def test_damage_is_reported_and_the_file_is_kept(file: MetricsFile, messages: list[str], damage: str) -> None:
    position = file.position()
    lines = file.path.read_bytes().splitlines(keepends=True)
    changed = {
        "digit": [lines[0].replace(b"1.0", b"7.0"), *lines[1:]],
        "missing line": lines[1:],
        "not UTF-8": [lines[0], lines[1].replace(b"loss", b"lo\xff\xfe"), *lines[2:]],
        "not JSON": [lines[0], b"\0" + lines[1][1:], *lines[2:]],
        "another object": [b'[{"step": 3}]\n', *lines],
        "file": [],
    }[damage]
    file.path.write_bytes(b"".join(changed))
    if damage == "file":
        file.path.unlink()
    file.rewind(position, 3, evaluation_due=False)
    assert len(messages) == 1
    assert "changed or damaged" in messages[0]
    kept = file.path.with_name(f"{NAME}.damaged-1")
    assert kept.exists() == (damage != "file")
    if damage != "file":
        assert kept.read_bytes() == b"".join(changed)
    expected = {"digit": 4, "missing line": 3, "not UTF-8": 3, "not JSON": 3, "another object": 4, "file": 0}[damage]
    assert len(file.lines()) == expected
    assert valid_lines(file.path.read_bytes() if file.path.exists() else b"")[1] == []


def test_every_flipped_bit_before_the_checkpoint_is_noticed(file: MetricsFile, messages: list[str]) -> None:
    position, data = file.position(), file.path.read_bytes()
    for at in range(0, len(data), 3):
        flipped = bytearray(data)
        flipped[at] ^= 1 << (at % 8)
        file.path.write_bytes(flipped)
        messages.clear()
        file.rewind(position, 3, evaluation_due=False)
        assert messages, at


def test_lines_that_the_disk_does_not_take_wait(
    file: MetricsFile, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of a line that was written is removed."""
    before = file.path.read_bytes()
    real = Path.open

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def fileno(self) -> int:
            return int(self.file.fileno())

        def write(self, data: bytes) -> int:
            return int(self.file.write(data[:7]))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda self, *a, **k: Full(real(self, *a, **k)))
        file.add(line(4))
        file.add(line(5))
    assert file.path.read_bytes() == before
    assert len(messages) == 1
    assert "kept in memory" in messages[0]
    assert [entry["step"] for entry in file.lines()] == [0, 1, 2, 3, 4, 5]
    position = file.position()
    assert len(position["waiting"]) == 2
    other = MetricsFile(file.path.parent, messages.append)
    other.rewind(position, 5, evaluation_due=False)
    file.waiting.clear()
    file.add(line(6))
    assert [entry["step"] for entry in other.lines()] == [0, 1, 2, 3, 4, 5, 6]
    assert len(messages) == 1


def test_a_checkpoint_of_an_earlier_version_has_no_position(file: MetricsFile, messages: list[str]) -> None:
    file.add(line(3, "eval"))
    file.add(line(4))
    with file.path.open("a") as raw:
        raw.write('{"step": 5')
    file.rewind(None, 3, evaluation_due=True)
    assert [(entry["step"], entry["split"]) for entry in file.lines()][-2:] == [(2, "train"), (3, "train")]
    file.rewind(None, 0, evaluation_due=False)
    assert file.lines() == []
    assert messages == []
    assert os.path.getsize(file.path) == 0
