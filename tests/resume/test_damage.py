"""Whatever a run reads again is verified: damage is named, an intact state is used, and nothing is deleted."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import PAIRS, write_jsonl
from tests.resume.runs import config, metrics, quiet, stop_after, weights

from preftune.config.schema import TrainConfig
from preftune.errors import ModelError, RunError, Stopped
from preftune.files import read_sealed, sealed
from preftune.lifecycle.open_policy import open_policy
from preftune.methods import dpo
from preftune.model.load import locate
from preftune.train import checkpoint
from preftune.train.display import Display
from preftune.train.run import Run


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """A folder with data, a finished run, and the same run stopped after step 8 of 12, with checkpoints of 6 and 8."""
    folder = tmp_path_factory.mktemp("damage")
    data = write_jsonl(folder / "pairs.jsonl", PAIRS)
    dpo.run(config(data, model_folder, folder / "whole"), display=quiet())
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 8)
        with pytest.raises(Stopped):
            dpo.run(config(data, model_folder, folder / "stopped"), display=quiet())
    return folder


@pytest.fixture
def stopped(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original / "stopped", tmp_path / "stopped"))


@pytest.fixture
def finished(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original / "whole", tmp_path / "finished"))


def same(one: Path, two: Path) -> bool:
    a, b = weights(one), weights(two)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def newest(run: Path) -> tuple[str, list[str]]:
    path, _, problems = checkpoint.newest(run / "checkpoints", Run.manifest(run))
    return path.name if path else "", problems


def flip(path: Path, at: int = -5) -> None:
    blob = bytearray(path.read_bytes())
    blob[at] ^= 4
    path.write_bytes(blob)


def edit(**changes: Any) -> Callable[[Path], None]:
    """Edit state.json by hand."""

    def change(folder: Path) -> None:
        state = json.loads((folder / "state.json").read_text())
        (folder / "state.json").write_text(json.dumps({**state, **changes}))

    return change


def reseal(**changes: Any) -> Callable[[Path], None]:
    """Edit state.json and its hash."""

    def change(folder: Path) -> None:
        (folder / "state.json").write_text(json.dumps(sealed({**read_sealed(folder / "state.json"), **changes})))

    return change


def unseal(folder: Path) -> None:
    (folder / "state.json").write_text(json.dumps({**read_sealed(folder / "state.json"), "step": 8}))


def older_state(folder: Path) -> None:
    shutil.copy(folder.with_name("step-00000006") / "state.json", folder / "state.json")


def older_copy(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("step-00000006"), folder)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (edit(step=7), "does not match its hash"),
        (edit(tokens=1), "does not match its hash"),
        (edit(tally={"loss": [9.0, 1.0]}), "does not match its hash"),
        (edit(files={}), "does not match its hash"),
        (edit(evaluated=False), "does not match its hash"),
        (reseal(tokens=1), "not the one that the run has written"),
        (unseal, "not the one that the run has written"),
        (older_state, "not the one that the run has written"),
        (older_copy, "not the one that the run has written"),
        (lambda folder: (folder / "state.json").write_text(""), "Expecting value"),
        (lambda folder: (folder / "state.json").write_bytes(b'{"step": "\xff"}'), "utf-8"),
        (lambda folder: (folder / "state.json").write_text("[]"), "no attribute"),
        (lambda folder: (folder / "optimizer.safetensors").unlink(), "No such file"),
        (lambda folder: (folder / "weights.safetensors").write_bytes(b""), "does not match weights.safetensors"),
        (shutil.rmtree, "missing"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_earlier_one_is_used(
    stopped: Path, damage: Callable[[Path], None], problem: str
) -> None:
    damage(stopped / "checkpoints" / "step-00000008")
    name, [description] = newest(stopped)
    assert name == "step-00000006"
    assert description.startswith("step-00000008: ")
    assert problem in description


def test_a_checkpoint_of_another_run_is_not_used(stopped: Path, finished: Path) -> None:
    """Also if the manifest does not list it, as after a kill between the two."""
    shutil.copytree(finished / "checkpoints" / "step-00000012", stopped / "checkpoints" / "step-00000012")
    assert newest(stopped) == ("step-00000008", ["step-00000012: it belongs to another run"])


def test_a_checkpoint_that_the_manifest_does_not_list_yet_is_used(stopped: Path) -> None:
    manifest = Run.manifest(stopped)
    del manifest["checkpoints"]["step-00000008"]
    path, _, problems = checkpoint.newest(stopped / "checkpoints", manifest)
    assert (path and path.name, problems) == ("step-00000008", [])


def test_every_flipped_bit_of_a_checkpoint_is_noticed(stopped: Path) -> None:
    """Random bits of all files of the newest checkpoint."""
    draw, folder = random.Random(0), stopped / "checkpoints" / "step-00000008"
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        for _ in range(30):
            flipped = bytearray(data)
            flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            path.write_bytes(flipped)
            try:
                unchanged = path.name == "state.json" and json.loads(flipped) == json.loads(data)
            except ValueError:
                unchanged = False
            assert (newest(stopped)[0] == "step-00000008") == unchanged, path
        path.write_bytes(data)
    assert newest(stopped) == ("step-00000008", [])


def resumed(original: Path, model: Path, run: Path, display: Display | None = None) -> Path:
    return dpo.run(config(original / "pairs.jsonl", model, run), display=display or quiet())


@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_damaged_manifest_is_replaced_by_its_copy(
    original: Path, model_folder: Path, stopped: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stopped / "manifest.json"
    before = Run.manifest(stopped)
    if damage == "flipped":
        flip(path, 40)
    else:
        path.unlink()
    assert Run.manifest(stopped) == before
    assert same(original / "whole" / "final", resumed(original, model_folder, stopped, Display()))
    assert "Its copy .manifest.json is used" in capsys.readouterr().err
    assert (stopped / "manifest.json.damaged-1").exists() == (damage == "flipped")


def test_a_manifest_that_is_damaged_like_its_copy_is_an_error(
    original: Path, model_folder: Path, stopped: Path
) -> None:
    for name in ("manifest.json", ".manifest.json"):
        flip(stopped / name, 40)
    with pytest.raises(RunError, match=r"the file is damaged") as error:
        resumed(original, model_folder, stopped)
    assert error.value.exit_code == 5


def test_damaged_metrics_are_reported_and_the_weights_are_the_same(
    original: Path, model_folder: Path, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (stopped / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    lines[2] = b"\xff\xfe" + lines[2][2:]
    (stopped / "metrics.jsonl").write_bytes(b"".join(lines))
    assert same(original / "whole" / "final", resumed(original, model_folder, stopped, Display()))
    assert "1 lines cannot be read" in capsys.readouterr().err
    assert (stopped / "metrics.jsonl.damaged-1").read_bytes() == b"".join(lines)
    whole = metrics(original / "whole")
    assert metrics(stopped) == [*whole[:2], *whole[3:]]


@pytest.mark.parametrize("damage", ["weights", "config", "tokenizer", "missing", "empty"])
def test_a_damaged_final_model_is_written_again(
    original: Path, model_folder: Path, finished: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    final = finished / "final"
    names = {"weights": "model.safetensors", "config": "config.json", "tokenizer": "tokenizer.json"}
    if damage == "empty":
        shutil.rmtree(final)
        final.mkdir()
    elif damage == "missing":
        (final / "tokenizer_config.json").unlink()
    else:
        flip(final / names[damage], -200)
        with pytest.raises(ModelError, match="changed or damaged"):
            locate(str(finished))
        shutil.copytree(final, finished / "mine")
        locate(str(finished / "mine"))
    resumed(original, model_folder, finished, Display())
    assert "is written again from step-00000012" in capsys.readouterr().err
    hashes = Run.manifest(original / "whole")["final"]
    assert Run.manifest(finished)["final"] == hashes
    assert same(original / "whole" / "final", final)
    assert (finished / "final.damaged-1").is_dir()
    locate(str(finished))


def test_a_damaged_final_model_without_a_checkpoint_is_an_error(
    original: Path, model_folder: Path, finished: Path
) -> None:
    shutil.rmtree(finished / "checkpoints")
    flip(finished / "final" / "model.safetensors")
    with pytest.raises(RunError, match=r"the final model is damaged: final/model.safetensors has changed"):
        resumed(original, model_folder, finished)
    assert (finished / "final").is_dir()


def test_the_model_card_may_change(original: Path, model_folder: Path, finished: Path) -> None:
    (finished / "final" / "README.md").write_text("mine")
    locate(str(finished))
    assert resumed(original, model_folder, finished) == finished / "final"
    assert (finished / "final" / "README.md").read_text() == "mine"


def test_a_damaged_checkpoint_is_not_opened_as_a_model(finished: Path) -> None:
    folder = finished / "checkpoints" / "step-00000012"
    flip(folder / "weights.safetensors")
    with pytest.raises(RunError, match="the checkpoint is damaged"):
        open_policy(str(folder), "--policy", torch.float32, torch.device("cpu"))


def test_a_numeric_stop_keeps_the_last_state(
    original: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from preftune.errors import NumericError
    from preftune.train import loop

    real, calls = loop.clip, list[int]()

    def clip(gradients: list[torch.Tensor], max_norm: float) -> torch.Tensor:
        calls.append(1)
        return torch.tensor(float("nan")) if len(calls) == 6 else real(gradients, max_norm)

    settings = config(
        original / "pairs.jsonl", model_folder, tmp_path / "run", train=TrainConfig(epochs=4, eval_every=3)
    )
    with monkeypatch.context() as patch:
        patch.setattr(loop, "clip", clip)
        with pytest.raises(NumericError):
            dpo.run(settings, display=quiet())
    assert newest(tmp_path / "run") == ("step-00000005", [])
    assert same(original / "whole" / "final", dpo.run(settings, display=quiet()))
