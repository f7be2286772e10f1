"""DeBERTa v2 and v3 with a context pooler and a one-output score head (DebertaV2ForSequenceClassification).

Disentangled attention (arXiv 2006.03654, section 3.1): beside content to content, each score has a term of the query's
content with the embedding of the distance (c2p) and one of that embedding with the key's content (p2c). Version 3
(arXiv 2111.09543) shares the projections with the content and buckets the distances logarithmically.
"""

import dataclasses
import functools

from flax import nnx

from scpo_jax.models import layers, relative

HF_ARCHITECTURE = "DebertaV2ForSequenceClassification"
READS = "first"

# Our module -> theirs; "{}" is the layer. How the leaves (kernel, scale, ...) map stands in `hf.LEAVES`.
HF_NAMES = {
    "embeddings/word": "deberta.embeddings.word_embeddings",
    "embeddings/position": "deberta.embeddings.position_embeddings",
    "embeddings/token_type": "deberta.embeddings.token_type_embeddings",
    "embeddings/projection": "deberta.embeddings.embed_proj",
    "embeddings/norm": "deberta.embeddings.LayerNorm",
    "relative": "deberta.encoder.rel_embeddings",
    "relative_norm": "deberta.encoder.LayerNorm",
    "layers/attention/query": "deberta.encoder.layer.{}.attention.self.query_proj",
    "layers/attention/key": "deberta.encoder.layer.{}.attention.self.key_proj",
    "layers/attention/value": "deberta.encoder.layer.{}.attention.self.value_proj",
    "layers/attention/position_key": "deberta.encoder.layer.{}.attention.self.pos_key_proj",
    "layers/attention/position_query": "deberta.encoder.layer.{}.attention.self.pos_query_proj",
    "layers/attention/output": "deberta.encoder.layer.{}.attention.output.dense",
    "layers/attention/norm": "deberta.encoder.layer.{}.attention.output.LayerNorm",
    "layers/feed_forward/input": "deberta.encoder.layer.{}.intermediate.dense",
    "layers/feed_forward/output": "deberta.encoder.layer.{}.output.dense",
    "layers/feed_forward/norm": "deberta.encoder.layer.{}.output.LayerNorm",
    "pooler": "pooler.dense",
    "score": "classifier",
}

# Regex -> replacement that brings the names of other checkpoints into the form above (bare encoders have no prefix).
HF_RENAMES = ((r"^(embeddings|encoder)\.", r"deberta.\1."),)

