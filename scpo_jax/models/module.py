"""A reward model: text in, one float32 score out, or one for each head. Where NNX modules meet plain dicts.

Outside `models/` parameters are nested dicts of arrays and a model is a `RewardModel`, which holds none of them.
Legend of dimensions: R rows, T tokens, S texts, D width, L layers, C heads that score.
"""

import dataclasses
import functools
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from scpo_jax.errors import InputError
from scpo_jax.models import bert, deberta, layers, llama, lora, qwen2, qwen3
from scpo_jax.models.lora import Lora

# Numbers from a file must not decide how much memory is taken, nor how long its reading takes.
LARGEST, LARGEST_FLOAT, MOST = 2**24, 1e30, {"num_hidden_layers": 10_000}
LEAST = {
    "vocab_size": 1, "hidden_size": 1, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 1,
    "max_position_embeddings": 1, "type_vocab_size": 0, "embedding_size": 1, "num_key_value_heads": 1, "head_dim": 1,
    "layer_norm_eps": 0, "rms_norm_eps": 0,
}  # fmt: skip

# by `model_type` of config.json
FAMILIES = {"bert": bert, "deberta-v2": deberta, "llama": llama, "qwen2": qwen2, "qwen3": qwen3}


class TextBatch(NamedTuple):
    """Texts in rows, several to a row where they are packed. All int32.

    Tokens attend only within their segment and positions restart with each, so one text a row is just the case of one
    segment. Padding has segment 0. Where a text's score is read is found from its first token, see
    `RewardModel.places`.
    """

    input_ids: jax.Array  # [R, T]
    token_type_ids: jax.Array  # [R, T] BERT's first and second text; not the segments
    segment_ids: jax.Array  # [R, T] each text of a row has its own number, its tokens are contiguous; 0 is padding
    positions: jax.Array  # [R, T] from 0 in each segment
    rows: jax.Array  # [S] of the text's first token
    columns: jax.Array  # [S] of the text's first token


@dataclasses.dataclass(frozen=True, eq=False)
class RewardModel:
    """Structure of a reward model without its parameters; equal to those that can share its compiled programs."""

    family: str  # a key of FAMILIES
    config: dict  # the whole config.json, with keys we don't know, to be written back
    graphdef: nnx.GraphDef
    shapes: dict  # the parameters as a nested dict of jax.ShapeDtypeStruct
    max_positions: int | None  # most tokens a text may have; None: no limit
    width: int  # D
    reads: str  # the token of a text at which its score is read: "first" (encoders) or "last" (causal models)
    lora: Lora | None = None  # of the adapters among the parameters
    language: bool = False  # it is a language model, with its head among the parameters unless that is tied
    heads: tuple[str, ...] = ()  # the groups that a text gets a score for; (): it gets one score

    @functools.cached_property
    def _structure(self) -> str:
        return json.dumps([self.config, self.lora, self.language, self.heads], sort_keys=True)

    def __eq__(self, other) -> bool:
        return isinstance(other, RewardModel) and self._structure == other._structure

    def __hash__(self) -> int:
        return hash(self._structure)

    def score(
        self, params, batch: TextBatch, key=None, dtype: str = "float32", remat: bool = False, gather=None
    ) -> jax.Array:
        """Scores `[S]` float32, `[S, C]` of a model with heads. Dropout if and only if `key` is given.

        `dtype` ("float32" or "bfloat16") is the type of the encoder's products; parameters, softmax, norms, pooler and
        score are float32 in any case. `remat` trades time for memory in the backward pass. `gather` makes parameters
        whole where each device holds a share: (tree, the same tree with whole shapes, type or none) -> whole tree.
        """
        encoder_key, head_key = layers.split_key(key, 2)
        options = layers.StackOptions(remat=remat)
        if gather:  # the layers' one layer at a time
            words = params["embeddings"]["word"]
            params = {n: tree if n == "layers" else gather(tree, self.shapes[n]) for n, tree in params.items()}
            params["embeddings"]["word"] = words  # tokens are looked up where their columns lie
            layer = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), self.shapes["layers"])
            options = options._replace(whole=lambda parameters: gather(parameters, layer, jnp.dtype(dtype)))
        texts = self._encode(params, batch, encoder_key, dtype, options, self.places(batch))
        network = nnx.merge(self.graphdef, params)
        with jax.default_matmul_precision("float32"):
            scores = network.score(network.pool(texts.astype(jnp.float32), head_key))
        return scores if self.heads else scores[:, 0]

    def places(self, batch: TextBatch) -> layers.Read:
        """Where the score of each text is read: at its first token, or at the last one of its segment."""
        if self.reads == "first":
            return layers.Read(batch.rows, batch.columns)
        segments = batch.segment_ids[batch.rows]
        own = batch.segment_ids[batch.rows, batch.columns]
        return layers.Read(batch.rows, batch.columns + (segments == own[:, None]).sum(-1, dtype=jnp.int32) - 1)

    def hidden_states(self, params, batch: TextBatch, dtype: str = "float32") -> jax.Array:
        """The embeddings and every layer's output without dropout: `[L + 1, R, T, D]`."""
        return self._encode(params, batch, None, dtype, layers.StackOptions(every_layer=True))

    def _encode(self, params, batch, key, dtype, options: layers.StackOptions, read: layers.Read | None = None):
        network = nnx.merge(self.graphdef, params)
        with precision(dtype):
            return network(*batch[:4], key, jnp.dtype(dtype), options, read)


