"""PPO in the demo: a reward model on the demo's pairs, and one policy per KL coefficient."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import write_jsonl

from preftune.demo import rlhf
from preftune.demo.pipeline import sampled_tokens
from preftune.measures.frontier import Point
from preftune.train.display import Display


def test_every_kl_coefficient_gets_a_policy_and_a_point(tmp_path: Path, model_folder: Path) -> None:
    judgements = [{"better": 0, "worse": 1, "probability": 0.8}]
    rows = [{"prompt": f"{i} the cat", "responses": [" sat", " ran"], "judgements": judgements} for i in range(12)]
    write_jsonl(tmp_path / "preferences.jsonl", rows)
    folders, printed = [], []

    def measure(name: str, folder: Path) -> Point:
        folders.append(folder)
        return Point(name, 0.1, 0.2)

    scale = rlhf.PPOScale((0.3, 0.1), 1)
    compared = rlhf.points(tmp_path, model_folder, scale, measure, Display(quiet=True), printed.append)
    assert [p.name for p in compared.points] == ["PPO, KL 0.3", "PPO, KL 0.1"]
    assert folders == [tmp_path / f"ppo-kl-{c}" / "final" for c in ("0.3", "0.1")]
    assert all((folder / "model.safetensors").is_file() for folder in folders)
    assert (tmp_path / "reward-model" / "final" / "config.json").is_file()
    assert len(printed) == 2
    assert compared.folder == tmp_path / "ppo-kl-0.1"
    assert compared.reward_model_s > 0
    assert compared.ppo_s > 0
    assert sampled_tokens(compared.folder) > 0
