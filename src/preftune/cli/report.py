"""`preftune report`: the page of one run, or a page that compares several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from preftune.errors import RunError


def report(
    runs: Annotated[list[str], typer.Argument(help="Run folders. Several are compared on one page.", metavar="RUN...")],
    out: Annotated[
        Path | None, typer.Option(help="Page to write. By default: RUN/report.html, or report.html for several runs.")
    ] = None,
) -> dict[str, Any]:
    """Write the report of a run, or a page that compares runs.

    The page shows results, settings, curves and samples.
    """
    folders = [_run_folder(name) for name in dict.fromkeys(runs)]
    page = out or (folders[0] / "report.html" if len(folders) == 1 else Path("report.html"))
    if page.is_dir():
        raise RunError("this is a folder", where=f"--out {page}", fix=f"name a file, such as {page / 'report.html'}")
    from preftune.report.compare import write_comparison
    from preftune.report.run import write_run_page

    try:
        if len(folders) == 1:
            write_run_page(folders[0], out=page)
        else:
            write_comparison(folders, page)
    except (ValueError, KeyError, TypeError) as error:
        what = f"a file of the run is damaged: {type(error).__name__}: {error}"
        raise RunError(
            what, where=", ".join(map(str, folders)), fix="check its manifest.json and config.yaml"
        ) from error
    print(f"wrote {page}")
    return {"out": page, "runs": folders}


def _run_folder(name: str) -> Path:
    """Return the run folder that `name` or its parent is. Raises RunError without a run or its metrics."""
    folder = Path(name).expanduser()
    if not (folder / "manifest.json").is_file() and (folder.parent / "manifest.json").is_file():
        folder = folder.parent
    if not (folder / "manifest.json").is_file():
        what = "this is not a run folder" if folder.is_dir() else "no such run folder"
        raise RunError(what, where=name, fix="pass the folder that `out` of a training command names")
    if not (folder / "metrics.jsonl").is_file():
        fix = "rerun its command; a report needs at least one step"
        raise RunError("the run has no metrics yet", where=name, fix=fix)
    return folder
