"""Tiny models with informative weights, and batches of token ids, for the tests of `scpo_jax/models`.

With transformers' initialisation (std 0.02) a tiny model hardly looks at its input: removing all relative attention
moves a score by 7e-8. So matrices are drawn with std 0.2 and every bias and norm weight around 0 or 1 with std 0.2.
"""

import copy
import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scpo_jax.models import module

VOCABULARY = 120
TINY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
    "id2label": {"0": "LABEL_0"},
}
BERT = TINY | {"model_type": "bert"}
V3 = TINY | {  # as microsoft/deberta-v3-base
    "model_type": "deberta-v2",
    "relative_attention": True,
    "position_buckets": 16,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "max_relative_positions": -1,
    "position_biased_input": False,
    "type_vocab_size": 0,
}
V2 = TINY | {  # the first v2: every distance its own row, own projections of positions, token types
    "model_type": "deberta-v2",
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "max_relative_positions": 40,
    "position_biased_input": True,
    "type_vocab_size": 2,
}
LLAMA = TINY | {  # narrower: without norms after the residual 64 columns reach values whose rounding is 1e-5
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 32,
    "hidden_act": "silu",
    "pad_token_id": 0,
    "rms_norm_eps": 1e-5,
}
LLAMA31 = LLAMA | {  # waves of 6 to 20,000 positions: the first stays, the second is between, the others are stretched
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rope_theta": 10000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}
QWEN2 = LLAMA | {"model_type": "qwen2", "num_key_value_heads": 2, "tie_word_embeddings": True}
QWEN3 = LLAMA | {"model_type": "qwen3", "num_key_value_heads": 1, "head_dim": 16, "rope_theta": 1e6}
CONFIGS = {
    "llama": LLAMA,
    "llama-biases": LLAMA | {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 2},
    "llama31": LLAMA31,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "bert": BERT,
    "v3": V3,
    "v2": V2,
    "v2-buckets": V2 | {"position_buckets": 16, "norm_rel_ebd": "layer_norm", "embedding_size": 24},
    "v3-distances": V3 | {"position_buckets": -1, "norm_rel_ebd": "none"},
    "c2p": V2 | {"pos_att_type": "c2p"},
    "p2c": V3 | {"pos_att_type": ["p2c"]},
    "absolute": V2 | {"relative_attention": False},
}


def informative_params(model, seed=0):
    """Parameters of the right shapes: matrices and biases std 0.2 around 0, norm weights around 1."""
    generator = np.random.default_rng(seed)
    shapes = flax.traverse_util.flatten_dict(module.abstract_params(model))
    arrays = {
        path: jnp.asarray((path[-1] == "scale") + 0.2 * generator.standard_normal(shape.shape), jnp.float32)
        for path, shape in shapes.items()
    }
    return flax.traverse_util.unflatten_dict(arrays)


@functools.cache
def make(name):
    """A tiny model of CONFIGS and informative parameters."""
    model = module.build(CONFIGS[name])
    return model, informative_params(model)


@functools.cache
def scored(name):
    """A tiny model, parameters, eight texts packed two to a row, and their scores (for planting faults)."""
    model, params = make(name)
    batch = pack(texts([9, 12] * 4), 4, 24, [(row, column) for row in range(4) for column in (0, 12)])
    scores = np.asarray(jax.jit(model.score)(params, batch))
    assert scores.std() >= 0.3
    return model, params, batch, scores


def texts(lengths, seed=0):
    """Token ids and token types (0, then 1 in the second half) of random texts, each with few words of its own."""
    generator = np.random.default_rng(seed)
    words = [generator.integers(1, VOCABULARY, 6) for _ in lengths]
    types = [(np.arange(n) >= (n + 1) // 2).astype(int) for n in lengths]
    return [(generator.choice(own, n), kind) for own, n, kind in zip(words, lengths, types, strict=True)]


def pack(pairs, rows, length, places):
    """TextBatch `[rows, length]` with text i from (row, column) `places[i]` on; segments numbered as they come."""
    fields = np.zeros((4, rows, length), np.int32)
    for (ids, types), (row, column) in zip(pairs, places, strict=True):
        here = slice(column, column + len(ids))
        fields[:, row, here] = ids, types, np.full(len(ids), fields[2, row].max() + 1), np.arange(len(ids))
    where = np.asarray(places, np.int32).reshape(-1, 2)
    return module.TextBatch(*map(jnp.asarray, (*fields, where[:, 0], where[:, 1])))


def one_per_row(pairs, length=None):
    """TextBatch with one text a row, padded to `length`."""
    longest = max(len(ids) for ids, _ in pairs)
    return pack(pairs, len(pairs), length or longest, [(row, 0) for row in range(len(pairs))])


def torch_model(config, seed=0, architecture="AutoModelForSequenceClassification"):
    """The model of a config in transformers, in float32 with informative weights."""
    import torch
    import transformers

    # copied, for transformers writes into the rope parameters
    values = copy.deepcopy({name: value for name, value in config.items() if name != "model_type"})
    settings = transformers.AutoConfig.for_model(config["model_type"], attn_implementation="eager", **values)
    model = getattr(transformers, architecture).from_config(settings).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = float("norm.weight" in name.lower())
            parameter.copy_(centre + 0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def torch_inputs(model, batch):
    """The arguments of a model of transformers for a batch with one text a row."""
    import torch

    ids, types, segments = (torch.tensor(np.asarray(field)).long() for field in batch[:3])
    inputs = {"input_ids": ids, "attention_mask": (segments > 0).long()}
    return inputs if is_decoder(model) else inputs | {"token_type_ids": types}


def is_decoder(model):
    """Whether a model of transformers is causal."""
    return hasattr(model.base_model, "embed_tokens")


def torch_hidden(encoder, batch):
    """Embeddings and every layer's output in transformers `[L + 1, R, T, D]`."""
    import torch

    last = []  # of a decoder, which lists the normed one in its place
    layers = encoder.layers if is_decoder(encoder) else encoder.encoder.layer
    hook = layers[-1].register_forward_hook(lambda *call: last.append(call[-1]))
    with torch.no_grad():
        states = encoder(**torch_inputs(encoder, batch), output_hidden_states=True).hidden_states
    hook.remove()
    return torch.stack([*states[:-1], last[0] if is_decoder(encoder) else states[-1]]).numpy()


def torch_outputs(model, batch):
    """What transformers computes of a batch with one text a row: {hidden, pooled, score} as numpy."""
    import torch

    hidden = torch_hidden(model.base_model, batch)
    if is_decoder(model):
        pooler, read = model.base_model.norm, hidden[-1][np.arange(len(hidden[-1])), real(batch).sum(1) - 1]
    else:
        pooler, read = model.pooler if hasattr(model, "pooler") else model.base_model.pooler, hidden[-1]
    with torch.no_grad():
        pooled = pooler(torch.from_numpy(read))
        score = model(**torch_inputs(model, batch)).logits[:, 0]
    return {"hidden": hidden, "pooled": pooled.numpy(), "score": score.numpy()}


@functools.partial(jax.jit, static_argnums=0)
def our_outputs(model, params, batch):
    """The same of ours."""
    hidden = model.hidden_states(params, batch)
    pooled = nnx.merge(model.graphdef, params).pool(hidden[-1][tuple(model.places(batch))])
    return {"hidden": hidden, "pooled": pooled, "score": model.score(params, batch)}


def real(batch):
    """Where a batch has tokens: bool `[R, T]`."""
    return np.asarray(batch.segment_ids) > 0


def check_parity(model, params, reference, lengths, length=None, tolerance=1e-5):
    """Every submodule is as in transformers on texts of these lengths, padded to `length`; returns the scores."""
    batch = one_per_row(texts(lengths), length)
    ours, theirs = jax.device_get(our_outputs(model, params, batch)), torch_outputs(reference, batch)
    where = real(batch)
    for layer, (a, b) in enumerate(zip(ours["hidden"], theirs["hidden"], strict=True)):
        np.testing.assert_allclose(a[where], b[where], rtol=0, atol=tolerance, err_msg=f"hidden states {layer}")
    np.testing.assert_allclose(ours["pooled"], theirs["pooled"], rtol=0, atol=tolerance)
    np.testing.assert_allclose(ours["score"], theirs["score"], rtol=0, atol=tolerance)
    return theirs["score"]


def check_packed_parity(model, params, reference):
    """Two texts in one row, not starting at its left end, are what transformers computes of each alone."""
    pair = texts([9, 14])
    packed = pack(pair, 1, 32, [(0, 2), (0, 11)])
    ours = jax.device_get(our_outputs(model, params, packed))
    for text, column in zip(range(2), (2, 11), strict=True):
        theirs = torch_outputs(reference, one_per_row([pair[text]]))
        here = slice(column, column + len(pair[text][0]))
        np.testing.assert_allclose(ours["hidden"][:, 0, here], theirs["hidden"][:, 0], rtol=0, atol=1e-5)
        np.testing.assert_allclose(ours["score"][text], theirs["score"][0], rtol=0, atol=1e-5)


def change_of_scores(model, params, batch, scores):
    """How far each text's score lies from `scores` (a fault was planted in between): the smallest change."""
    faulty = jax.jit(lambda params, batch: model.score(params, batch))  # a new function: never one traced before
    return float(np.min(np.abs(faulty(params, batch) - scores)))


def without_biases(params):
    """The same parameters with every bias zero."""
    flat = flax.traverse_util.flatten_dict(params)
    zeroed = {path: 0 * array if path[-1] == "bias" else array for path, array in flat.items()}
    return flax.traverse_util.unflatten_dict(zeroed)
