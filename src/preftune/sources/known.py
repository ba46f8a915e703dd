"""Well-known data sets of the Hub: the part that a name without parts means, and columns that need a name.

The names of splits, configs and columns are those of the data set cards on huggingface.co.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Known:
    """What preftune knows about one data set.

    split     the split of a name without parts
    config    the config of a name without parts, or ""
    folders   {part of a name: folder that it means}, for files that belong to no config
    columns   data.columns, unless the user sets it
    advice    a setting that most users want, with the reason
    """

    split: str = "train"
    config: str = ""
    folders: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    columns: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    advice: str = ""


RATED = "each row has one rated response: set data.aspect=helpfulness, or another rating, to compare them"
PAPER = "the DPO paper uses data.where=[score_ratio >= 2]"
SAFE = "data.aspect=helpful or data.aspect=safe chooses one of its two judgements"
GOOD = "for preftune sft, select the good responses: data.where=[is_safe == true]"
H4 = Known("train_prefs")
SFT = Known("train_sft")

KNOWN: Mapping[str, Known] = {
    "Anthropic/hh-rlhf": Known(),
    "stanfordnlp/SHP": Known(advice=PAPER),
    "stanfordnlp/SHP-2": Known(advice=PAPER),
    "nvidia/HelpSteer": Known(advice=RATED),
    "nvidia/HelpSteer2": Known(
        folders={"preference": "preference", "disagreements": "disagreements"},
        advice=f"{RATED}; nvidia/HelpSteer2:preference has pairs",
    ),
    "nvidia/HelpSteer3": Known(config="preference"),
    "PKU-Alignment/PKU-SafeRLHF": Known(config="default", advice=SAFE),
    "PKU-Alignment/PKU-SafeRLHF-10K": Known(advice=SAFE),
    "PKU-Alignment/PKU-SafeRLHF-30K": Known(advice=SAFE),
    "PKU-Alignment/BeaverTails": Known("330k_train", columns={"label": "is_safe"}, advice=GOOD),
    "lmsys/chatbot_arena_conversations": Known(),
    "lmsys/mt_bench_human_judgments": Known("human"),
    "lmarena-ai/arena-human-preference-55k": Known(),
    "lmarena-ai/arena-human-preference-100k": Known(),
    "lmarena-ai/arena-human-preference-140k": Known(),
    "Intel/orca_dpo_pairs": Known(),
    "argilla/distilabel-intel-orca-dpo-pairs": Known(),
    "argilla/ultrafeedback-binarized-preferences": Known(),
    "argilla/ultrafeedback-binarized-preferences-cleaned": Known(),
    "argilla/dpo-mix-7k": Known(),
    "argilla/distilabel-capybara-dpo-7k-binarized": Known(),
    "argilla/kto-mix-15k": Known(),
    "openbmb/UltraFeedback": Known(),
    "openbmb/UltraInteract_pair": Known(),
    "openbmb/UltraInteract_sft": Known(),
    "berkeley-nest/Nectar": Known(),
    "allenai/llama-3.1-tulu-3-8b-preference-mixture": Known(),
    "allenai/reward-bench": Known("filtered"),
    "allenai/reward-bench-2": Known("test"),
    "HuggingFaceH4/ultrafeedback_binarized": H4,
    "HuggingFaceH4/orca_dpo_pairs": H4,
    "HuggingFaceH4/cai-conversation-harmless": H4,
    "HuggingFaceH4/ultrachat_200k": SFT,
    "HuggingFaceH4/deita-10k-v0-sft": SFT,
    "HuggingFaceH4/stack-exchange-preferences": Known(),
    "lvwerra/stack-exchange-paired": Known(folders={name: f"data/{name}" for name in ("rl", "reward", "finetune")}),
    "snorkelai/Snorkel-Mistral-PairRM-DPO-Dataset": Known("train_iteration_1"),
    "trl-lib/ultrafeedback_binarized": Known(),
    "trl-lib/tldr-preference": Known(),
    "trl-lib/hh-rlhf-helpful-base": Known(),
    "trl-lib/kto-mix-14k": Known(),
    "openai/summarize_from_feedback": Known(config="comparisons"),
    "openai/webgpt_comparisons": Known(),
    "OpenAssistant/oasst1": Known(),
    "OpenAssistant/oasst2": Known(),
    "tatsu-lab/alpaca_farm": Known("preference", config="alpaca_human_preference"),
    "databricks/databricks-dolly-15k": Known(columns={"input": "context"}),
    "CohereForAI/aya_dataset": Known(columns={"prompt": "inputs", "completion": "targets"}),
    "stingning/ultrachat": Known(columns={"messages": "data"}),
    "prometheus-eval/Feedback-Collection": Known(),
    "prometheus-eval/Preference-Collection": Known(),
}
_BY_LOWER_NAME = {name.lower(): facts for name, facts in KNOWN.items()}


def known_dataset(name: str) -> Known | None:
    """Return what is known about the data set of a name, which may have parts, or None. Case does not matter."""
    return _BY_LOWER_NAME.get(name.partition(":")[0].lower())


def columns_of(source: str | Sequence[str]) -> Mapping[str, str]:
    """Return data.columns for a source if all its names are parts of one well-known data set, else {}."""
    names = {re.split(r"[:@[]", name)[0] for name in ([source] if isinstance(source, str) else source)}
    if len(names) != 1 or Path(name := names.pop()).exists():
        return {}
    facts = known_dataset(name)
    return facts.columns if facts else {}
