"""Llama with a one-output score head (LlamaForSequenceClassification, arXiv 2407.21783), and what Qwen2 and Qwen3 need.

A causal model: the score is read at a text's last token, the only one that has seen all of it. As a language model it
scores every next token too, and it goes on from keys and values that it has in a cache.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from scpo_jax.models import layers, rotary

HF_ARCHITECTURE = "LlamaForSequenceClassification"
LARGEST_HEAD = 2**14
READS = "last"

# Our module -> theirs; "{}" is the layer. How the leaves (kernel, scale, ...) map stands in `hf.LEAVES`.
HF_NAMES = {
    "embeddings/word": "model.embed_tokens",
    "layers/attention/norm": "model.layers.{}.input_layernorm",
    "layers/attention/query": "model.layers.{}.self_attn.q_proj",
    "layers/attention/key": "model.layers.{}.self_attn.k_proj",
    "layers/attention/value": "model.layers.{}.self_attn.v_proj",
    "layers/attention/query_norm": "model.layers.{}.self_attn.q_norm",
    "layers/attention/key_norm": "model.layers.{}.self_attn.k_norm",
    "layers/attention/output": "model.layers.{}.self_attn.o_proj",
    "layers/feed_forward/norm": "model.layers.{}.post_attention_layernorm",
    "layers/feed_forward/gate": "model.layers.{}.mlp.gate_proj",
    "layers/feed_forward/input": "model.layers.{}.mlp.up_proj",
    "layers/feed_forward/output": "model.layers.{}.mlp.down_proj",
    "norm": "model.norm",
    "score": "score",
    "lm_head": "lm_head",
}

# Regex -> replacement that brings the names of other checkpoints into the form above (bare models have no prefix).
HF_RENAMES = ((r"^(embed_tokens|layers|norm)\.", r"model.\1."),)

# What a checkpoint may hold beside: the head of the language model, and buffers of constants.
HF_IGNORED = (r"lm_head\.weight", r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The keys of `config.json` that define the structure, with transformers' defaults for those it omits."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None  # None: num_attention_heads
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    intermediate_size: int = 11008
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    attention_dropout: float | None = 0.0
    max_position_embeddings: int = 2048
    rope_theta: float | None = None
    rope_scaling: dict | None = None
    rope_parameters: dict | None = None
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False
    use_sliding_window: bool = False
    layer_types: list | None = None

    head_norms = False  # Qwen3 norms every head's queries and keys

    @property
    def biases(self) -> tuple[bool, bool]:
        """Whether queries, keys and values have biases, and whether the output of attention has."""
        return self.attention_bias, self.attention_bias

    @property
    def key_heads(self) -> int:
        """Heads of keys and values; consecutive heads of queries share one."""
        return self.num_attention_heads if self.num_key_value_heads is None else self.num_key_value_heads

    @property
    def head_size(self) -> int:
        """K, of queries, keys and values."""
        return self.hidden_size // self.num_attention_heads if self.head_dim is None else self.head_dim

    @property
    def rope(self) -> dict:
        """The parameters of the rotary embeddings."""
        stated = self.rope_theta, self.rope_scaling, self.rope_parameters
        return rotary.parameters(*stated, self.max_position_embeddings)


def unsupported(settings: Settings) -> str | None:
    """What this module cannot compute of a checkpoint with these settings, or None."""
    if settings.key_heads < 1 or settings.num_attention_heads % settings.key_heads:
        return f"{settings.num_attention_heads} heads of queries and {settings.key_heads} of keys (not a multiple)"
    if not 2 <= settings.head_size <= LARGEST_HEAD or settings.head_size % 2:
        return f"head_dim {settings.head_size} (an even number of at most {LARGEST_HEAD})"
    if settings.use_sliding_window or any(kind != "full_attention" for kind in settings.layer_types or ()):
        return "sliding windows (use_sliding_window, layer_types): only full attention"
    if settings.attention_dropout:
        return f"attention_dropout {settings.attention_dropout} (only 0)"
    return rotary.unsupported(settings.rope)


def max_positions(settings: Settings) -> int | None:
    """The most tokens a text may have: beyond those it was made for, a model's scores mean nothing."""
    return settings.max_position_embeddings


class Embeddings(nnx.Module):
    """Word embeddings; positions come in with attention."""

    def __init__(self, settings: Settings, rngs: nnx.Rngs):
        width, std = settings.hidden_size, settings.initializer_range
        self.word = layers.Embedding(settings.vocab_size, width, std, rngs, settings.pad_token_id)

    def __call__(self, input_ids):
        return self.word(input_ids)


