"""What all ranks of a test need, imported once by the process that they are forked from."""

import peft  # noqa: F401
import torch.distributed  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401

import preftune.methods.dpo
import preftune.methods.reward
import preftune.methods.sft
import preftune.ranks.join  # noqa: F401