def precision(dtype: str):
    """The context in which products are computed in `dtype`.

    Accelerators would otherwise round float32 factors to bfloat16 or TF32, and scores would depend on packing.
    """
    return jax.default_matmul_precision("float32" if dtype == "float32" else "default")


def build(
    config: dict,
    source: str = "config",
    adapters: Lora | None = None,
    language: bool = False,
    heads: tuple[str, ...] = (),
) -> RewardModel:
    """The model of a `config.json`, with adapters, as a language model or with heads if asked; allocates no memory.

    How many labels the config has does not matter; `source` names it in errors. Raises InputError for an unknown
    family, a key of the wrong type, what the family's module cannot compute, and targets of adapters that the model
    does not have.
    """
    settings, family = read_settings(config, source), config["model_type"]
    own = FAMILIES[family]
    if adapters and adapters.dropout and own.READS == "first":
        raise InputError(f"{source}: LoRA dropout is for causal models; a {family} has dropout of its own: leave it 0")

    if language and own.READS == "first":
        raise InputError(f"{source}: a {family} is no language model")
    try:
        graphdef, shapes = _structure(json.dumps(config, sort_keys=True), adapters, language, len(heads))
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    limit = own.max_positions(settings)
    return RewardModel(
        family, config, graphdef, shapes, limit, settings.hidden_size, own.READS, adapters, language, heads
    )


@functools.cache
def _structure(config: str, adapters: Lora | None, language: bool, heads: int) -> tuple[nnx.GraphDef, dict]:
    """(graphdef, shapes) of the model of a config in JSON; a run has dozens of one structure. Raises InputError."""
    family, settings = json.loads(config)["model_type"], read_settings(json.loads(config), "config")

    def network() -> nnx.Module:
        plain = make_network(family, settings, nnx.Rngs(0), language)
        if heads:
            layers.widen(plain.score, heads)
        return lora.attach(plain, FAMILIES[family].HF_NAMES, adapters) if adapters else plain

    graphdef, state = nnx.split(nnx.eval_shape(network))
    return graphdef, nnx.to_pure_dict(state)


def make_network(family: str, settings, rngs: nnx.Rngs, language: bool) -> nnx.Module:
    """The network of a family, with the head of a language model if asked for."""
    make = FAMILIES[family].Network
    return make(settings, rngs, language=True) if language else make(settings, rngs)


def adapt(model: RewardModel, params: dict, adapters: Lora, key) -> tuple[RewardModel, dict]:
    """A model and its parameters with fresh adapters, which do not change its scores. Raises InputError."""
    adapted = build(model.config, "config.train.lora", adapters, model.language, model.heads)
    return adapted, lora.join(lora.init(adapted.shapes, key), params)


def merge(model: RewardModel, params: dict) -> tuple[RewardModel, dict]:
    """A model and its parameters with the adapters, if it has any, merged into the kernels."""
    if not model.lora:
        return model, params
    return build(model.config, language=model.language, heads=model.heads), lora.merged(params, model.lora)


def abstract_params(model: RewardModel) -> dict:
    """The parameters as a nested dict of `jax.ShapeDtypeStruct`."""
    return jax.tree.map(lambda shape: shape, model.shapes)


def init(model: RewardModel, key) -> dict:
    """Random parameters as transformers draws them: normal(initializer_range), zero biases, ones for norms; float32."""
    settings = read_settings(model.config, "config")
    network = make_network(model.family, settings, nnx.Rngs(params=key), model.language)
    return nnx.to_pure_dict(nnx.state(network))


def read_settings(config: dict, source: str):
    """The family's `Settings` from a `config.json`, checked; raises InputError."""
    family = config.get("model_type")
    if family not in tuple(FAMILIES):
        known = ", ".join(FAMILIES)
        raise InputError(f"{source}: unknown model family {family!r} (model_type in config.json); known: {known}")
    kinds = {field.name: field.type for field in dataclasses.fields(FAMILIES[family].Settings)}
    stated = {name: config[name] for name in kinds if name in config}
    for name, value in stated.items():
        accepted = kinds[name] | int if kinds[name] in (float, float | None) else kinds[name]
        if not isinstance(value, accepted) or (isinstance(value, bool) and kinds[name] is not bool):
            raise InputError(f"{source}: {name} is {str(value)[:60]!r} in config.json; expected {kinds[name]}")
    frozen = {name: tuple(value) if isinstance(value, list) else value for name, value in stated.items()}
    settings = FAMILIES[family].Settings(**frozen)
    problem = dimension_problem(settings) or FAMILIES[family].unsupported(settings)
    if problem:
        raise InputError(f"{source}: not supported: {problem}")
    return settings


def dimension_problem(settings) -> str | None:
    """What is wrong with the sizes and activations that all families have, or None."""
    for field in dataclasses.fields(settings):
        name, value = field.name, getattr(settings, field.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        most = MOST[name] if name in MOST else LARGEST if field.type in (int, int | None) else LARGEST_FLOAT
        least = LEAST[name] if name in LEAST else -most
        if "dropout" in name:
            least, most = 0, 1
        if not least <= value <= most:
            return f"{name} {str(value)[:40]} (from {least:g} to {most:g})"
    heads = settings.num_attention_heads
    if settings.hidden_size % heads:
        return f"hidden_size {settings.hidden_size}, not a multiple of num_attention_heads {heads}"
    if settings.hidden_act not in layers.ACTIVATIONS:
        return f"hidden_act {settings.hidden_act!r} (known: {', '.join(layers.ACTIVATIONS)})"
    return None