class Attention(nnx.Module):
    """Norm, grouped-query attention (arXiv 2305.13245) to earlier tokens of the segment, then residual."""

    def __init__(self, settings: Settings, rngs: nnx.Rngs):
        width, size = settings.hidden_size, settings.head_size
        self.heads, self.key_heads = settings.num_attention_heads, settings.key_heads
        make = functools.partial(layers.Linear, std=settings.initializer_range, rngs=rngs)
        bias, output_bias = settings.biases
        self.norm = layers.RMSNorm(width, settings.rms_norm_eps)
        self.query = make(width, self.heads * size, use_bias=bias)
        self.key = make(width, self.key_heads * size, use_bias=bias)
        self.value = make(width, self.key_heads * size, use_bias=bias)
        self.query_norm = layers.RMSNorm(size, settings.rms_norm_eps) if settings.head_norms else None
        self.key_norm = layers.RMSNorm(size, settings.rms_norm_eps) if settings.head_norms else None
        self.output = make(self.heads * size, width, use_bias=output_bias)

    def __call__(self, x, mask, rotation, key=None, read=None):
        query_key, output_key, *own = layers.split_key(key, 4)
        query, keys, value = self.project(x, rotation, (query_key, *own), read)
        mixed = attend(query, layers.rows_of(keys, read), layers.rows_of(value, read), layers.queries(mask, read))
        return layers.queries(x, read) + self.output(mixed.reshape(*mixed.shape[:2], -1), output_key)

    def cached(self, x, mask, rotation, cache, layer, column):
        """As the call, of tokens `[R, Q]` from `column` on; returns the cache with their keys and values in it too.

        One token a row sees what `mask [R, 1, C]` says of the cache; with a square mask they begin it and see each
        other. `layer` is this one's number in a cache of several, None in its own.
        """
        query, keys, values = self.project(x, rotation, (None,) * 3)
        new = {"keys": jnp.moveaxis(keys, 1, -1), "values": jnp.moveaxis(values, 1, 2)}
        places = {"keys": (0, 0, 0, column), "values": (0, 0, column, 0)}
        cache = {name: put(cache[name], new[name], layer, places[name]) for name in new}
        if mask.shape[1] == mask.shape[2]:
            mixed = attend(query, keys, values, mask)
        else:
            own = cache if layer is None else {name: leaf[layer] for name, leaf in cache.items()}
            grouped = query.reshape(len(query), self.key_heads, -1, query.shape[-1])
            mixed = attend_to(grouped, own["keys"].astype(x.dtype), own["values"].astype(x.dtype), mask)
        return x + self.output(mixed.reshape(*x.shape[:2], -1)), cache

    def project(self, x, rotation, keys, read=None):
        """Queries `[R, Q, H, K]`, keys and values `[R, T, H', K]`; `keys` are for the dropout of these three."""
        normed, (query_key, *own) = self.norm(x), keys
        query = layers.heads(self.query(layers.queries(normed, read), query_key), self.heads)
        maps = zip((self.key, self.value), own, strict=True)
        keys, value = (layers.heads(f(normed, own_key), self.key_heads) for f, own_key in maps)
        if self.query_norm is not None:
            query, keys = self.query_norm(query), self.key_norm(keys)
        query = rotary.rotate(query, *(layers.queries(table, read) for table in rotation))
        return query, rotary.rotate(keys, *rotation), value


def attend(query, keys, value, mask):
    """Softmax attention `[R, Q, H, K]` of `query` to `keys` and `value [R, T, H', K]` under `mask [R, Q, T]`.

    H is a multiple of H'. On GPUs whose cuDNN has a kernel for it, that one; the scores are then never in memory.
    """
    forms = {"default": functools.partial(jax.nn.dot_product_attention, implementation="xla"), "cpu": attend_on_cpu}
    if fusible(query):
        forms["cuda"] = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    return jax.lax.platform_dependent(query, keys, value, None, mask[:, None], **forms)


def attend_on_cpu(query, keys, value, _, mask):
    """`attend`, mask `[R, 1, Q, T]`, with the queries that share a head of keys in one product.

    On TPUs a training step by it costs a fifth more than by jax's own form.
    """
    rows, length, _, size = query.shape
    count = keys.shape[2]
    grouped = query.reshape(rows, length, count, -1, size).transpose(0, 2, 3, 1, 4).reshape(rows, count, -1, size)
    mixed = attend_to(grouped, keys.transpose(0, 2, 3, 1), value.swapaxes(1, 2), mask[:, 0])
    mixed = mixed.reshape(rows, count, -1, length, size).transpose(0, 3, 1, 2, 4)
    return mixed.reshape(query.shape)


