"""What is exported: the model of a run, a checkpoint, or a model or adapter folder, and the folder to write."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from preftune.errors import ConfigError, ModelError, RunError, require_writable, writing
from preftune.files import write_json
from preftune.lifecycle.open_policy import find_policy
from preftune.model import load
from preftune.model.locate import ADAPTER_CONFIG, split_quant
from preftune.report.card import Subject
from preftune.train.checkpoint import STATE
from preftune.train.manifest import read as read_manifest


@dataclass(frozen=True, slots=True)
class Exported:
    """A model to export.

    folder   the model or adapter folder, or the checkpoint
    source   where the model is loaded from; None for a checkpoint
    name     short name, for file names, servers and the card
    run      folder of the run that trained it, if there is one
    kind     "model", "adapter", "checkpoint" or "reward" (a sequence classifier)
    base     the model that was trained: folder or Hub id; None if it is not known
    """

    folder: Path
    source: load.Source | None
    name: str
    run: Path | None
    kind: str
    base: str | None

    def subject(self, kind: str, notes: tuple[str, ...] = ()) -> Subject:
        """Return what the card of an export is about."""
        return Subject(self.name, kind, self.base, self.run, notes)


@contextmanager
def exported(path: str, base: str | None, name: str | None = None) -> Iterator[Exported]:
    """Find the model that `path` refers to. `base` replaces the base model that an adapter's config names.

    Raises the errors of `find_policy`, and ConfigError for a `base` of a model that has no adapter.
    """
    with tempfile.TemporaryDirectory(prefix="preftune-") as scratch:
        yield _find(path, base, name, Path(scratch))


def _find(path: str, base: str | None, name: str | None, scratch: Path) -> Exported:
    if split_quant(path)[1]:
        what, fix = "a model is exported as it is stored", f"use {split_quant(path)[0]}"
        raise ConfigError(what, where=f"preftune export {path}", fix=fix)
    named = Path(path).expanduser()
    with_adapter = next((p for p in (named / "final", named) if (p / ADAPTER_CONFIG).is_file()), None)
    is_checkpoint = (named / STATE).is_file()
    if base and (with_adapter is None or is_checkpoint):
        what = "the option replaces the base model of an adapter, and this model has no adapter"
        raise ConfigError(what, where="--base", fix="remove the option")
    if with_adapter and base and not is_checkpoint:
        folder = _with_base(with_adapter, base, scratch / with_adapter.name)
        source: load.Source | None = load.locate(str(folder), "preftune export")
        run = _run_of(with_adapter)
    else:
        folder = find_policy(path, "preftune export")
        if not folder.is_dir():
            fix = "download it to a folder first, and pass that folder"
            raise ModelError("this is a model on the Hub, not a folder", where=path, fix=fix)
        is_checkpoint = (folder / STATE).is_file()
        source = None if is_checkpoint else load.locate(str(folder), "preftune export")
        run = folder.parent.parent if is_checkpoint else _run_of(folder)
    own = (with_adapter if with_adapter and base else folder).absolute()
    default = f"{run.absolute().name}-{folder.name}" if is_checkpoint and run else (run.absolute() if run else own).name
    trained = base or (source.base if source and source.adapter else _trained_from(run))
    kind = "checkpoint" if is_checkpoint else "adapter" if source and source.adapter else _kind_of(folder)
    return Exported(folder, source, _plain(name or default), run, kind, trained)


def _plain(name: str) -> str:
    """Return a name that file names, servers and commands accept. Raises ConfigError for an empty one."""
    plain = "".join(c if c.isalnum() or c in "._-" else "-" for c in name).strip("-.")
    if not plain:
        raise ConfigError(f"{name!r} has no letters or digits", where="--name", fix="choose a name such as my-model")
    return plain


def _with_base(adapter: Path, base: str, folder: Path) -> Path:
    """Copy an adapter with a different base model. Raises ModelError if its config cannot be read."""
    shutil.copytree(adapter, folder)
    path = folder / ADAPTER_CONFIG
    try:
        config = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        fix = "restore the file"
        raise ModelError(f"cannot read the config: {error}", where=str(adapter / ADAPTER_CONFIG), fix=fix) from error
    local = Path(base).expanduser()
    config["base_model_name_or_path"] = str(local.resolve()) if local.is_dir() else base
    write_json(path, {**config, "revision": None})
    return folder


def _run_of(folder: Path) -> Path | None:
    """Return the run folder whose `final` this is, or None."""
    run = folder.parent
    return run if folder.name == "final" and (run / "manifest.json").is_file() else None


def _trained_from(run: Path | None) -> str | None:
    if run is None:
        return None
    try:
        return str(read_manifest(run)["identity"]["config"]["model"]["path"])
    except (RunError, LookupError, TypeError):
        return None


def _kind_of(folder: Path) -> str:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        names = config.get("architectures") or []
    except (OSError, ValueError, AttributeError):
        names = []
    return "reward" if any("SequenceClassification" in str(name) for name in names) else "model"


def default_out(model: Exported, to: str) -> Path:
    """Return the folder of an export without --out: exports/NAME-TO in the current folder."""
    return Path("exports") / f"{model.name}-{to}"


def require_free(out: Path) -> None:
    """Raise RunError if `out` exists and is not empty, StorageError if it cannot be written."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        fix = "choose a different --out, or delete it"
        raise RunError("the path exists, and preftune export does not overwrite files", where=str(out), fix=fix)
    require_writable(out)


@contextmanager
def complete_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `out` that is renamed to `out` when the block ends, and deleted if it fails."""
    part = out.with_name(f"{out.name}.part-{os.getpid()}")
    with writing(out):
        part.mkdir(parents=True)
    try:
        yield part
        with writing(out):
            if out.is_dir():
                out.rmdir()  # empty, see require_free
            os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def language_model(model: Exported, to: str) -> Exported:
    """Return `model`. Raises ConfigError for a reward model, which writes no text."""
    if model.kind == "reward":
        what = "a reward model writes no text, so it cannot be exported for this program"
        raise ConfigError(what, where=f"--to {to}", fix="use --to merged or --to hub")
    return model
