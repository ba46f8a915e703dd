"""Shared fixtures: a small tokenizer, small random models, small data. Without network and without fixed folders."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
import transformers
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from preftune.types import Judgement, TokenGroup

transformers.utils.logging.disable_progress_bar()
# Use the same examples on every machine. `pytest --hypothesis-profile default` searches for new ones.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")
SHARED = Path(__file__).resolve().parents[2] / "shared"

TEXTS = [
    "the cat sat on the mat and looked at the moon",
    "a dog ran over the hill to find the river",
    "Question: what is the colour of the sky? Answer: blue, most of the day.",
    "once upon a time there was a small house in the wood",
    "yes. no. maybe! the answer is not known, but we can guess it.",
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"a test tried to reach {address}")
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


def make_tokenizer(bos: bool = True) -> Any:
    """Return a byte-level BPE tokenizer with merges and EOS, and with BOS by default."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=360, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(TEXTS, trainer)
    if bos:
        bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"bos_token": "<s>"} if bos else {}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>", pad_token="<pad>", **names)


@pytest.fixture
def tokenizer() -> Any:
    """Return a tokenizer for one test: a run may set its chat template."""
    return make_tokenizer()


def make_model(architecture: str = "llama", seed: int = 0, **changes: Any) -> Any:
    """Return a tiny random model in fp32."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": 360,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **changes,
    }
    config = transformers.AutoConfig.for_model(architecture, **settings)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():  # with the default initialisation, all logits are similar
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture
def model() -> Any:
    return make_model()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


PAIRS = [
    {"prompt": "the cat", "chosen": " sat on the mat", "rejected": " ran over the hill"},
    {"prompt": "Question: what is the", "chosen": " colour of the sky?", "rejected": " answer? maybe!"},
    {"prompt": "once upon a time", "chosen": " there was a house", "rejected": " no"},
    {"prompt": "a dog", "chosen": " looked at the moon and sat", "rejected": " found the river in the wood"},
    {"prompt": "we can", "chosen": " guess it.", "rejected": " not."},
    {"prompt": "the answer is", "chosen": " blue", "rejected": " not known, but we can guess"},
    {"prompt": "most of the day", "chosen": " the cat sat", "rejected": " the dog ran to the river"},
    {"prompt": "there was a small", "chosen": " house", "rejected": " cat on the hill over the wood"},
]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "pairs.jsonl", PAIRS)


@pytest.fixture
def make_groups() -> Callable[..., list[TokenGroup]]:
    return random_groups


def random_groups(
    n: int, responses: int = 2, seed: int = 0, vocabulary: int = 360, longest: int = 8
) -> list[TokenGroup]:
    """Return groups of random ids with judgements between all pairs of responses."""
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> Any:
        length = int(torch.randint(low, high, (), generator=generator))
        return torch.randint(3, vocabulary, (length,), generator=generator, dtype=torch.int32).numpy()

    return [
        TokenGroup(
            ids(1, 12),
            tuple(ids(1, longest + 1) for _ in range(responses)),
            tuple(Judgement(b, w) for b in range(responses) for w in range(b + 1, responses)),
            ranks=tuple(float(i + 1) for i in range(responses)),
            origin=f"toy:{number + 1}",
        )
        for number in range(n)
    ]


@pytest.fixture
def shared() -> Path:
    """The folder `shared` next to the project, with a pretrained model and human preferences."""
    if not SHARED.is_dir():
        pytest.skip("the folder shared with model and data does not exist")
    return SHARED


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
