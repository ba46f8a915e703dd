"""Tables of docs/results/results.md and docs/results/performance.md from the rows of benchmarks/results.jsonl."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BY_DEFAULT = ("preftune", "preftune-compiled-any")  # what a run uses by default; its length decides which
PEERS, PEER_OUTCOMES = "torture peers", ("same weights", "other weights", "error")
ROWS = Path(__file__).parents[1] / "benchmarks" / "results.jsonl"


def measured(claim: str) -> list[dict[str, Any]]:
    """Return the recorded rows of a benchmark, oldest first."""
    return [row for row in map(json.loads, ROWS.read_text().splitlines()) if row["claim"] == claim]


def lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table."""
    head = f"| {' | '.join(heads)} |"
    return "\n".join(
        [head.replace("|  |", "| |"), "|" + "---|" * len(heads), *(f"| {' | '.join(row)} |" for row in rows)]
    )


def newest_dpo_steps() -> dict[tuple[str, str, str, int, tuple[str, ...]], dict[str, Any]]:
    """Return the newest row of each setting and set of systems."""
    newest: dict[tuple[str, str, str, int, tuple[str, ...]], dict[str, Any]] = {}
    for row in measured("dpo step"):
        settings, systems = row["settings"], tuple(name for name, f in row["figures"].items() if isinstance(f, dict))
        adapter = f", LoRA of rank {settings['lora']}" if settings.get("lora") else ""
        kind = settings["model"] + adapter, settings["data"], settings["dtype"], settings["pairs"]
        for key in [key for key in newest if key[:-1] == kind and set(key[-1]) <= set(systems)]:
            del newest[key]  # replaced by this row
        newest[(*kind, systems)] = row
    return dict(sorted(newest.items()))


def dpo_steps() -> str:
    """Format one table per setting."""
    return "\n\n".join(dpo_step(*key[:4], row) for key, row in newest_dpo_steps().items())


def beside_trl() -> str:
    """Return the range of the ratios to TRL over all rows, for each precision and processor."""
    ratios: dict[tuple[str, str], dict[str, list[float]]] = {}
    for key, row in newest_dpo_steps().items():
        figures, machine = row["figures"], place(row)
        fastest = max((figures[name] for name in BY_DEFAULT if name in figures), key=lambda run: run["pairs_per_s"])
        for peer in ("trl", "trl-best"):
            if peer in figures:
                ratio = fastest["pairs_per_s"] / figures[peer]["pairs_per_s"]
                ratios.setdefault((key[2], machine), {}).setdefault(peer, []).append(ratio)
    return "\n".join(
        f"- {dtype} on {machine}: {span(peers['trl-best'])} times the speed of TRL's best settings"
        + (f", {span(peers['trl'])} times that of its default settings" if "trl" in peers else "")
        for (dtype, machine), peers in sorted(ratios.items(), reverse=True)
        if "trl-best" in peers
    )


def trl_table() -> str:
    """Format one row per setting that was measured with TRL's best settings: speed and memory of both programs."""
    rows = []
    for (model, data, dtype, _, _), row in newest_dpo_steps().items():
        figures = row["figures"]
        if "trl-best" in figures:
            ours = max((figures[name] for name in BY_DEFAULT if name in figures), key=lambda run: run["pairs_per_s"])
            systems = [ours, figures["trl-best"], *([figures["trl"]] if "trl" in figures else [])]
            cells = [f"{run['pairs_per_s']:.2f}, {run['peak_gb']:.1f} GB" for run in systems]
            ratio = ours["pairs_per_s"] / figures["trl-best"]["pairs_per_s"]
            setting = f"{Path(model).name}, {data}, {dtype}, {place(row)}"
            rows.append([setting, *cells, *[""] * (3 - len(cells)), f"{ratio:.1f}x"])
    return lines(["pairs per second, peak memory", "preftune", "TRL, best settings", "TRL, defaults", "speed"], rows)


