"""Qwen3 (arXiv 2505.09388): Llama with a norm of every head's queries and of its keys."""

import dataclasses

from scpo_jax.models import llama
from scpo_jax.models.llama import (
    HF_IGNORED,
    HF_NAMES,
    HF_RENAMES,
    READS,
    Network,
    max_positions,
    unsupported,
)

__all__ = [
    "HF_ARCHITECTURE", "HF_IGNORED", "HF_NAMES", "HF_RENAMES", "READS", "Network", "Settings", "max_positions",
    "unsupported",
]  # fmt: skip

HF_ARCHITECTURE = "Qwen3ForSequenceClassification"


@dataclasses.dataclass(frozen=True)
class Settings(llama.Settings):
    """The keys of `config.json` that define the structure, with transformers' defaults for those it omits."""

    vocab_size: int = 151936
    num_key_value_heads: int | None = 32
    head_dim: int | None = 128
    intermediate_size: int = 22016
    max_position_embeddings: int = 32768

    head_norms = True
