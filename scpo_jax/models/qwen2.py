"""Qwen2 (arXiv 2407.10671): Llama with biases of queries, keys and values."""

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

HF_ARCHITECTURE = "Qwen2ForSequenceClassification"


@dataclasses.dataclass(frozen=True)
class Settings(llama.Settings):
    """The keys of `config.json` that define the structure, with transformers' defaults for those it omits."""

    vocab_size: int = 151936
    num_key_value_heads: int | None = 32
    intermediate_size: int = 22016
    max_position_embeddings: int = 32768

    @property
    def biases(self) -> tuple[bool, bool]:
        """Whatever `attention_bias` says: transformers does not look at it either."""
        return True, False
