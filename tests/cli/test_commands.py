"""Every command end to end on small files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import PAIRS, write_jsonl
from transformers import AutoTokenizer

from preftune.chat.render import pieces_of
from preftune.cli.main import run


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("pairs.jsonl"), PAIRS)


def test_help_does_not_import_torch_or_transformers() -> None:
    code = (
        "import sys; from preftune.cli.main import run; run(['--help']); "
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"
    for name in ("demo", "sft", "dpo", "reward", "ppo", "score", "eval", "doctor", "data"):
        assert f"\n  {name}" in done.stdout


def test_importing_preftune_does_not_import_torch() -> None:
    code = "import sys, preftune; print(preftune.__version__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[1] == "False"


def test_python_m_preftune_runs_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "preftune", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("preftune ")


def test_every_public_name_can_be_imported() -> None:
    import preftune

    for name in preftune.__all__:
        assert getattr(preftune, name) is not None
    with pytest.raises(AttributeError):
        _ = preftune.nothing


def test_doctor_reports_versions_speed_and_cache(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "torch 2." in printed
    assert "GFLOP/s in fp32" in printed
    assert "reference cache:" in printed
    assert "data cache:" in printed


def test_dpo_then_sft_then_score(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("dpo.yaml").write_text(
        f"model: {{path: {model_folder}}}\ndata: {{train: pairs.jsonl, eval: 0.25}}\nout: dpo\n"
    )
    assert run(["dpo", "dpo.yaml", "batch.pairs=3", "optim.lr=1e-3"]) == 0
    printed = capsys.readouterr().err
    assert "8 rows read as 'preference', 8 kept" in printed
    assert "step 0: policy = reference on 6 responses" in printed
    assert "held out: loss 0.6931" in printed
    lines = [json.loads(line) for line in Path("dpo/metrics.jsonl").read_text().splitlines()]
    names = {
        "step", "split", "loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies",
        "logps/chosen", "logps/rejected", "grad_norm", "lr", "pairs_per_s", "tokens_per_s",
    }  # fmt: skip
    assert all(names <= set(line) for line in lines if line["split"] == "train")
    assert sorted(p.name for p in Path("dpo").iterdir()) == [
        ".manifest.json",
        "checkpoints",
        "config.yaml",
        "drawn_pairs",
        "final",
        "manifest.json",
        "metrics.jsonl",
        "report.html",
        "samples",
    ]

    Path("sft.yaml").write_text(f"model: {{path: {model_folder}}}\ndata: {{train: pairs.jsonl}}\nout: sft\n")
    assert run(["sft", "sft.yaml", "-q"]) == 0
    assert capsys.readouterr().err == ""

    arguments = ["--policy", "dpo/final", "--reference", str(model_folder), "--data", "pairs.jsonl", "--out", "s.jsonl"]
    assert run(["score", *arguments, "--beta", "0.1"]) == 0
    rows = [json.loads(line) for line in Path("s.jsonl").read_text().splitlines()]
    assert set(rows[0]) == {
        "index", "origin", "policy_chosen_logp", "policy_rejected_logp", "reference_chosen_logp",
        "reference_rejected_logp", "reward_chosen", "reward_rejected", "margin", "chosen_tokens", "rejected_tokens",
    }  # fmt: skip


def test_dry_run_trains_nothing(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("dpo.yaml").write_text(f"model: {{path: {model_folder}}}\ndata: {{train: pairs.jsonl}}\n")
    assert run(["dpo", "dpo.yaml", "--dry-run"]) == 0
    printed = capsys.readouterr().err
    assert "8 groups with 8 judgements" in printed
    assert "name: sigmoid" in printed
    assert "dry run: nothing was trained or written" in printed
    assert not Path("runs").exists()


def test_rerunning_a_finished_run_reports_that_it_is_finished(
    model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("dpo.yaml").write_text(f"model: {{path: {model_folder}}}\ndata: {{train: pairs.jsonl}}\nout: run\n")
    assert run(["dpo", "dpo.yaml"]) == 0
    capsys.readouterr()
    assert run(["dpo", "dpo.yaml"]) == 0
    assert "run is finished, so nothing was trained; its model is in run/final" in capsys.readouterr().err


def test_data_check_reports_drops_lengths_and_leaks(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*PAIRS, {**PAIRS[0], "rejected": PAIRS[0]["chosen"]}, {"prompt": 1}]
    write_jsonl(Path("mixed.jsonl"), rows)
    assert run(["data", "check", "mixed.jsonl", "--model", str(model_folder), "--eval", "pairs.jsonl"]) == 3
    printed, refused = capsys.readouterr()
    for part in (
        "10 rows read as 'preference', 8 kept",
        "dropped 1 (line 9): identical responses",
        "dropped 1 (line 10): cannot be read: column 'prompt' must be text",
        "lengths in tokens",
        "the chosen response is the longer one in",
        "evaluation groups whose prompt is in the training data: 8 (lines 1, 2, 3, ...)",
        "chosen (",
        "[</s>]",
    ):
        assert part in printed
    assert refused.startswith("mixed.jsonl:10: column 'prompt' must be text")
    assert run(["data", "check", "mixed.jsonl", "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    assert (report["format"], report["read"], report["kept"], report["unit"]) == ("preference", 10, 8, "characters")


def test_data_show_marks_the_scored_tokens(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "show", "pairs.jsonl", "--line", "3", "--model", str(model_folder)]) == 0
    printed = capsys.readouterr().out
    assert "<s>once upon a time\n" in printed
    marked = printed[printed.index("rejected (") :].split(": ", 1)[1]
    assert marked.replace("][", "").strip() == "[ no</s>]"


def test_data_check_reports_groups_too_long_for_the_model(
    model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(Path("long.jsonl"), [{**PAIRS[0], "chosen": "word " * 2000}, PAIRS[1]])
    assert run(["data", "check", "long.jsonl", "--model", str(model_folder), "--max-length", "9000"]) == 2
    printed, refused = capsys.readouterr()
    assert "groups longer than the model's context of 256 tokens: 1 (line 1); set data.max_length=256" in printed
    assert refused.startswith("data.max_length: the longest sequence has ")


def test_the_shown_tokens_add_up_to_the_text(model_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    ids = tokenizer("once  a line\nand again")["input_ids"]
    for begin in (1, 3):
        pieces = pieces_of(tokenizer, ids[:begin], ids[begin:])
        assert len(pieces) == len(ids) - begin
        assert "".join(pieces) == tokenizer.decode(ids[begin:])


def test_data_show_escapes_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(Path("evil.jsonl"), [{"prompt": "\x1b[31m[bold]x[/bold]", "chosen": "a\x07", "rejected": "b"}])
    assert run(["data", "show", "evil.jsonl"]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\x07" not in printed
    assert "\\x1b[31m[bold]x[/bold]" in printed


@pytest.mark.parametrize("to", ["pairs", "groups"])
def test_data_convert_loses_nothing(to: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {
            "prompt": "p",
            "responses": ["x", "y", "z"],
            "judgements": [{"better": 0, "worse": 1, "weight": 2.0}, {"better": 2, "worse": 1, "probability": 0.7}],
        },
        {
            "prompt": [{"role": "user", "content": "q"}],
            "responses": [[{"role": "assistant", "content": "a"}], [{"role": "assistant", "content": "b"}]],
            "judgements": [{"better": 1, "worse": 0}],
        },
    ]
    write_jsonl(Path("groups.jsonl"), rows)
    assert run(["data", "convert", "groups.jsonl", "--out", "out.jsonl", "--to", to]) == 0
    from preftune.data.read_groups import read_groups
    from preftune.formats.parsers import Reading

    before, after = (
        read_groups("groups.jsonl")[0],
        read_groups("out.jsonl", Reading(bad_rows="error"))[0] if to == "groups" else None,
    )
    if after is not None:
        assert [(g.prompt, g.responses, g.judgements) for g in before] == [
            (g.prompt, g.responses, g.judgements) for g in after
        ]
    else:
        converted = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
        assert [r.get("weight") for r in converted] == [2.0, None, None]
        assert [r.get("probability") for r in converted] == [None, 0.7, None]
        assert converted[2]["chosen"] == [{"role": "assistant", "content": "b"}]


def test_demonstrations_and_labels_are_converted(capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(Path("u.jsonl"), [{"prompt": "p", "completion": "c", "label": False}])
    assert run(["data", "convert", "u.jsonl", "--out", "o.jsonl"]) == 0
    assert json.loads(Path("o.jsonl").read_text()) == {"prompt": "p", "completion": "c", "label": False}


def test_the_fast_demo_has_the_expected_results(capsys: pytest.CaptureFixture[str]) -> None:
    """The page loads nothing from the network, and no file is written outside the folder."""
    assert run(["demo", "--fast", "--out", "first"]) == 0
    printed = capsys.readouterr().out
    assert "NOT AS EXPECTED" not in printed
    assert "expected and measured" in printed
    assert "preftune dpo" in printed.splitlines()[-2]
    assert printed.splitlines()[-1].endswith("Report: first/report.html")
    page = Path("first/report.html").read_text()
    assert "closed-form optimum" in page
    assert "default-src 'none'" in page  # the browser may not load anything from the network
    assert "http" not in page[page.index("<body>") :].replace("http://www.w3.org/", "")
    before = set(Path().iterdir())
    assert before == {Path("pairs.jsonl"), Path("first")}


def test_demo_refuses_a_folder_with_other_files(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("x")
    assert run(["demo", "--fast", "--out", "mine"]) == 5
    assert "mine: the folder is not empty and not from a demo" in capsys.readouterr().err
    assert Path("mine/thesis.tex").read_text() == "x"


@pytest.mark.parametrize("override", ["data.train=bad.jsonl", "data.train=no.jsonl", "model.path=./no", "loss.name=x"])
def test_wrong_input_is_reported_before_transformers_is_imported(model_folder: Path, override: str) -> None:
    """Each case runs in a fresh process."""
    write_jsonl(Path("bad.jsonl"), [PAIRS[0], {"prompt": None, "chosen": "a", "rejected": "b"}])
    Path("dpo.yaml").write_text(f"model: {{path: {model_folder}}}\ndata: {{train: pairs.jsonl}}\n")
    program = (
        "import sys; from preftune.cli.main import run\n"
        f"print(run(['dpo', 'dpo.yaml', '{override}']), 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    code = {"data": 3, "mode": 4, "loss": 2}[override[:4]]
    assert done.stdout == f"{code} False\n"
    assert "bad.jsonl:2: column 'prompt' is null" in done.stderr or override != "data.train=bad.jsonl"


def test_reward_then_ppo_then_the_frontier(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The RLHF pipeline that DPO replaces, command by command, and the comparison of the policies."""
    common = f"model: {{path: {model_folder}, dtype: fp32}}\n"
    Path("reward.yaml").write_text(common + "data: {train: pairs.jsonl}\nbatch: {pairs: 4}\noptim: {lr: 1.0e-3}\n")
    Path("ppo.yaml").write_text(
        common
        + "data: {train: pairs.jsonl}\nreward: runs/reward/final\n"
        + "rollout: {prompts: 4, responses: 2, max_new_tokens: 5}\ntrain: {max_steps: 2}\n"
    )
    assert run(["reward", "reward.yaml", "--quiet"]) == 0
    assert run(["ppo", "ppo.yaml", "value.path=runs/reward/final", "--quiet"]) == 0
    assert run(["ppo", "ppo.yaml", "value.path=runs/reward/final"]) == 0
    assert "is finished" in capsys.readouterr().err
    command = ["eval", "frontier", "--reference", str(model_folder), "--policy", "runs/ppo", "--prompts", "pairs.jsonl"]
    options = ["--reward", "runs/reward/final", "--temperatures", "0.5,1", "--samples", "2", "--yardstick", "8"]
    assert run([*command, *options, "--max-new-tokens", "5", "--out", "plane"]) == 0
    printed = capsys.readouterr().err
    assert "ppo, T 0.5" in printed
    assert "optimum at this KL" in printed
    assert json.loads(Path("plane/frontier.json").read_text())["prompts"] == 8
    assert run([*command, *options[:2], "--temperatures", "warm"]) == 2
    assert "'warm' is not a list of numbers" in capsys.readouterr().err
    assert run(["ppo", "ppo.yaml", "out=other", "reward=runs/nothing"]) == 4
    assert run(["ppo", "ppo.yaml", "out=other", "ppo.klcoef=1"]) == 2
    assert "unknown key 'ppo.klcoef'; did you mean ppo.kl_coef?" in capsys.readouterr().err


def test_iterate_plans_its_rounds(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = f"model: {{path: {model_folder}}}\ndata: {{train: pairs.jsonl}}\nreward: length\n"
    Path("iterate.yaml").write_text(config + "sample: {n: 2, max_new_tokens: 4}\n")
    assert run(["iterate", "iterate.yaml", "--dry-run"]) == 0
    assert not Path("runs").exists()


@pytest.mark.parametrize("command", ["", "data", "eval"])
def test_the_summary_of_every_command_is_a_complete_sentence(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    run([*command.split(), "--help"])
    summaries = [line for line in capsys.readouterr().out.partition("Commands:\n")[2].splitlines() if line.strip()]
    assert summaries
    assert all(line.endswith(".") and not line.endswith("...") for line in summaries)
