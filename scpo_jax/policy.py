"""A policy at work: responses sampled from it as texts, and how far from the reference policy each of them is."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from scpo_jax import checkpoint, language_model, sampling, sft, sharding
from scpo_jax.checkpoint import Loaded
from scpo_jax.data import completions
from scpo_jax.data.encoding import Prompt
from scpo_jax.data.packing import power_of_two
from scpo_jax.errors import InputError
from scpo_jax.models import module
from scpo_jax.models.module import RewardModel
from scpo_jax.sampling import Responses, Sampling
from scpo_jax.workdir import Workdir


class Samples(NamedTuple):
    """Responses of a policy to n prompts, in their order."""

    texts: list[str]  # without the token that ended them
    tokens: np.ndarray  # [n, N] int32
    lengths: np.ndarray  # [n] int32, tokens with the one that ended the response
    ended: np.ndarray  # [n] bool; the others were cut off after N tokens
    kl: np.ndarray  # [n] float32, sum over the response's tokens of log pi - log pi_ref, nats


def load(folder: epath.PathLike) -> Loaded:
    """The policy of a checkpoint, adapters merged. Raises InputError."""
    return merged(checkpoint.load_language_model(folder))


def load_reference(config, workdir: Workdir) -> Loaded:
    """What the policies of a run start from and are held to: the model that stage policy finetuned first, or named."""
    if config.policy.sft.max_steps:
        return merged(checkpoint.load_language_model(workdir.sft))
    return merged(sft.load_start(config, ()))


def merged(loaded: Loaded) -> Loaded:
    """A language model without adapters of its own."""
    model, params = module.merge(loaded.model, loaded.params)
    return loaded._replace(model=model, params=params)


def sampling_of(loaded: Loaded) -> Sampling:
    """Tokens are drawn as the model has them, at temperature 1; its end tokens are those of tokenizer and config."""
    stated = loaded.model.config.get("eos_token_id")  # one, a list of several, or not stated
    several = stated if isinstance(stated, list) else [stated]
    ends = dict.fromkeys(end for end in (loaded.tokenizer.eos_token_id, *several) if end is not None)
    if not ends:
        raise InputError("the policy has no end token (eos_token): name one in tokenizer_config.json")
    pad = loaded.tokenizer.pad_token_id
    return Sampling(tuple(ends), next(iter(ends)) if pad is None else pad)


def make_reader(model: RewardModel, mesh: Mesh, dtype: str, specs: dict) -> Callable[..., language_model.Outputs]:
    """The compiled (params, prompts, tokens, lengths) -> `language_model.outputs`, whole on every device."""
    places = jax.tree.map(functools.partial(NamedSharding, mesh), specs)
    rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    read = functools.partial(language_model.outputs, model, dtype=dtype)
    return jax.jit(read, in_shardings=(places, rows, rows, rows), out_shardings=whole)


class Writer:
    """Samples responses of the reference and of policies of its structure, `rows` at once, in programs they share.

    Args:
      rows: a multiple of the axis data.
      max_prompt, new_tokens: tokens of a prompt (of a longer one the last) and of a response at most.
    """

    def __init__(self, reference: Loaded, mesh: Mesh, *, max_prompt: int, new_tokens: int, rows: int, dtype: str):
        self.reference, self._mesh = reference, mesh
        self._max_prompt, self._new_tokens, self._rows = max_prompt, new_tokens, rows
        self._specs = sharding.specs_of_one(module.abstract_params(reference.model), mesh, sharding.AXES)
        self._settings = sampling_of(reference)
        self._sampler = sampling.make_sampler(reference.model, mesh, self._settings, dtype, dtype, self._specs)
        self._reader = make_reader(reference.model, mesh, dtype, self._specs)
        self._reference = sharding.place(reference.params, mesh, self._specs)

    def sample(self, params: dict, prompts: Sequence[Prompt], seed: int) -> Samples:
        """A response to every prompt by the policy of these parameters (`load(folder).params`)."""
        encoded = completions.encode_prompts(self.reference.tokenizer, prompts, self._max_prompt)
        sizes = {"rows": self._rows, "new_tokens": self._new_tokens, "pad_id": self._settings.pad_id}
        placed = sharding.place(params, self._mesh, self._specs)
        found = sampling.generate(self._sampler, placed, encoded, seed, **sizes)
        kl = (found.logprobs - self._logprobs(encoded, found)).sum(-1)
        texts = completions.decode(self.reference.tokenizer, found.tokens, found.lengths, found.ended)
        return Samples(texts, found.tokens, found.lengths, found.ended, kl)

    def _logprobs(self, prompts: list[np.ndarray], responses: Responses) -> np.ndarray:
        """log pi_ref of the tokens of responses, `[n, N]`."""
        shape = self._rows, max(16, power_of_two(max(map(len, prompts))))
        found = []
        for first in range(0, len(prompts), self._rows):
            part = slice(first, first + self._rows)
            batch = sampling.left_pad(prompts[part], range(len(prompts[part])), shape, self._settings.pad_id)
            missing = self._rows - len(prompts[part])
            tokens = np.pad(responses.tokens[part], ((0, missing), (0, 0)))
            read = self._reader(self._reference, batch, tokens, np.pad(responses.lengths[part], (0, missing)))
            found.append(np.asarray(read.logprobs)[: len(prompts[part])])
        return np.concatenate(found)


def open_writer(config, workdir: Workdir, mesh: Mesh, rows: int) -> Writer:
    """The writer of a run's policies."""
    policy = config.policy
    sizes = {"max_prompt": policy.max_prompt, "new_tokens": policy.new_tokens, "rows": rows, "dtype": policy.dtype}
    return Writer(load_reference(config, workdir), mesh, **sizes)