# What a checkpoint may hold beside: a buffer, heads of the pretraining tasks, and the position table that Microsoft's
# files carry even where `position_biased_input` is false and nothing reads it.
HF_IGNORED = (
    r"deberta\.embeddings\.position_ids",
    r"deberta\.embeddings\.position_embeddings\.weight",
    r"(cls|lm_predictions|mask_predictions)\..*",
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The keys of `config.json` that define the structure, with transformers' defaults for those it omits."""

    vocab_size: int = 128100
    hidden_size: int = 1536
    num_hidden_layers: int = 24
    num_attention_heads: int = 24
    intermediate_size: int = 6144
    embedding_size: int | None = None  # None: hidden_size
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    pooler_dropout: float = 0.0
    pooler_hidden_act: str = "gelu"
    cls_dropout: float | None = None  # None: hidden_dropout_prob
    max_position_embeddings: int = 512
    type_vocab_size: int = 0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-7
    pad_token_id: int | None = 0
    position_biased_input: bool = True
    relative_attention: bool = False
    max_relative_positions: int = -1  # below 1: max_position_embeddings
    position_buckets: int = -1  # below 1: every distance has its own row
    pos_att_type: str | list | None = None  # "p2c|c2p" or ["p2c", "c2p"]
    share_att_key: bool = False
    norm_rel_ebd: str = "none"  # "layer_norm" or "none"
    conv_kernel_size: int = 0

    @property
    def terms(self) -> tuple[str, ...]:
        """The relative terms, as in `pos_att_type`."""
        stated = self.pos_att_type or ()
        parts = stated.split("|") if isinstance(stated, str) else stated
        return tuple(str(part).strip().lower() for part in parts)

    @property
    def largest_distance(self) -> int:
        """Distances from here on share the last row of the relative table."""
        return self.max_position_embeddings if self.max_relative_positions < 1 else self.max_relative_positions

    @property
    def span(self) -> int:
        """Half the number of rows of the relative table."""
        return self.position_buckets if self.position_buckets > 0 else self.largest_distance


def unsupported(settings: Settings) -> str | None:
    """What this module cannot compute of a checkpoint with these settings, or None."""
    if settings.conv_kernel_size > 0:
        return f"conv_kernel_size {settings.conv_kernel_size} (the convolution layer of deberta-v2-xlarge)"
    if not set(settings.terms) <= {"c2p", "p2c"}:
        return f"pos_att_type {settings.pos_att_type!r} (only c2p and p2c)"
    buckets, largest = settings.position_buckets, settings.largest_distance
    if buckets > 0 and not 2 <= buckets < 2 * largest - 2:
        return f"position_buckets {buckets} for distances up to {largest}"
    if settings.norm_rel_ebd not in ("none", "layer_norm"):
        return f"norm_rel_ebd {settings.norm_rel_ebd!r} (only none and layer_norm)"
    if settings.pooler_hidden_act not in layers.ACTIVATIONS:
        return f"pooler_hidden_act {settings.pooler_hidden_act!r} (known: {', '.join(layers.ACTIVATIONS)})"
    return None


def max_positions(settings: Settings) -> int | None:
    """The most tokens a text may have; None where positions are only relative."""
    return settings.max_position_embeddings if settings.position_biased_input else None


class Embeddings(nnx.Module):
    """Word embeddings, plus position and token type where the model has them; projected to the width and normed."""

    def __init__(self, settings: Settings, rngs: nnx.Rngs):
        std, inner = settings.initializer_range, settings.hidden_size
        width = settings.embedding_size or inner
        make = functools.partial(layers.Embedding, width=width, std=std, rngs=rngs)
        self.word = make(settings.vocab_size, padding_id=settings.pad_token_id)
        self.position = make(settings.max_position_embeddings) if settings.position_biased_input else None
        self.token_type = make(settings.type_vocab_size) if settings.type_vocab_size else None
        self.projection = layers.Linear(width, inner, std, rngs, use_bias=False) if width != inner else None
        self.norm = layers.Norm(inner, settings.layer_norm_eps)
        self.rate = settings.hidden_dropout_prob

    def __call__(self, input_ids, token_type_ids, positions, key=None):
        x = self.word(input_ids)
        if self.position is not None:
            x = x + self.position(positions)
        if self.token_type is not None:
            x = x + self.token_type(token_type_ids)
        if self.projection is not None:
            x = self.projection(x)
        return layers.dropout(self.norm(x), self.rate, key)


class Attention(nnx.Module):
    """Disentangled attention within segments, then dropout, residual and norm."""

    def __init__(self, settings: Settings, rngs: nnx.Rngs):
        width = settings.hidden_size
        make = functools.partial(layers.Linear, width, width, settings.initializer_range, rngs)
        self.query, self.key, self.value, self.output = make(), make(), make(), make()
        self.terms = settings.terms
        own = () if settings.share_att_key or not settings.relative_attention else settings.terms
        self.position_key = make() if "c2p" in own else None
        self.position_query = make() if "p2c" in own else None
        self.norm = layers.Norm(width, settings.layer_norm_eps)
        self.heads = settings.num_attention_heads
        self.rate, self.weight_rate = settings.hidden_dropout_prob, settings.attention_probs_dropout_prob

    def project_table(self, table):
        """Rows of the relative table `[P, D]` -> keys for c2p and queries for p2c, `[P, H, K]` each or None."""
        key = (self.position_key or self.key)(table) if "c2p" in self.terms else None
        query = (self.position_query or self.query)(table) if "p2c" in self.terms else None
        return tuple(None if x is None else layers.heads(x, self.heads) for x in (key, query))

    def __call__(self, x, mask, table, index, key=None, read=None):
        table_key, weight_key, output_key = layers.split_key(key, 3)
        asking, mask = layers.queries(x, read), layers.queries(mask, read)
        query = layers.heads(self.query(asking), self.heads)
        keys, value = (layers.rows_of(layers.heads(f(x), self.heads), read) for f in (self.key, self.value))
        # one term of the scale for the content and one for each relative term, used or not
        scale = (query.shape[-1] * (1 + len(self.terms))) ** -0.5
        if table is None:
            scores = layers.products(query, keys) * scale
            mixed = layers.attend(scores, value, mask, self.weight_rate, weight_key)
        else:
            attention = relative.attention if read is None else relative.attention_of_reads
            index = index if read is None else index[read.columns]
            tables = self.project_table(layers.dropout(table, self.rate, table_key))
            mixed = attention(query, keys, value, *tables, index, mask, scale, self.weight_rate, weight_key)
        return self.norm(asking + layers.dropout(self.output(mixed), self.rate, output_key))


class Network(nnx.Module):
    """Encoder, context pooler and score head."""

    def __init__(self, settings: Settings, rngs: nnx.Rngs):
        width, std = settings.hidden_size, settings.initializer_range
        self.embeddings = Embeddings(settings, rngs)
        self.relative = layers.Embedding(2 * settings.span, width, std, rngs) if settings.relative_attention else None
        normed = settings.norm_rel_ebd == "layer_norm"
        self.relative_norm = layers.Norm(width, settings.layer_norm_eps) if normed else None
        self.layers = layers.stack(Attention, settings, rngs)
        self.pooler = layers.Linear(width, width, std, rngs)
        self.score = layers.Linear(width, 1, std, rngs)
        self.settings = settings

    def relative_table(self, length: int, dtype):
        """The relative rows that `length` columns need `[P, D]` and their index `[T, T]`; None twice without them."""
        if self.relative is None:
            return None, None
        settings = self.settings
        largest = settings.largest_distance
        first, end, index = relative.table_rows(length, settings.span, settings.position_buckets, largest)
        rows = self.relative.embedding[...][first:end]
        return (rows if self.relative_norm is None else self.relative_norm(rows)).astype(dtype), index

    def __call__(self, input_ids, token_type_ids, segment_ids, positions, key, dtype, options, read=None):
        """`[R, T]` int32 four times -> hidden states of type `dtype`, `[S, D]` with `read`; see `layers.run_stack`."""
        embedding_key, layers_key = layers.split_key(key, 2)
        x = self.embeddings(input_ids, token_type_ids, positions, embedding_key).astype(dtype)
        table, index = self.relative_table(input_ids.shape[1], dtype)
        arguments = (layers.same_segment(segment_ids), table, index)
        return layers.run_stack(self.layers, x, arguments, layers_key, options, read)

    def pool(self, first, key=None):
        """Hidden states of the first tokens `[S, D]` -> pooled `[S, D]`."""
        settings = self.settings
        context_key, pooled_key = layers.split_key(key, 2)
        x = self.pooler(layers.dropout(first, settings.pooler_dropout, context_key))
        rate = settings.hidden_dropout_prob if settings.cls_dropout is None else settings.cls_dropout
        return layers.dropout(layers.ACTIVATIONS[settings.pooler_hidden_act](x), rate, pooled_key)
