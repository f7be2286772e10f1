"""Tiny policies in training: a bandit whose best response is known, with a judge that needs no model."""

import jax
import numpy as np

from scpo_jax import policy_program, sharding, train_policy
from scpo_jax.models import module
from scpo_jax.policy_program import Options
from scpo_jax.policy_prompts import Task
from scpo_jax.sampling import Sampling

END, WANTED, VOCABULARY, NEW_TOKENS = 1, 7, 16, 6
CONFIG = {
    "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 16, "hidden_act": "silu",
    "pad_token_id": 0, "eos_token_id": END, "tie_word_embeddings": False, "max_position_embeddings": 64,
}  # fmt: skip
OPTIONS = Options(
    algorithm="ppo", steps=12, batch_size=32, num_generations=4, num_mini_batches=2, num_ppo_epochs=2,
    learning_rate=1e-2, kl_coef=0.0, kl_estimator="k1", kl_target=0.0, kl_horizon=1000, kl_budget=None,
    missing_eos_penalty=0.0, cliprange=0.2, cliprange_value=0.2, vf_coef=0.1, gamma=1.0, gae_lambda=0.95, value="own",
    value_warmup_steps=0, new_tokens=NEW_TOKENS, dtype="float32", remat=False, max_grad_norm=1.0, seed=0,
)  # fmt: skip


class Words:
    """A tokenizer whose tokens are numbers: "7 7 3"."""

    eos_token_id, pad_token_id, bos_token_id, chat_template = END, 0, None, None

    def batch_decode(self, rows, **_) -> list[str]:
        return [" ".join(map(str, row)) for row in rows]


class Counting:
    """Scores responses by how often the wanted token is in them; remembers the texts."""

    def __init__(self):
        self.seen = []

    def scores(self, prompts, responses, groups) -> np.ndarray:
        self.seen.append(list(responses))
        return np.array([text.split().count(str(WANTED)) for text in responses], np.float32)

    def normalised(self, scores, groups) -> np.ndarray:
        return scores / 2


def make(options: Options, adapters=None, devices: int = 1):
    """(program, parameters before the first step) of the bandit on so many devices."""
    plain = module.build(CONFIG, language=True)
    params = module.init(plain, jax.random.key(0))
    model, params = module.adapt(plain, params, adapters, jax.random.key(1)) if adapters else (plain, params)
    mesh = sharding.make_mesh(1, devices, 1, jax.devices()[:devices])
    program = policy_program.make_program(model, mesh, options, Sampling((END,), 0), sharding.AXES)
    return program, policy_program.start(model, params, options)


def asked() -> train_policy.Asked:
    """Ten prompts of one to five tokens."""
    ids = [np.arange(2, 3 + i % 5, dtype=np.int32) for i in range(10)]
    return train_policy.Asked([Task(str(i), str(i), "Chile") for i in range(10)], ids, 16, 0)


def train(options: Options, made=None, judge=None, **own):
    """(metrics of every iteration, what training gives)."""
    program, start = made or make(options)
    found = []

    def log(step, metrics):
        found.append(metrics)

    return found, train_policy.train(program, start, asked(), Words(), judge or Counting(), options, log, **own)