def attend_to(query, keys, values, mask):
    """Softmax attention of `query [R, H', n * Q, K]` to `keys [R, H', K, T]` and `values [R, H', T, K]`.

    `mask [R, Q, T]` holds for all n queries of a token. The weights are normed after they have mixed the values: there
    are fewer numbers then.
    """
    shape = *query.shape[:2], -1, *mask.shape[1:]
    scores = jnp.matmul(query, keys, preferred_element_type=jnp.float32).reshape(shape) * query.shape[-1] ** -0.5
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    weights = weights.reshape(*query.shape[:3], -1)
    mixed = jnp.matmul(weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return (mixed / weights.sum(-1, keepdims=True)).astype(query.dtype)


def fusible(query) -> bool:
    """Whether cuDNN has a kernel for queries `[R, Q, H, K]`; it is asked only where there is a GPU."""
    rows, size = query.shape[1], query.shape[-1]
    narrow = query.dtype in (jnp.bfloat16, jnp.float16)
    return jax.default_backend() == "gpu" and narrow and rows > 1 and size % 8 == 0 and size <= 128


def put(cache, new, layer, place):
    """The cache of one layer, or of several and the number of this one, with `new` at `place`."""
    if layer is not None:
        new, place = new[None], (layer, *place)
    return jax.lax.dynamic_update_slice(cache, new.astype(cache.dtype), place)


class FeedForward(nnx.Module):
    """Norm, gated linear unit (SwiGLU, arXiv 2002.05202), then residual."""

    def __init__(self, settings: Settings, rngs: nnx.Rngs):
        width, inner = settings.hidden_size, settings.intermediate_size
        make = functools.partial(layers.Linear, std=settings.initializer_range, rngs=rngs, use_bias=settings.mlp_bias)
        self.norm = layers.RMSNorm(width, settings.rms_norm_eps)
        self.gate, self.input, self.output = make(width, inner), make(width, inner), make(inner, width)
        self.activation = layers.ACTIVATIONS[settings.hidden_act]

    def __call__(self, x, key=None):
        normed, (gate_key, input_key, output_key) = self.norm(x), layers.split_key(key, 3)
        inner = self.activation(self.gate(normed, gate_key)) * self.input(normed, input_key)
        return x + self.output(inner, output_key)


class Network(nnx.Module):
    """Decoder, final norm and score head; of a language model whose words' embeddings are not its head, that head."""

    def __init__(self, settings: Settings, rngs: nnx.Rngs, language: bool = False):
        self.embeddings = Embeddings(settings, rngs)
        self.layers = layers.stack(Attention, settings, rngs, FeedForward)
        self.norm = layers.RMSNorm(settings.hidden_size, settings.rms_norm_eps)
        self.score = layers.Linear(settings.hidden_size, 1, settings.initializer_range, rngs, use_bias=False)
        self.frequencies = rotary.frequencies(settings.head_size, settings.rope)
        own_head = language and not settings.tie_word_embeddings
        size = settings.vocab_size, settings.hidden_size, settings.initializer_range
        self.lm_head = layers.Embedding(*size, rngs) if own_head else None

    def __call__(self, input_ids, token_type_ids, segment_ids, positions, key, dtype, options, read=None):
        """`[R, T]` int32 four times -> hidden states of type `dtype`, `[S, D]` with `read`; see `layers.run_stack`.

        They are those before the final norm, which `pool` applies. Token types mean nothing here.
        """
        x = self.embeddings(input_ids).astype(dtype)
        arguments = layers.earlier_in_segment(segment_ids), rotary.tables(positions, self.frequencies)
        return layers.run_stack(self.layers, x, arguments, key, options, read)

    def pool(self, last, key=None):
        """Hidden states of the last tokens `[S, D]` -> normed `[S, D]`."""
        return self.norm(last)

    def logits(self, hidden):
        """Hidden states `[..., D]` of the last layer -> float32 `[..., V]`, the scores of every next token."""
        table = (self.embeddings.word if self.lm_head is None else self.lm_head).embedding[...]
        normed = self.norm(hidden)
        return jnp.einsum("...d,vd->...v", normed, table.astype(hidden.dtype), preferred_element_type=jnp.float32)

    def extend(self, parameters, input_ids, positions, mask, cache, column, dtype):
        """Tokens `[R, Q]` from `column` on -> (hidden states before the final norm, cache); see `Attention.cached`.

        Args:
          parameters: of the layers, stacked or a tuple with those of each; the cache has as many parts.
        """
        # computed once: a CPU would fuse it into every layer
        rotation = jax.lax.optimization_barrier(rotary.tables(positions, self.frequencies))
        graphdef = nnx.split(self.layers)[0]

        def step(carry, layer):
            (x, part), (number, own) = carry, layer
            block = nnx.merge(graphdef, own)
            x, part = block.attention.cached(x, mask, rotation, part, number, column)
            return (block.feed_forward(x), part), None

        x = self.embeddings(input_ids).astype(dtype)
        if not isinstance(parameters, tuple):
            numbers = jnp.arange(len(cache[0]["keys"]), dtype=jnp.int32)
            (x, part), _ = jax.lax.scan(step, (x, cache[0]), (numbers, parameters))
            return x, (part,)
        extended = []
        for own, part in zip(parameters, cache, strict=True):
            (x, part), _ = step((x, part), (None, own))
            extended.append(part)
        return x, tuple(extended)
