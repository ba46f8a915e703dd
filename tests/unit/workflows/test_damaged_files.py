"""Files that preftune sample and iterate read again are verified; damaged ones are reported and never deleted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_jsonl

from preftune.config.sampling import IterateConfig, PromptConfig, SampleConfig
from preftune.config.schema import BatchConfig, DataConfig, ModelConfig, OptimConfig
from preftune.errors import RunError
from preftune.files import digest
from preftune.locks import lock_folder
from preftune.model.generate import Sampling
from preftune.train.display import Display
from preftune.train.manifest import write
from preftune.train.run import Run
from preftune.workflows import iterate
from preftune.workflows import sample as samples
from preftune.workflows.sample import SampleOptions

QUIET = Display(quiet=True)
PROMPTS = [{"prompt": text} for text in ("the cat", "a dog", "once upon")]


def change_a_letter(path: Path) -> None:
    text = path.read_text()
    path.write_text(text.replace("the cat", "the bat", 1))
    assert path.read_text() != text


@pytest.fixture
def options(tmp_path: Path, model_folder: Path) -> SampleOptions:
    data = DataConfig(train=str(write_jsonl(tmp_path / "prompts.jsonl", PROMPTS)))
    return SampleOptions(str(model_folder), data, Sampling(2, 4))


def test_changed_samples_are_an_error(tmp_path: Path, options: SampleOptions) -> None:
    out = samples.run(options, tmp_path / "s.jsonl", QUIET)
    whole = out.read_bytes()
    meta = tmp_path / "s.jsonl.meta.json"
    change_a_letter(out)
    changed = out.read_bytes()
    with pytest.raises(RunError, match="changed or damaged after they had been written") as error:
        samples.run(options, out, QUIET)
    assert (error.value.exit_code, out.read_bytes()) == (5, changed)
    out.write_bytes(whole)
    samples.run(options, out, QUIET)
    content = json.loads(meta.read_text())
    meta.write_text(json.dumps({**content, "content": digest(tmp_path / "prompts.jsonl")}))
    with pytest.raises(RunError, match=r"s\.jsonl\.meta\.json: the file is damaged"):
        samples.run(options, out, QUIET)


def test_a_changed_line_of_an_unfinished_command_is_an_error(
    tmp_path: Path, options: SampleOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(samples, "_write", stop)
        with pytest.raises(KeyboardInterrupt):
            samples.run(options, tmp_path / "s.jsonl", QUIET)
    part = tmp_path / "s.jsonl.part"
    lines = part.read_text().splitlines(keepends=True)
    tokens = json.loads(lines[2])["tokens"]
    lines[2] = lines[2].replace(f'"tokens": {tokens}', f'"tokens": {tokens + 1}')
    part.write_text("".join(lines))
    with pytest.raises(RunError, match=r"s\.jsonl\.part:3: .*does not match its checksum"):
        samples.run(options, tmp_path / "s.jsonl", QUIET)
    part.write_text("".join([*lines[:2], *lines[3:]]))
    assert samples.run(options, tmp_path / "s.jsonl", QUIET).is_file()
    assert not list(tmp_path.glob("*.lock*"))


def test_a_file_of_samples_has_one_writer(
    tmp_path: Path, options: SampleOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = lock_folder(tmp_path / "other")
    content = json.loads(held.path.read_text())
    (tmp_path / "s.jsonl.lock").write_text(json.dumps({**content, "host": "elsewhere"}))
    with pytest.raises(RunError, match=r"another preftune command is using .*s\.jsonl"):
        samples.run(options, tmp_path / "s.jsonl", QUIET)
    held.release()


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> IterateConfig:
    folder = tmp_path_factory.mktemp("rounds")
    config = IterateConfig(
        model=ModelConfig(path=str(model_folder), dtype="fp32"),
        data=PromptConfig(train=str(write_jsonl(folder / "prompts.jsonl", PROMPTS))),
        reward="length",
        rounds=1,
        sample=SampleConfig(n=4, max_new_tokens=4, evaluation=2),
        optim=OptimConfig(lr=3e-3, warmup=0),
        batch=BatchConfig(pairs=30),
        out=str(folder / "run"),
    )
    iterate.run(config, display=QUIET)
    return config


@pytest.mark.parametrize("name", ["samples.jsonl", "prefs.jsonl", "evaluation.json"])
def test_a_damaged_part_of_a_round_is_made_again(
    rounds: IterateConfig, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(rounds.out)
    whole = shutil.copytree(out, tmp_path / "whole")
    manifest = Run.manifest(out)
    write(out, {**manifest, "finished": False})
    path = out / "round-01" / name
    before = path.read_bytes()
    damaged = before.replace(b"the", b"two").replace(b": 0.", b": 7.")
    assert damaged != before
    path.write_bytes(damaged)
    iterate.run(rounds, display=Display())
    printed = " ".join(capsys.readouterr().err.split())
    assert f"{name}: the file has changed since it was written. It is made again; kept as {name}.damaged-1" in printed
    assert path.read_bytes() == before
    kept = path.with_name(f"{name}.damaged-1")
    assert kept.read_bytes() == damaged
    kept.unlink()
    assert Run.manifest(out)["final"] == manifest["final"]
    assert (out / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert not (out / "round-01" / "dpo" / "checkpoints").exists()


def test_a_damaged_published_model_is_copied_again(rounds: IterateConfig, capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(rounds.out)
    hashes = Run.manifest(out)["final"]
    (out / "final" / "config.json").write_text("{}")
    iterate.run(rounds, display=Display())
    assert "the final model is damaged (final/config.json has changed)" in " ".join(capsys.readouterr().err.split())
    assert Run.manifest(out)["final"] == hashes
    assert iterate.intact(out, QUIET)
    shutil.rmtree(out / "final.damaged-1")
