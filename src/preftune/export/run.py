"""preftune export: write the model of a run for other programs, with a model card."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from preftune.errors import ConfigError, IncompleteError, did_you_mean
from preftune.export import gguf, hub, ollama
from preftune.export.adapter import vllm_command, write_adapter
from preftune.export.merged import MergeCheck, write_merged
from preftune.export.subject import (
    Exported,
    complete_folder,
    default_out,
    exported,
    language_model,
    require_free,
)
from preftune.report.card import write_card
from preftune.train.display import Display

MODEL = "model"  # folder inside an export that holds a Hugging Face model


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """The settings of an export command.

    to          merged, adapter, gguf, vllm, ollama or hub
    dtype       of a merged model: auto (as the base model is saved), fp32, bf16, fp16
    merge       vllm and hub: merge an adapter into its base model
    base        replaces the base model in an adapter's config
    name        of the model, on servers and in the card; None: that of the run folder
    converter   llama.cpp's converter or its folder; None: search for it
    gguf_type   type of the weights in a GGUF file
    repository, public, confirmed   of the Hub, see export.hub
    """

    to: str
    dtype: str = "auto"
    merge: bool = False
    base: str | None = None
    name: str | None = None
    converter: str | None = None
    gguf_type: str = "auto"
    repository: str | None = None
    public: bool = False
    confirmed: bool = False


def run(path: str, options: ExportOptions, out: Path | None, display: Display) -> Path:
    """Export the model that `path` refers to, and return the folder. Raises RunError if the folder is not empty.

    Raises IncompleteError if another program is needed that is not installed; the commands to run are printed.
    """
    if options.to not in TARGETS:
        what = f"unknown target {options.to!r}; {did_you_mean(options.to, TARGETS)}"
        raise ConfigError(what, where="--to", fix=f"use one of {', '.join(TARGETS)}")
    require_used(options)
    with exported(path, options.base, options.name) as model:
        folder = out or default_out(model, options.to)
        if options.to == "hub":
            hub.require_repository(options.repository, options.confirmed)
        require_free(folder)
        TARGETS[options.to](model, options, folder, display)
    return folder


#: Options that only some targets use.
USED_BY = {
    "merge": ("vllm", "hub"),
    "converter": ("gguf", "ollama"),
    "gguf_type": ("gguf", "ollama"),
    "repository": ("hub",),
    "public": ("hub",),
    "confirmed": ("hub",),
    "dtype": ("merged", "gguf", "ollama", "vllm", "hub"),
}
FLAGS = {"gguf_type": "--gguf-type", "repository": "--repo", "confirmed": "--yes"}


def require_used(options: ExportOptions) -> None:
    """Raise ConfigError for an option that has no effect on this target."""
    defaults = ExportOptions(options.to)
    for name, targets in USED_BY.items():
        if getattr(options, name) != getattr(defaults, name) and options.to not in targets:
            where, fix = FLAGS.get(name, f"--{name}"), f"remove it, or use --to {' or '.join(targets)}"
            raise ConfigError(f"the option has no effect with --to {options.to}", where=where, fix=fix)


def to_merged(model: Exported, options: ExportOptions, out: Path, display: Display) -> None:
    """Write a full model folder."""
    check = _merged_folder(model, options, out, display)
    kind = "full model" if check is None else "merged model"
    display.say(f"done: {kind} in {out}. Next: transformers serve {quote(str(out))}")


def to_adapter(model: Exported, _: ExportOptions, out: Path, display: Display) -> None:
    """Write an adapter folder."""
    _adapter_folder(model, out)
    display.say(f"done: adapter in {out}. Next: load it with peft, or serve it: preftune export ... --to vllm")


def to_vllm(model: Exported, options: ExportOptions, out: Path, display: Display) -> None:
    """Write a folder that vLLM serves, and print the command."""
    language_model(model, "vllm")
    if model.kind == "adapter" and not options.merge:
        _require_no_dtype(options)
        assert model.source is not None
        vllm_command(Path(str(model.source.adapter)), model.name)  # raises before anything is written
        _adapter_folder(model, out)
        command = vllm_command(out, model.name)
    else:
        _merged_folder(model, options, out, display)
        command = f"vllm serve {quote(str(out.resolve()))} --served-model-name {model.name}"
    display.say(f"done: model in {out}. Serve it with:")
    print_line(command)


def to_gguf(model: Exported, options: ExportOptions, out: Path, display: Display) -> None:
    """Write a GGUF file, or the model folder and the commands that convert it."""
    file, is_converted, kind = _gguf_file(model, options, out, display, lambda part, file: None)
    if is_converted:
        display.say(f"done: {out / file}. Next: llama-cli -m {quote(str(out / file))}")
        return
    raise _not_converted(out, out / file, kind)


def to_ollama(model: Exported, options: ExportOptions, out: Path, display: Display) -> None:
    """Write a Modelfile, and the weights as a GGUF file or, without llama.cpp, as a model folder."""

    def write_modelfile(part: Path, weights: str) -> None:
        text = ollama.modelfile(f"./{weights}", part / MODEL, model.name)
        (part / ollama.MODELFILE).write_text(text, encoding="utf-8")

    _, is_converted, _ = _gguf_file(model, options, out, display, write_modelfile)
    if not is_converted:
        display.say(
            "note: llama.cpp's converter was not found, so the Modelfile uses safetensors, which Ollama converts for "
            "some architectures only. Install llama.cpp, or set --converter, to write a GGUF file"
        )
    display.say(f"done: {out / ollama.MODELFILE}. Next:")
    print_line(f"cd {quote(str(out))} && ollama create {model.name} -f {ollama.MODELFILE} && ollama run {model.name}")


def to_hub(model: Exported, options: ExportOptions, out: Path, display: Display) -> None:
    """Write the folder, and upload it."""
    repository = hub.require_repository(options.repository, options.confirmed)
    if model.kind == "adapter" and not options.merge:
        _require_no_dtype(options)
        assert model.source is not None
        hub.require_public_base(Path(model.source.adapter or ""))
        _adapter_folder(model, out)
    else:
        _merged_folder(model, options, out, display)
    display.say(f"uploading {out} to {repository} ({'public' if options.public else 'private'})")
    url = hub.upload(out, repository, options.public)
    display.say(f"done: {url}")


TARGETS: dict[str, Callable[[Exported, ExportOptions, Path, Display], None]] = {
    "merged": to_merged,
    "adapter": to_adapter,
    "gguf": to_gguf,
    "vllm": to_vllm,
    "ollama": to_ollama,
    "hub": to_hub,
}


def _require_no_dtype(options: ExportOptions) -> None:
    if options.dtype != "auto":
        what, fix = "an adapter keeps its dtype", "remove the option, or add --merge"
        raise ConfigError(what, where="--dtype", fix=fix)


def _adapter_folder(model: Exported, out: Path) -> None:
    with complete_folder(out) as part:
        write_adapter(model, part, out)
        write_card(part, model.subject("adapter"))


def _merged_folder(model: Exported, options: ExportOptions, out: Path, display: Display) -> MergeCheck | None:
    with complete_folder(out) as part:
        check = _write_merged(model, options, part, display)
        notes = (check.text(),) if check else ()
        write_card(part, model.subject("reward" if model.kind == "reward" else "model", notes))
    return check


def _write_merged(model: Exported, options: ExportOptions, part: Path, display: Display) -> MergeCheck | None:
    if model.kind == "adapter":
        display.say("merging the adapter into its base model, and checking the result")
    check = write_merged(model, options.dtype, part)
    if check:
        display.say(check.text())
        if check.rounding > check.effect / 4:
            display.say(
                f"warning: rounding to {check.dtype} changes logits by more than a quarter of what the adapter changes "
                "them. Use --dtype fp32 to keep what the adapter learned"
            )
    return check


def _gguf_file(
    model: Exported,
    options: ExportOptions,
    out: Path,
    display: Display,
    extra: Callable[[Path, str], None],
) -> tuple[str, bool, str]:
    """Write `out` with a GGUF file, or with a model folder if the converter is not found.

    `extra` writes more files; it gets the folder and the name of the weights in it. Returns the name of the GGUF file,
    whether it was written, and its type.
    """
    language_model(model, options.to)
    script = gguf.find_converter(options.converter)
    with complete_folder(out) as part:
        check = _write_merged(model, options, part / MODEL, display)
        kind = gguf.out_type(options.gguf_type, part / MODEL)
        file = f"{model.name}-{kind}.gguf"
        if script:
            display.say(f"converting with {script}")
            gguf.convert(script, part / MODEL, part / file, kind)
        extra(part, file if script else MODEL)
        if script:
            shutil.rmtree(part / MODEL)
        notes = (check.text(),) if check else ()
        write_card(part, model.subject("gguf" if script else "model", notes))
    return file, script is not None, kind


def _not_converted(out: Path, file: Path, kind: str) -> IncompleteError:
    print_line(gguf.instructions(out / MODEL, file, kind))
    return IncompleteError(
        "llama.cpp's converter was not found, so there is no GGUF file yet",
        where="--to gguf",
        why=f"the model folder {out / MODEL} is complete",
        fix="run the commands above; or delete the folder and rerun with --converter, the folder of llama.cpp",
    )


def print_line(text: str) -> None:
    """Print commands to stdout, also with --quiet: they are the result."""
    sys.stdout.write(f"{text}\n")