def span(values: Sequence[float]) -> str:
    """Return the smallest and the largest value, or the only one."""
    ends = sorted({f"{min(values):.1f}", f"{max(values):.1f}"}, key=float)
    return " to ".join(ends)


def place(row: dict[str, Any]) -> str:
    """Return the processor, its fastest instructions if they are recorded, and the threads of a row's machine."""
    facts = row["machine"]
    if facts.get("gpu"):
        return str(facts["gpu"])
    instructions = f" ({facts['instructions']})" if facts.get("instructions") else ""
    return f"{facts['processor']}{instructions}, {facts['threads']} threads"


def dpo_step(model: str, data: str, dtype: str, pairs: int, row: dict[str, Any]) -> str:
    """Format the table of one setting, with its title, machine and command."""
    figures, command = row["figures"], row["command"]
    systems = {name: run for name, run in figures.items() if isinstance(run, dict)}
    ratio = {peer: systems[peer] for peer in ("trl", "trl-best", "preftune-pairs") if peer in systems}
    heads = ["", "pairs/s", "peak GB", "useful", "reference pass", *(f"against {peer}" for peer in ratio)]
    rows = []
    for name, run in systems.items():
        title = f"{name}, batches of {run['batch']}" if name == "trl-best" and "batch" in run else name
        cells = [title, f"{run['pairs_per_s']:.2f}", f"{run['peak_gb']:.2f}", f"{run['useful_mfu']:.0%}"]
        cached = name not in ("preftune-online", "trl")
        cells.append(f"{run['reference_s']:.1f} s" if cached else "in the step")
        for peer in ratio.values():
            speed, memory = run["pairs_per_s"] / peer["pairs_per_s"], run["peak_gb"] / peer["peak_gb"]
            cells.append(f"{speed:.1f}x, {memory:.2f}x memory" if run is not peer else "")
        rows.append(cells)
    too_large = figures.get("out of memory")
    model = Path(model).name
    title = f"**{model}, {data}, {dtype}, {pairs} pairs per step**, {place(row)} (`{command}`)"
    return f"{title}\n\n{lines(heads, rows)}" + (f"\n\nOut of memory: {', '.join(too_large)}." if too_large else "")


def plans() -> str:
    """Compare the prediction of the dry run with the run, for the newest row of each command."""
    newest = {row["command"]: row["figures"] for row in measured("plan")}
    cells = [
        [
            f"`{command.removeprefix('python benchmarks/plan.py ').removesuffix(' --record')}`",
            f"{f['steps']}",
            f"{f['predicted_gb']:.2f}, {f['peak_gb']:.2f} ({f['predicted_gb'] / f['peak_gb'] - 1:+.0%})",
            f"{f['predicted_s']:.0f}, {f['seconds']:.0f} ({f['predicted_s'] / f['seconds'] - 1:+.0%})",
        ]
        for command, f in newest.items()
    ]
    return lines(
        ["`python benchmarks/plan.py`", "steps", "GB: predicted, measured", "seconds: predicted, measured"], cells
    )


def data_scale() -> str:
    """Format time and memory of preparing data, from the newest row that has each size."""
    newest: dict[tuple[str, int, str], dict[str, dict[str, Any]]] = {}
    commands: dict[str, None] = {}
    for row in measured("data scale"):
        commands[f"`{row['command']}` ({place(row)})"] = None
        for run in row["figures"]["runs"]:
            newest.setdefault((run["form"], run["rows"], run["system"]), {})[run["start"]] = run

    if not newest:
        return "No measurement is recorded yet."

    def cell(run: dict[str, Any] | None) -> str:
        return f"{run['seconds']:.1f} s ({run['cpu_seconds']:.1f})" if run else ""

    rows = [
        [
            form,
            f"{count:,}",
            system,
            cell(runs.get("first")),
            cell(runs.get("second")),
            *(f"{run['rss_mb']} MB ({run['anon_mb']})" for run in (runs["first"], runs.get("second", runs["first"]))),
        ]
        for (form, count, system), runs in sorted(newest.items())
    ]
    heads = ["rows as", "pairs", "system", "first start", "second start", "peak memory, first", "peak memory, second"]
    return "\n\n".join([lines(heads, rows), *commands])


