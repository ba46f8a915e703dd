"""The demo's PPO: a reward model from the demo's judgements, a point for each KL coefficient, all in its folder."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import write_jsonl

from preftune.demo import rlhf
from preftune.measures.frontier import Point
from preftune.train.display import Display


def test_a_point_for_each_coefficient(tmp_path: Path, model_folder: Path) -> None:
    judgements = [{"better": 0, "worse": 1, "probability": 0.8}]
    rows = [{"prompt": f"{i} the cat", "responses": [" sat", " ran"], "judgements": judgements} for i in range(12)]
    write_jsonl(tmp_path / "preferences.jsonl", rows)
    folders, said = [], []

    def judged(name: str, folder: Path) -> Point:
        folders.append(folder)
        return Point(name, 0.1, 0.2)

    amount = rlhf.Amount((0.3, 0.1), 1)
    found = rlhf.points(tmp_path, model_folder, amount, judged, Display(quiet=True), said.append)
    assert [p.name for p in found] == ["PPO, KL 0.3", "PPO, KL 0.1"]
    assert folders == [tmp_path / f"ppo-kl-{c}" / "final" for c in ("0.3", "0.1")]
    assert all((folder / "model.safetensors").is_file() for folder in folders)
    assert (tmp_path / "reward-model" / "final" / "config.json").is_file()
    assert len(said) == 2
