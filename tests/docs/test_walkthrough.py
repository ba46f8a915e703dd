"""docs/develop/walkthrough.md describes the step that really runs: a DPO run is traced and compared with the page."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from tests.conftest import PAIRS, make_model, make_tokenizer, write_jsonl

import preftune
from preftune.config.schema import BatchConfig, DataConfig, DPOConfig, ModelConfig, OptimConfig, TrainConfig
from preftune.methods import dpo
from preftune.train import loop
from preftune.train.display import Display

PAGE = Path(__file__).resolve().parents[2] / "docs" / "develop" / "walkthrough.md"
SRC = Path(preftune.__file__).parent


def section(heading: str) -> str:
    """The text below a heading of the page, up to the next one."""
    return PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def links(text: str) -> list[tuple[str, str]]:
    """(text of the link, file below src/preftune) of every link to the code."""
    return re.findall(r"\[`?([^`\]]+)`?\]\(\.\./\.\./src/preftune/([\w/]+\.py)[^)]*\)", text)


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, str]]:
    """(file, function) of all code of preftune that the second update of a DPO run calls."""
    calls: set[tuple[str, str]] = set()

    def record(frame: FrameType, event: str, _argument: Any) -> None:
        file = Path(frame.f_code.co_filename)
        if event == "call" and file.is_relative_to(SRC):
            calls.add((file.relative_to(SRC).as_posix(), frame.f_code.co_name))

    updates = 0

    def update(*arguments: Any) -> Any:
        nonlocal updates
        updates += 1
        if updates != 2:  # the first step has no cached reference to read
            return original(*arguments)
        sys.setprofile(record)
        try:
            return original(*arguments)
        finally:
            sys.setprofile(None)

    folder = tmp_path_factory.mktemp("walkthrough")
    config = DPOConfig(
        model=ModelConfig(path="toy", dtype="fp32"),
        data=DataConfig(train=str(write_jsonl(folder / "pairs.jsonl", PAIRS))),
        optim=OptimConfig(lr=1e-3),
        batch=BatchConfig(pairs=2),
        train=TrainConfig(max_steps=2),
        out=str(folder / "run"),
        monitor=None,
    )
    original = loop.update
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFTUNE_CACHE", str(folder / "cache"))
        patch.setattr(loop, "update", update)
        dpo.run(config, model=make_model(), tokenizer=make_tokenizer(), display=Display(quiet=True))
    assert updates == 2
    return calls


def test_the_page_lists_exactly_the_files_of_a_step(traced: set[tuple[str, str]]) -> None:
    text = section("The whole path")
    files = sorted({file for _, file in links(text)})
    assert files == sorted({file for file, _ in traced})
    [count] = re.findall(r"runs code in (\d+) files", text)
    assert int(count) == len(files)


def test_a_step_calls_the_functions_of_the_idea(traced: set[tuple[str, str]]) -> None:
    rows = [line for line in section("The idea in six functions").splitlines() if line.startswith("|")]
    functions = links("\n".join(rows))
    assert len(functions) == 6
    outside = [(file, name) for name, file in functions if (file, name.rpartition(".")[2]) not in traced]
    assert outside == [("methods/dpo.py", "run")]  # which starts the loop
