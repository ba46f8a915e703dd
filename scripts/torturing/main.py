"""The command line of scripts/torture."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from torturing import corrupt, fuzz, kill, peers, ranks, repeats, servers, signals, storage, world
from torturing.results import Result, by_row, table
from torturing.world import BY_NAME, World

Case = Callable[[World, random.Random, int], list[Result]]
MODES: dict[str, Case] = {
    "kill": kill.case,
    "corrupt": corrupt.case,
    "storage": storage.case,
    "signals": signals.case,
    "servers": servers.case,
    "input": fuzz.case,
}
#: Not part of `all`.
LONGER: dict[str, Case] = {
    "repeat": repeats.repeat,
    "lost": repeats.lost,
    "two": storage.two_case,
    "peers": peers.case,
    "ranks": ranks.case,
}


def main() -> int:
    """Run a campaign, print its table, and return 1 if a case has failed."""
    options = _parser().parse_args()
    if options.folder:
        Path(options.folder).mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix="torture-", dir=options.folder))
    began = time.monotonic()
    results: list[Result] = []
    for result in cases(options, root):
        results.append(result)
        if result.failure:
            _say(f"FAILED {result.row}: {result.failure}\n  repeat: {repeat_command(options, result)}")
    _say(table(results))
    failed = sum(bool(result.failure) for result in results)
    seconds = time.monotonic() - began
    _say(f"{len(results)} cases in {seconds:.0f} s, {failed} failed" + (f"; files in {root}" if failed else ""))
    if options.record:
        from record import record

        record(
            f"torture {options.mode}" + " every call" * bool(options.every_call),
            {"rows": by_row(results), "seconds": round(seconds)},
            {"count": options.count, "seed": options.seed},
            command=" ".join(["scripts/torture", *sys.argv[1:]]).replace(f" --folder {options.folder}", ""),
        )
    if not failed:
        World(root.parent, 0).remove(root)
    return int(failed > 0)


def cases(options: argparse.Namespace, root: Path) -> Iterator[Result]:
    """Yield the result of each case. A case depends only on the seed and on its number."""
    setting = world.create(root / "world", options.seed)
    if options.every_call:
        for name in options.every_call.split(","):
            yield from kill.every_call(setting, BY_NAME[name], options.only or 1 + options.seed, options.every)
        return
    deadline = time.monotonic() + options.minutes * 60
    numbers = [options.only] if options.only is not None else range(options.count)
    every_mode = MODES | LONGER
    for mode in MODES if options.mode == "all" else [options.mode]:
        for number in numbers:
            if time.monotonic() > deadline:
                return
            for result in every_mode[mode](setting, random.Random(f"{mode} {options.seed} {number}"), number):
                yield replace(result, row=f"{mode}: {result.row}") if options.mode == "all" else result


def repeat_command(options: argparse.Namespace, result: Result) -> str:
    """Return the command that repeats one case."""
    every = f" --every-call {options.every_call} --every 100000" if options.every_call else ""
    mode = result.row.partition(":")[0] if options.mode == "all" else options.mode
    return f"scripts/torture {mode} --seed {options.seed} --only {result.number}{every}"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/torture", description="Break preftune on purpose.")
    parser.add_argument("mode", choices=[*MODES, *LONGER, "all"])
    parser.add_argument("--count", type=int, default=100, help="number of cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="run the case of this number")
    parser.add_argument("--minutes", type=float, default=600.0, help="begin no case after this time")
    parser.add_argument("--every-call", help="kill: commands, separated by commas, killed at each call of theirs")
    parser.add_argument("--every", type=int, default=1, help="with --every-call: only each Nth call")
    parser.add_argument("--folder", type=Path, help="folder for the files; by default the system's temporary folder")
    parser.add_argument("--record", action="store_true", help="append a row to benchmarks/results.jsonl")
    return parser