def comparison() -> str:
    """Format the policies and the costs of the comparison of methods."""
    figures = measured("comparison")[-1]["figures"]
    start = {"kl": 0.0, "reward": figures["reference"]}

    def at(kind: str, kl: float) -> str:
        return between(sorted([start, *figures[kind]], key=lambda p: p["kl"]), kl, "reward")

    policies = [
        [
            name,
            f"{p['reward']:.3f} ({p['reward_sd']:.3f})",
            f"{p['kl']:.2f} ({p['kl_sd']:.2f})",
            at("best of n", p["kl"]),
            at("optimum", p["kl"]),
        ]
        for name, p in figures["policies"].items()
    ]
    costs = [
        [
            name,
            f"{spent.get('models', 1):.0f}",
            f"{spent['cpu_seconds']:.0f}",
            f"{spent.get('generated_tokens', 0):,.0f}",
        ]
        for name, spent in figures["costs"].items()
    ]
    heads = ["policy", "reward (sd over seeds)", "KL, nats (sd)", "best of n at this KL", "optimum at this KL"]
    costly = ["step", "models in memory", "seconds on one core", "generated tokens"]
    return f"{lines(heads, policies)}\n\n{lines(costly, costs)}"


def temperatures() -> str:
    """Format the win rates of every policy by the true reward, and by the control judges."""
    row = measured("win rate over temperatures")[-1]
    truth, *controls = row["figures"]
    columns = [f"{t:g}" for t in row["settings"]["temperatures"]]
    judged = [
        [name, *(f"{rates[t]['rate']:.1%} ({100 * rates[t]['rate_sd']:.1f})" for t in columns)]
        for name, rates in row["figures"][truth].items()
    ]
    shown = [columns[0], columns[-1]]
    controlled = [
        [
            name,
            *(f"{row['figures'][control][name][t]['rate']:.1%}" for control in controls for t in shown),
            *(f"{rates[t]['length_adjusted']:.1%}" for t in shown),
            *(f"{rates[t]['words']:.1f}, {rates[t]['other_words']:.1f}" for t in shown),
        ]
        for name, rates in row["figures"][truth].items()
    ]
    heads = [f"{text} at {t}" for text in (*controls, "length-adjusted", "words") for t in shown]
    return f"{lines(['policy', *columns], judged)}\n\n{lines(['policy', *heads], controlled)}"


def iterative() -> str:
    """Format the rounds. The last column interpolates offline DPO with as many judgements at the same KL."""
    figures = measured("iterative dpo")[-1]["figures"]
    offline = sorted((curve[0] for name, curve in figures.items() if name.startswith("offline")), key=lambda p: p["kl"])
    rounds = [
        [name.removeprefix("iterative, ") if number == 0 else "", str(number), *at_round(p), between(offline, p["kl"])]
        for name, curve in figures.items()
        if name.startswith("iterative")
        for number, p in enumerate(curve)
    ]
    single = [
        [name.removeprefix("offline, "), *at_round(curve[0])]
        for name, curve in figures.items()
        if name.startswith("offline")
    ]
    rounds_table = lines(["iterative DPO", "round", *ROUND, "offline DPO at this KL"], rounds)
    return f"{rounds_table}\n\n{lines(['offline DPO, one round', *ROUND], single)}"


def elsewhere() -> str:
    """Format offline DPO on another model's responses, next to its own responses at the same KL."""
    own = measured("iterative dpo")[-1]["figures"]
    start = next(curve[0] for name, curve in own.items() if name.startswith("iterative"))
    curve = [start, *(curve[0] for name, curve in own.items() if name.startswith("offline"))]
    line = sorted(curve, key=lambda p: p["kl"])
    rows = [
        [name.removeprefix("offline, "), *at_round(p), between(line, p["kl"])]
        for name, [p] in measured("dpo on another model's responses")[-1]["figures"].items()
    ]
    return lines(["offline DPO, one round", *ROUND, "own responses at this KL"], rows)


