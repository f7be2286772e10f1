"""BERT with a pooler and a one-output score head (BertForSequenceClassification, arXiv 1810.04805).

Also the form of MiniLM and other sentence encoders, whose checkpoints have no head.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from scpo_jax.models import layers

HF_ARCHITECTURE = "BertForSequenceClassification"
READS = "first"

# Our module -> theirs; "{}" is the layer. How the leaves (kernel, scale, ...) map stands in `hf.LEAVES`.
HF_NAMES = {
    "embeddings/word": "bert.embeddings.word_embeddings",
    "embeddings/position": "bert.embeddings.position_embeddings",
    "embeddings/token_type": "bert.embeddings.token_type_embeddings",
    "embeddings/norm": "bert.embeddings.LayerNorm",
    "layers/attention/query": "bert.encoder.layer.{}.attention.self.query",
    "layers/attention/key": "bert.encoder.layer.{}.attention.self.key",
    "layers/attention/value": "bert.encoder.layer.{}.attention.self.value",
    "layers/attention/output": "bert.encoder.layer.{}.attention.output.dense",
    "layers/attention/norm": "bert.encoder.layer.{}.attention.output.LayerNorm",
    "layers/feed_forward/input": "bert.encoder.layer.{}.intermediate.dense",
    "layers/feed_forward/output": "bert.encoder.layer.{}.output.dense",
    "layers/feed_forward/norm": "bert.encoder.layer.{}.output.LayerNorm",
    "pooler": "bert.pooler.dense",
    "score": "classifier",
}

# Regex -> replacement that brings the names of other checkpoints into the form above: bare encoders have no prefix,
# and checkpoints of the first releases call the parts of a norm gamma and beta.
HF_RENAMES = (
    (r"^(embeddings|encoder|pooler)\.", r"bert.\1."),
    (r"LayerNorm\.gamma$", "LayerNorm.weight"),
    (r"LayerNorm\.beta$", "LayerNorm.bias"),
)

# What a checkpoint may hold beside: buffers of constants, and heads of the pretraining tasks.
HF_IGNORED = (r"bert\.embeddings\.(position|token_type)_ids", r"cls\.(predictions|seq_relationship)\..*")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The keys of `config.json` that define the structure, with transformers' defaults for those it omits."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None  # None: hidden_dropout_prob
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    position_embedding_type: str | None = "absolute"
    is_decoder: bool = False


def unsupported(settings: Settings) -> str | None:
    """What this module cannot compute of a checkpoint with these settings, or None."""
    if settings.position_embedding_type not in (None, "absolute"):
        return f"position_embedding_type {settings.position_embedding_type!r} (only absolute)"
    if settings.type_vocab_size < 1:
        return f"type_vocab_size {settings.type_vocab_size} (at least 1)"
    if settings.is_decoder:
        return "is_decoder (only bidirectional attention)"
    return None


def max_positions(settings: Settings) -> int | None:
    """The most tokens a text may have."""
    return settings.max_position_embeddings


class Embeddings(nnx.Module):
    """Word, position and token type embeddings, added and normed."""

    def __init__(self, settings: Settings, rngs: nnx.Rngs):
        width, std = settings.hidden_size, settings.initializer_range
        self.word = layers.Embedding(settings.vocab_size, width, std, rngs, settings.pad_token_id)
        self.position = layers.Embedding(settings.max_position_embeddings, width, std, rngs)
        self.token_type = layers.Embedding(settings.type_vocab_size, width, std, rngs)
        self.norm = layers.Norm(width, settings.layer_norm_eps)
        self.rate = settings.hidden_dropout_prob

    def __call__(self, input_ids, token_type_ids, positions, key=None):
        x = self.word(input_ids) + self.token_type(token_type_ids) + self.position(positions)
        return layers.dropout(self.norm(x), self.rate, key)


class Attention(nnx.Module):
    """Multi-head attention within segments, then dropout, residual and norm."""

    def __init__(self, settings: Settings, rngs: nnx.Rngs):
        width, std = settings.hidden_size, settings.initializer_range
        self.query = layers.Linear(width, width, std, rngs)
        self.key = layers.Linear(width, width, std, rngs)
        self.value = layers.Linear(width, width, std, rngs)
        self.output = layers.Linear(width, width, std, rngs)
        self.norm = layers.Norm(width, settings.layer_norm_eps)
        self.heads = settings.num_attention_heads
        self.rate, self.weight_rate = settings.hidden_dropout_prob, settings.attention_probs_dropout_prob

    def __call__(self, x, mask, key=None, read=None):
        weight_key, output_key = layers.split_key(key, 2)
        asking, mask = layers.queries(x, read), layers.queries(mask, read)
        query = layers.heads(self.query(asking), self.heads)
        keys, value = (layers.rows_of(layers.heads(f(x), self.heads), read) for f in (self.key, self.value))
        scores = layers.products(query, keys) * query.shape[-1] ** -0.5
        mixed = layers.attend(scores, value, mask, self.weight_rate, weight_key)
        return self.norm(asking + layers.dropout(self.output(mixed), self.rate, output_key))


class Network(nnx.Module):
    """Encoder, pooler and score head."""

    def __init__(self, settings: Settings, rngs: nnx.Rngs):
        width, std = settings.hidden_size, settings.initializer_range
        self.embeddings = Embeddings(settings, rngs)
        self.layers = layers.stack(Attention, settings, rngs)
        self.pooler = layers.Linear(width, width, std, rngs)
        self.score = layers.Linear(width, 1, std, rngs)
        stated = settings.classifier_dropout
        self.rate = settings.hidden_dropout_prob if stated is None else stated

    def __call__(self, input_ids, token_type_ids, segment_ids, positions, key, dtype, options, read=None):
        """`[R, T]` int32 four times -> hidden states of type `dtype`, `[S, D]` with `read`; see `layers.run_stack`."""
        embedding_key, layers_key = layers.split_key(key, 2)
        x = self.embeddings(input_ids, token_type_ids, positions, embedding_key).astype(dtype)
        return layers.run_stack(self.layers, x, (layers.same_segment(segment_ids),), layers_key, options, read)

    def pool(self, first, key=None):
        """Hidden states of the first tokens `[S, D]` -> pooled `[S, D]`."""
        return layers.dropout(jnp.tanh(self.pooler(first)), self.rate, key)
