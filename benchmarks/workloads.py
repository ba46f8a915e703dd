"""Models and data for the speed benchmarks: known shapes with random weights, and token ids of five kinds of data.

hh        dialogues of HH-RLHF harmless (give the file with --hh)
mix       long prompts and long responses (any preference file, with --mix)
groups    four responses and six judgements per prompt, lengths like UltraFeedback's; random ids
tldr      a long prompt and two short summaries; random ids
like-hh   lengths like those of hh, without the file; random ids

As a command, it writes a model folder with the tokenizer of another model:

    python benchmarks/workloads.py 44m --tokenizer stories260k --out 44m
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from preftune.chat.render import Renderer
from preftune.data.read_groups import read_groups
from preftune.data.tokenize_groups import Limits, tokenize
from preftune.types import Judgement, TokenGroup, content

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("llama", {"vocab_size": 4096, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2,
                       "num_attention_heads": 4, "num_key_value_heads": 2}),
    "44m": ("llama", {"vocab_size": 32000, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8,
                      "num_attention_heads": 8, "num_key_value_heads": 4}),
    "135m": ("llama", {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
                       "num_attention_heads": 9, "num_key_value_heads": 3}),
    "0.5b": ("qwen2", {"vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
                       "num_attention_heads": 14, "num_key_value_heads": 2}),
    "1b": ("llama", {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
                     "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64}),
    "8b": ("llama", {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                     "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False}),
}  # fmt: skip
LIMIT = 1024


def build_model(shape: str, dtype: torch.dtype, device: str) -> Any:
    """Return a model of this shape with random weights, which are the same on every call, or the model of a folder."""
    if shape not in SHAPES:
        model = transformers.AutoModelForCausalLM.from_pretrained(shape, dtype=dtype).to(device)
        model.config.use_cache = False
        return model.eval()
    kind, settings = SHAPES[shape]
    config = transformers.AutoConfig.for_model(
        kind, **{"tie_word_embeddings": True, "max_position_embeddings": 4096, **settings}
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.config.use_cache = False
    return model.eval()


def build_groups(
    kind: str, n: int, files: dict[str, str | None], model: str, max_length: int = LIMIT
) -> list[TokenGroup]:
    """Return `n` groups in a fixed random order. No sequence is longer than LIMIT, or `max_length` if it is read.

    `model`: a shape, or a folder whose tokenizer is used
    """
    order = np.random.default_rng(0)
    if kind in ("hh", "mix"):
        source = files.get(kind)
        if source is None:
            raise SystemExit(f"--data {kind} needs --{kind} FILE")
        groups = _tokenized(source, model, max_length)
        return [groups[int(i)] for i in order.permutation(len(groups))[:n]]
    vocabulary = SHAPES[model][1]["vocab_size"]
    judgements = (
        tuple(Judgement(a, b) for a, b in combinations(range(4), 2)) if kind == "groups" else (Judgement(0, 1),)
    )
    prompt, response, responses = {"groups": (90, 190, 4), "tldr": (353, 32, 2), "like-hh": (120, 45, 2)}[kind]

    def ids(mean: float, longest: int) -> np.ndarray:
        length = order.lognormal(np.log(mean) - 0.32, 0.8)  # sigma 0.8: a long tail, as real lengths have
        return order.integers(8, vocabulary, max(2, min(int(length), longest)), dtype=np.int32)

    return [
        TokenGroup(ids(prompt, LIMIT // 2), tuple(ids(response, LIMIT // 2) for _ in range(responses)), judgements)
        for _ in range(n)
    ]


def _tokenized(source: str, model: str, max_length: int) -> list[TokenGroup]:
    """Tokenise a preference file with the tokenizer of a model folder, or with a byte-level BPE trained on the file."""
    groups, account = read_groups(source)
    if model not in SHAPES:
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        return tokenize(groups, Renderer.of(tokenizer, []), Limits(max_length), account)
    vocabulary = min(SHAPES[model][1]["vocab_size"], 32000)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([content(text) for g in groups for text in (g.prompt, *g.responses)], trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}" + (
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    return tokenize(groups, Renderer.of(tokenizer, []), Limits(max_length), account)


def as_separate_pairs(groups: Sequence[TokenGroup]) -> list[TokenGroup]:
    """Return every judgement as a separate pair, as libraries without groups need them."""
    return [
        TokenGroup(g.prompt_ids, (g.response_ids[j.better], g.response_ids[j.worse]), (Judgement(0, 1),))
        for g in groups
        for j in g.judgements
    ]


def useful_flops(groups: Sequence[TokenGroup], model: Any, cached: bool, adapter: bool = False) -> float:
    """Return the floating-point operations (2 x multiply-adds) that a fine-tuning step on `groups` needs at least.

    Counts every prompt and every response once, the head at scored tokens only, attention over visible pairs, and no
    recomputation or padding. The backward pass counts as two forward passes (one for products with frozen weights if
    an `adapter` is trained; its own products are not counted), a reference that is not `cached` as one more.
    """
    config = model.config
    body = sum(p.numel() for p in model.model.layers.parameters())
    head = config.vocab_size * config.hidden_size
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    products = attention = 0.0
    for g in groups:
        prompt, lengths = len(g.prompt_ids), [len(r) - 1 for r in g.response_ids]
        seen = prompt**2 / 2 + sum(prompt * n + n**2 / 2 for n in lengths)
        products += 2 * body * (prompt + sum(lengths)) + 2 * head * sum(len(r) for r in g.response_ids)
        attention += 4 * config.num_hidden_layers * width * seen
    online = 0 if cached else 1
    return products * ((2 if adapter else 3) + online) + attention * (3 + online)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a shape with random weights as a model folder.")
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--tokenizer", required=True, help="folder of a model with the tokenizer to use")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    build_model(options.shape, torch.float32, "cpu").save_pretrained(options.out)
    transformers.AutoTokenizer.from_pretrained(options.tokenizer).save_pretrained(options.out)


if __name__ == "__main__":
    main()