ROUND = ["reward (sd over seeds)", "KL, nats (sd)", "distinct word pairs"]


def at_round(p: dict[str, float]) -> list[str]:
    """Format an evaluation for the columns ROUND."""
    return [f"{p['score']:.3f} ({p['score_sd']:.3f})", f"{p['kl']:.2f} ({p['kl_sd']:.2f})", f"{p['diversity']:.2f}"]


def between(curve: Sequence[dict[str, float]], kl: float, name: str = "score") -> str:
    """Interpolate the reward of a curve at this KL. Empty outside the curve."""
    for low, high in itertools.pairwise(curve):
        if low["kl"] <= kl <= high["kl"]:
            share = (kl - low["kl"]) / ((high["kl"] - low["kl"]) or 1.0)
            return f"{low[name] + share * (high[name] - low[name]):.3f}"
    return ""


def dialogue() -> str:
    """Format the held-out accuracy and calibration of each reward."""
    figures = measured("single-turn dialogue")[-1]["figures"]
    rows = [
        [
            name,
            pairs,
            f"{f['pairs']:,}",
            f"{f['accuracy']:.1%} +- {100 * f['half_interval']:.1f}",
            f"{f['loss']:.4f}",
            f"{f['calibration/ece']:.3f}",
            f"{f['calibration/brier']:.4f}",
        ]
        for name, parts in figures.items()
        for pairs, f in parts.items()
    ]
    heads = ["reward", "held-out pairs", "number", "accuracy", "log loss", "calibration error", "Brier score"]
    bins = [
        [name, f"{predicted:.3f}", f"{observed:.3f}", f"{number:,}"]
        for name, parts in figures.items()
        for predicted, observed, number in parts["all"]["table"]
    ]
    return f"{lines(heads, rows)}\n\n{lines(['reward', 'predicted probability', 'observed share', 'pairs'], bins)}"


def noise() -> str:
    """Format the precision and recall of the list for each flipped share."""
    rows = [
        [
            f["ranker"],
            f"{f['share']:.0%}",
            f"{f['seed']}",
            f"{f['judgements']:,}",
            f"{f['accuracy']:.1%}",
            f"{f['precision_at_tenth']:.1%}, {f['recall_at_tenth']:.1%}",
            f"{f['precision_at_number']:.1%}, {f['recall_at_number']:.1%}",
            f"{f['precision_of_backwards']:.1%}, {f['recall_of_backwards']:.1%}",
        ]
        for f in measured("noise finder")[-1]["figures"]["runs"]
    ]
    heads = ["ranker", "flipped", "seed", "pairs", "agrees with the labels"]
    listed = ["k = flipped / 10", "k = flipped", "all ranked backwards"]
    return lines([*heads, *(f"{name}: precision, recall" for name in listed)], rows)


def distilled() -> str:
    """Format the agreement of both rewards on the held-out pairs."""
    figures = measured("distilled reward")[-1]["figures"]
    heads = ["held-out pairs", "same sign", "correlation", "rank correlation", "implicit: accuracy", "scalar: accuracy"]
    shares = [f"{figures[name]:.0%}" for name in ("same_sign", "accuracy_implicit", "accuracy_distilled")]
    between = [f"{figures[name]:.2f}" for name in ("pearson", "spearman")]
    return lines(heads, [[str(figures["pairs"][1]), shares[0], *between, *shares[1:]]])


