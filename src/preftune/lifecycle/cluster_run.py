"""The command `--dry-run --ranks N --memory SIZE`: the work of a step from the data, then the plan."""

from __future__ import annotations

from pathlib import Path

from preftune.chat.open import load_renderer
from preftune.config.schema import RewardConfig, RunConfig, SFTConfig
from preftune.data.shapes import Shapes
from preftune.data.steps import training_steps
from preftune.lifecycle.cluster import Cluster, Work, cluster_lines
from preftune.lifecycle.context import fitted
from preftune.lifecycle.data import read_data, require_groups, tokenize_data
from preftune.model import load
from preftune.model.locate import ADAPTER_CONFIG, read_config
from preftune.train.display import Display

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


def plan_cluster(config: RunConfig, cluster: Cluster, display: Display) -> bool:
    """Print the plan of a run on `cluster`, and return whether it fits. No weights are read and nothing is written.

    Raises ModelError if the model cannot be built from its config.json, and the errors of reading the data.
    """
    display.say("reading the data")
    lines, fits = cluster_lines(config, cluster, work_of(config), isinstance(config, RewardConfig))
    for line in lines:
        display.say(line)
    display.say("dry run: nothing was trained or written, and no weights were read")
    return fits


def work_of(config: RunConfig) -> Work:
    """Return the token slots of an average step: of the data, or of sequences of the maximum length if the model's
    folder has no tokenizer. Prompts are shared by the responses of a group."""
    source = _source(config.model.path)
    data_config = fitted(config.data, load.stored_positions(source))
    text = read_data(data_config, load.has_chat_template(source, chat_template=config.data.chat_template))
    require_groups(text.train, config.data.train)  # type: ignore[arg-type]
    folder = Path(config.model.path).expanduser()
    if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return _longest(config, data_config.max_length, len(text.train))
    data = tokenize_data(text, load_renderer(data_config, source), data_config)
    shapes, train = Shapes.of(data.train), config.train
    # in sft, one response of each judgement is trained on
    layout = "packed" if isinstance(config, SFTConfig) else "shared"
    share = 0.5 if isinstance(config, SFTConfig) and shapes.judgements_G.any() else 1.0
    steps = training_steps(shapes.size_G, config.batch.pairs, train.seed, train.epochs, train.max_steps)
    passes = train.epochs / max(1, len(steps)) if not train.max_steps else 0.0
    passes = passes or config.batch.pairs / max(1, int(shapes.size_G.sum()))
    slots = shapes.slots_G(layout)
    return Work(
        slots=max(1, round(share * float(slots.sum()) * passes)),
        largest=max(1, round(share * int(slots.max()))),
        scored=max(1, round(share * float(shapes.sum_G.sum()) * passes)),
        steps=len(steps),
        source=f"the average of {len(data.train):,} groups",
    )


def _longest(config: RunConfig, length: int, groups: int) -> Work:
    """Return the work of steps whose sequences all have the maximum length."""
    responses = 1 if isinstance(config, SFTConfig) else 2
    largest, pairs = responses * length, config.batch.pairs
    steps = config.train.epochs * -(-groups // pairs)
    steps = min(steps, config.train.max_steps) if config.train.max_steps else steps
    source = f"no tokenizer: {responses} sequence{'s' * (responses > 1)} of {length:,} tokens each"
    return Work(largest * pairs, largest, largest * pairs, steps, source)


def _source(path: str) -> load.Source:
    """Return the source of the tokenizer. In contrast to `locate`, the folder does not need weights."""
    folder = Path(path).expanduser()
    if (folder / ADAPTER_CONFIG).is_file():
        return load.Source(str(read_config(folder)["base_model_name_or_path"]), adapter=str(folder))
    if folder.is_dir():
        return load.Source(str(folder))
    name, _, revision = path.partition("@")
    return load.Source(name, revision or None)
