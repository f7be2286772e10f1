"""Tiny language models: in transformers and here, with the informative weights of `model_helpers`."""

import functools

import numpy as np

from scpo_jax.models import module
from tests import model_helpers as helpers

PROMPTS = [np.random.default_rng(length).integers(1, helpers.VOCABULARY, length) for length in (3, 12, 16, 1, 7)]


@functools.cache
def make(form):
    """A tiny language model of `model_helpers.CONFIGS` and informative parameters."""
    model = module.build(helpers.CONFIGS[form], language=True)
    return model, helpers.informative_params(model)


def torch_model(form, seed=0):
    """The language model of a form in transformers, in float32 with informative weights."""
    return helpers.torch_model(helpers.CONFIGS[form], seed, "AutoModelForCausalLM")


def torch_greedy(model, prompts, new_tokens, pad_id=0, **options) -> list[np.ndarray]:
    """What transformers generates for each prompt in one batch padded on the left, without padding after the end."""
    import torch

    width = max(map(len, prompts))
    ids = np.stack([np.pad(prompt, (width - len(prompt), 0), constant_values=pad_id) for prompt in prompts])
    mask = np.stack([np.arange(width) >= width - len(prompt) for prompt in prompts])
    arguments = {"attention_mask": torch.tensor(mask).long(), "max_new_tokens": new_tokens, "do_sample": False}
    with torch.no_grad():
        found = model.generate(torch.tensor(ids).long(), pad_token_id=pad_id, **arguments, **options)[:, width:]
    return [cut(row, options.get("eos_token_id")) for row in found.numpy()]


def cut(tokens, end) -> np.ndarray:
    """Tokens up to the first end token, with it."""
    places = np.flatnonzero(tokens == end)
    return tokens[: places[0] + 1] if len(places) else tokens