def quantised() -> str:
    """Format the runs on quantised base weights: the newest row of each kind."""
    newest = {row["settings"]["kind"]: row for row in measured("quantised")}
    if not newest:
        return "No measurement is recorded yet."
    cells = [
        [
            "LoRA" if kind == "none" else f"LoRA, `model.quant: {kind}`",
            f"{f['held_out_loss_before']:.4f}",
            f"{f['held_out_loss']:.4f}",
            f"{f['held_out_accuracy']:.0%}",
            f"{f['stored_mb']:.0f} MB of {f['before_mb']:.0f}" if f["stored_mb"] else "",
            f"{f['peak_gb']:.2f} GB",
            f"{f['seconds']:.0f} s",
        ]
        for kind, f in ((kind, row["figures"]) for kind, row in newest.items())
    ]
    heads = ["run", "held-out loss before", "after", "accuracy", "linear layers", "peak memory", "time"]
    return "\n\n".join([lines(heads, cells), *dict.fromkeys(f"`{row['command']}`" for row in newest.values())])


def with_interval(rate: dict[str, float], kind: str) -> str:
    """Format a win rate, or the length-adjusted one, with its interval."""
    prefix = "" if kind == "rate" else f"{kind}_"
    return f"{rate[kind]:.1%} ({rate[f'{prefix}low']:.1%} to {rate[f'{prefix}high']:.1%})"


def chat() -> str:
    """Format what SFT and DPO do to a chat model: held-out pairs, win rates, responses, KL, other data and time."""
    rows = measured("a chat model on human preferences")
    if not rows:
        return "No measurement is recorded yet."
    figures = rows[-1]["figures"]
    pairs = [
        [
            "reward model of the judge" if name == "judge" else f"implicit reward of {name}",
            f"{f['pairs']:,}",
            f"{f['accuracy']:.1%} ({f['low']:.1%} to {f['high']:.1%})",
            f"{f['loss']:.4f}",
            f"{f['mean_confidence']:.3f}",
            f"{f['calibration/ece']:.3f}",
            f"{f['calibration/brier']:.4f}",
        ]
        for name, f in figures["accuracy"].items()
    ]
    longer = figures["longer_is_chosen"]
    number = pairs[0][1]
    pairs.append(["the longer response", number, f"{longer['rate']:.1%} ({longer['low']:.1%} to {longer['high']:.1%})"])
    pairs[-1] += [""] * 4
    heads = ["reward", "pairs", "accuracy", "log loss", "mean confidence", "calibration error", "Brier score"]
    temperatures = [f"{t:g}" for t in rows[-1]["settings"]["temperatures"]]
    rates = [
        [
            name,
            against,
            t,
            *(with_interval(by[t], kind) for kind in ("rate", "length_adjusted")),
            f"{by[t]['longer_wins']:.1%}",
            f"{by[t]['words']:.0f}, {by[t]['other_words']:.0f}",
        ]
        for against, by_model in figures["win_rates"].items()
        for name, by in by_model.items()
        for t in temperatures
    ]
    rate_heads = ["model", "against", "temperature", "win rate", "length-adjusted", "longer wins", "words of both"]
    responses = [
        [
            name,
            t,
            f"{f['reward']:.2f} +- {f['reward_half_interval']:.2f}",
            f"{f['responses/words']:.0f}",
            f"{f['responses/ended']:.0%}",
            f"{f['diversity']:.2f}",
            f"{f['repetition']:.2f}",
            f"{f['loops']:.1%}",
            f"{f['refusals']:.1%}",
        ]
        for name, by in figures["texts"].items()
        for t, f in by.items()
    ]
    response_heads = ["responses of", "temperature", "judge's reward", "words", "ended", "distinct word pairs"]
    response_heads += ["repetition", "loops", "refusals"]
    kl = figures["kl"]
    other = figures["other"]
    seconds = {"SFT": "sft", "DPO": "dpo", "DPO, LoRA": "dpo-lora"}
    costs = [
        [
            name,
            f"{kl[name]['mean']:.2f} +- {kl[name]['half_interval']:.2f}" if name in kl else "",
            f"{f['loss']:.3f}",
            f"{f['change']:+.3f} +- {f['half_interval']:.3f}" if name in kl else "",
            f"{figures['seconds'][seconds[name]]:.0f}" if seconds.get(name) in figures["seconds"] else "",
        ]
        for name, f in other.items()
    ]
    cost_heads = ["model", "KL from its reference, nats", "loss on other data", "change", "processor seconds"]
    tables = ((heads, pairs), (rate_heads, rates), (response_heads, responses), (cost_heads, costs))
    return "\n\n".join(lines(names, cells) for names, cells in tables)


