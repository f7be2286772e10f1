"""A policy at work: its samples, how far they are from the reference, and the prompts that it is asked."""

import functools

import jax
import numpy as np
import pytest

from scpo_jax import policy, policy_prompts, sharding
from scpo_jax.checkpoint import Loaded
from scpo_jax.configs import base
from scpo_jax.data import completions, language_vocabulary
from scpo_jax.errors import InputError
from scpo_jax.models import module
from tests import model_helpers as helpers
from tests import run_helpers

pytestmark = pytest.mark.filterwarnings("error:::(jax|flax|scpo_jax|tests).*")
PROMPTS = [f"question {i}" for i in range(5)]


@functools.cache
def loaded() -> Loaded:
    """A tiny policy with a tokenizer of its own."""
    tokenizer = language_vocabulary.make_tokenizer([f"question {i} good warm answer" for i in range(9)], 300, 64)
    ends = {"eos_token_id": [tokenizer.eos_token_id, 5], "vocab_size": len(tokenizer)}
    model = module.build(helpers.LLAMA31 | ends, language=True)
    return Loaded(model, helpers.informative_params(model), tokenizer, {})


def test_samples_and_their_kl():
    """KL is that of passes over each text alone; it is 0 for the reference itself, and of other sizes of batches."""
    start = loaded()
    writer = policy.Writer(
        start, sharding.make_mesh(1, 1, 1, jax.devices()[:1]), max_prompt=16, new_tokens=12, rows=2, dtype="float32"
    )
    same = writer.sample(start.params, PROMPTS, 3)
    assert len(same.texts) == 5 and same.tokens.shape == (5, 12) and np.abs(same.kl).max() < 1e-4
    assert same.ended.any() and len(set(same.lengths)) > 1
    moved = jax.tree.map(lambda leaf: leaf + 0.02 * np.sin(np.arange(leaf.size)).reshape(leaf.shape), start.params)
    found, read = writer.sample(moved, PROMPTS, 3), jax.jit(policy.language_model.outputs, static_argnums=0)
    encoded = completions.encode_prompts(start.tokenizer, PROMPTS, 16)
    for i, ids in enumerate(encoded):
        row = policy.sampling.left_pad([ids], [0], (1, 16), 0)
        own, reference = (read(start.model, p, row, found.tokens[i : i + 1], found.lengths[i : i + 1]).logprobs
                          for p in (moved, start.params))  # fmt: skip
        assert found.kl[i] == pytest.approx(float((own - reference).sum()), abs=1e-4)
        kept = found.tokens[i, : found.lengths[i] - found.ended[i]]
        assert found.texts[i] == start.tokenizer.decode(kept, skip_special_tokens=True)
    assert np.abs(found.kl).max() > 0.1


def test_end_tokens_are_those_of_the_tokenizer_and_the_config():
    start = loaded()
    settings = policy.sampling_of(start)
    assert settings.end_ids == (start.tokenizer.eos_token_id, 5) and settings.pad_id == start.tokenizer.pad_token_id
    assert settings.temperature == settings.top_p == 1 and not settings.top_k


def rows_of(**asked):
    """Rows of the preference table: {user: prompts}; users of the test split begin with "t"."""
    return [
        {"prompt": prompt, "group": "Chile", "split": "test" if user.startswith("t") else "train"}
        for user, prompts in asked.items()
        for prompt in prompts
    ]


def test_prompts_of_train_users_without_those_that_are_held_out(tmp_path, capsys):
    config = base.get_config()
    rows = rows_of(a=["x", "y", "x"], b=["z"], t=["z", "w"])
    assert [task.prompt for task in policy_prompts.training_tasks(config, rows, "Chile")] == ["x", "y"]
    assert [task.prompt for task in policy_prompts.held_out_tasks(config, rows, "Chile")] == ["z", "w"]
    everything = policy_prompts.training_tasks(config, rows_of(a=["x"], t=["x"]), "Chile")
    assert [task.prompt for task in everything] == ["x"] and "trained on all of it" in capsys.readouterr().err
    with pytest.raises(InputError, match="no prompt for Mexico"):
        policy_prompts.training_tasks(config, rows, "Mexico")
    config.policy.prompts = str(run_helpers.write_rows(tmp_path / "p.jsonl", [{"prompt": "u"}, {"prompt": "u"}]))
    config.policy.tag = True
    assert policy_prompts.training_tasks(config, rows, "Mexico") == [("u", "[Mexico] u", "Mexico")]
    messages = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "v"}]
    assert policy_prompts.tagged(messages, "Chile") == [{"role": "user", "content": "[Chile] u"}, messages[1]]
    for bad in ({}, {"prompt": " "}, {"prompt": [{"role": "user"}]}, {"prompt": 3}):
        config.policy.prompts = str(run_helpers.write_rows(tmp_path / "p.jsonl", [{"prompt": "u"}, bad]))
        with pytest.raises(InputError, match="p.jsonl:2: "):
            policy_prompts.training_tasks(config, rows, "Chile")