def reliability() -> str:
    """Format the newest row of each campaign of scripts/torture."""
    newest = {row["claim"]: row for row in map(json.loads, ROWS.read_text().splitlines())}
    campaigns = {claim: row for claim, row in newest.items() if claim.startswith("torture ") and claim != PEERS}
    cells = [
        [
            f"`{row['command']}`",
            f"{row['figures']['rows']['all']['cases']:,}",
            f"{row['figures']['rows']['all']['passed']:,}",
            ", ".join(f"{count:,} {name}" for name, count in row["figures"]["rows"]["all"]["outcomes"].items()),
        ]
        for row in campaigns.values()
    ]
    return lines(["campaign", "cases", "passed", "outcomes"], cells) if cells else "No measurement is recorded yet."


def peers_reliability() -> str:
    """Format what preftune and its peers do after the same kills and the same damage of their newest checkpoint."""
    row = measured(PEERS)[-1]
    facts = {tuple(name.rsplit(", ", 1)): f for name, f in row["figures"]["rows"].items() if name != "all"}
    cells = [
        [system, fault, f"{f['cases']}", *(f"{f['outcomes'].get(name, 0)}" for name in PEER_OUTCOMES)]
        for (system, fault), f in sorted(facts.items(), key=lambda item: (item[0][1] != "killed", item[0][0]))
    ]
    heads = ["system", "fault", "cases", "the same weights", "other weights, no error", "an error"]
    return f"`{row['command']}`\n\n{lines(heads, cells)}"


def chat_rates() -> str:
    """Format two learning rates of DPO on a chat model side by side: accuracy, KL, win rates, loops, other data."""
    cells = []
    for row in measured("a chat model on human preferences"):
        figures, settings = row["figures"], row["settings"]
        chosen = dict(entry.split("=") for entry in settings["rates"].split())
        for name, key in (("DPO", "dpo"), ("DPO, LoRA", "dpo-lora")):
            against_sft = figures["win_rates"]["SFT"][name]["0.5"]
            cells.append(
                [
                    name,
                    f"{chosen[f'{key}:optim.lr']}, {chosen[f'{key}:train.epochs']}",
                    f"{figures['accuracy'][name]['accuracy']:.1%}",
                    f"{figures['accuracy'][name]['loss']:.4f}",
                    f"{figures['kl'][name]['mean']:.2f} +- {figures['kl'][name]['half_interval']:.2f}",
                    with_interval(against_sft, "rate"),
                    f"{figures['win_rates']['chat model'][name]['0.5']['rate']:.1%}",
                    f"{figures['texts'][name]['0.5']['responses/words']:.0f}",
                    f"{figures['texts'][name]['0.5']['loops']:.1%}",
                ]
            )
    heads = ["model", "learning rate, epochs", "accuracy", "log loss", "KL from SFT, nats", "wins against SFT"]
    return lines([*heads, "against the chat model", "words", "loops"], cells)


RESULTS = {
    "reliability": reliability,
    "reliability of peers": peers_reliability,
    "a chat model: learning rates": chat_rates,
    "a chat model on human preferences": chat,
    "comparison": comparison,
    "iterative dpo": iterative,
    "dpo on another model's responses": elsewhere,
    "win rate over temperatures": temperatures,
    "single-turn dialogue": dialogue,
    "distilled reward": distilled,
    "noise finder": noise,
    "quantised": quantised,
}
