"""Training of a policy: a bandit is solved, KL holds it, a budget ends it, resumed as straight; compiled once."""

import dataclasses
import functools
import subprocess
import sys

import jax
import numpy as np
import pytest

from scpo_jax import policy_program, preemption, train_policy
from scpo_jax.errors import InputError
from scpo_jax.policy_program import Read
from scpo_jax.sampling import Responses
from scpo_jax.training_state import TrainingState
from tests import policy_helpers as helpers
from tests.policy_helpers import OPTIONS
from tests.run_helpers import with_devices

pytestmark = pytest.mark.filterwarnings("error:::(jax|flax|scpo_jax|tests).*")


@functools.cache
def made():
    """The programs of ppo; steps, rates and coefficients are no part of them."""
    return helpers.make(OPTIONS)


def counts(program):
    return [f._cache_size() for f in (program.sample, program.read, program.judge, program.update)]


def test_ppo_solves_a_bandit_and_compiles_nothing_twice():
    judge = helpers.Counting()
    found, trained = helpers.train(OPTIONS, made(), judge)
    assert found[0]["objective/scores"] < 1 and found[-1]["objective/scores"] > 4.5 and trained.steps == 12
    assert found[0]["objective/kl"] == pytest.approx(0, abs=1e-5) and found[-1]["objective/kl"] > 5
    assert counts(made()[0]) == [1, 1, 1, 1]
    for metrics, texts in zip(found, judge.seen, strict=True):  # neither end tokens nor padding are in the texts
        words = sum(len(text.split()) for text in texts)
        assert words == round(32 * metrics["val/length"]) - metrics["val/num_eos_tokens"]
        assert metrics["objective/rlhf_reward"] == pytest.approx(metrics["objective/scores"] / 2, abs=1e-5)
    names = """
    objective/entropy objective/non_score_reward policy/approxkl_avg policy/clipfrac_avg policy/entropy_avg
    loss/policy_avg loss/value_avg val/clipfrac_avg val/ratio val/ratio_var lr episode
    """
    assert set(names.split()) <= found[0].keys()


@pytest.mark.parametrize("own", [{"value": "head"}, {"algorithm": "rloo"}, {"algorithm": "grpo"}])
def test_the_others_solve_it_too(own):
    found, _ = helpers.train(dataclasses.replace(OPTIONS, **own))
    assert found[0]["objective/scores"] < 1 and found[-1]["objective/scores"] > 4


def test_with_a_large_kl_coef_the_policy_stays_at_the_reference():
    found, _ = helpers.train(dataclasses.replace(OPTIONS, kl_coef=50.0, steps=8, learning_rate=3e-3), made())
    free, _ = helpers.train(dataclasses.replace(OPTIONS, steps=8, learning_rate=3e-3), made())
    assert abs(found[-1]["objective/kl"]) < 0.1 < 0.3 < free[-1]["objective/kl"]


def test_a_budget_ends_it_with_the_last_policy_within():
    options = dataclasses.replace(OPTIONS, kl_budget=1.0)
    found, trained = helpers.train(options, made())
    assert 2 < trained.steps == len(found) - 1 < 11 and trained.kl < 1
    assert found[-1]["objective/kl"] == pytest.approx(trained.kl)
    program, start = made()
    own = program.place(start._replace(trained=start.trained | {"policy": trained.policy}))
    drawn = np.arange(32) % 10
    batch = train_policy.sample(program, own, helpers.asked(), drawn, helpers.Words(), options, 99)
    read = train_policy.finish_reading(train_policy.start_reading(program, own, batch, options))
    kl = (read.logprobs - read.ref_logprobs).sum(1)
    assert kl.mean() == pytest.approx(trained.kl, abs=float(4 * kl.std() / 32**0.5))
    one_more = dataclasses.replace(OPTIONS, kl_budget=99.0, steps=2)
    found, trained = helpers.train(one_more, made())
    assert len(found) == trained.steps == 2 and trained.kl > found[-1]["objective/kl"]


def test_a_resumed_training_is_the_straight_one(tmp_path, monkeypatch):
    options = dataclasses.replace(OPTIONS, steps=4, kl_target=0.1, kl_coef=0.2, kl_budget=50.0, value_warmup_steps=1)
    straight, first = helpers.train(options, made())
    assert abs(straight[1]["objective/kl"]) < 1e-5 < 1e-3 < abs(straight[2]["objective/kl"])  # warm-up
    assert len({row["objective/kl_coef"] for row in straight}) == 4
    state = TrainingState(tmp_path, keep=2, every=2)
    asked = []
    monkeypatch.setattr(preemption, "due", lambda: asked.append(1) or len(asked) == 3)
    with pytest.raises(preemption.Interrupted, match="the state after 3 steps is saved"):
        helpers.train(options, made(), state=state)
    state.close()
    state = TrainingState(tmp_path, keep=2, every=2)
    later, second = helpers.train(options, made(), state=state)
    state.close()
    assert later == straight[3:] and first.kl == second.kl
    jax.tree.map(np.testing.assert_array_equal, first.policy, second.policy)


def test_a_loss_that_is_not_finite_changes_nothing_and_ends_it(tmp_path):
    """What was saved before stands, and a training goes on from there."""
    options, judge, same, (program, start) = dataclasses.replace(OPTIONS, steps=4), helpers.Counting(), [], made()
    judge.normalised = lambda scores, groups: scores / (np.float32(np.nan) if len(judge.seen) == 3 else 2)

    def update(*arguments):
        before = jax.device_get(arguments[:2])
        results = program.update(*arguments)
        same.append(all(map(np.array_equal, *map(jax.tree.leaves, (before, jax.device_get(results[:2]))))))
        return results

    state = TrainingState(tmp_path, keep=2, every=2)
    with pytest.raises(InputError, match="the policy's step 3 has a loss or gradient that is not finite"):
        helpers.train(options, (program._replace(update=update), start), judge, state=state)
    state.close()
    assert same == [False] * 8 + [True] * 4
    state = TrainingState(tmp_path, keep=2, every=2)
    later, resumed = helpers.train(options, made(), state=state)
    state.close()
    _, straight = helpers.train(options, made())
    assert len(later) == 2
    jax.tree.map(np.testing.assert_array_equal, resumed.policy, straight.policy)


def some_read(seed=0):
    lengths = np.array([3, 0, 5, 1])
    mask = np.arange(5) < lengths[:, None]
    leaves = np.random.default_rng(seed).normal(-1, 0.5, (4, 4, 5)).astype(np.float32) * mask
    return Read(*leaves), lengths, mask


@pytest.mark.parametrize("algorithm", ["ppo", "rloo", "grpo"])
def test_what_a_batch_is_worth(algorithm):
    """Scores, KL and the penalty of responses that did not end, by plain loops; an empty response has no advantage."""
    options = dataclasses.replace(OPTIONS, algorithm=algorithm, num_generations=2, missing_eos_penalty=0.6)
    read, lengths, mask = some_read()
    scores, ended = np.array([-0.4, 2.5, 0.3, -1.7], np.float32), np.array([True, False, False, True])
    judged = jax.jit(functools.partial(policy_program.judged, options))
    advantages, returns, metrics = judged(read, lengths, ended, scores, 0.1)
    kl = np.array(
        [sum(float(read.logprobs[i, t] - read.ref_logprobs[i, t]) for t in range(n)) for i, n in enumerate(lengths)]
    )
    assert metrics["objective/kl"] == pytest.approx(kl.mean(), abs=1e-6)
    assert metrics["objective/rlhf_reward"] == pytest.approx((scores - 0.1 * kl).mean(), abs=1e-6)
    assert metrics["val/num_eos_tokens"] == 2 and not np.asarray(advantages)[~mask].any()
    if algorithm == "ppo":
        assert np.asarray(advantages)[mask].mean() == pytest.approx(0, abs=1e-6)
        assert np.asarray(advantages)[mask].std() == pytest.approx(1, abs=1e-5)
        last = scores[2] - 0.6 - 0.1 * (read.logprobs[2, 4] - read.ref_logprobs[2, 4])
        assert returns[2, 4] == pytest.approx(last, abs=1e-5)
        return
    total = np.where(lengths > 0, scores - 0.6 * ~ended, 0) - 0.1 * kl
    gap = (total[2] - total[3]) * (1 if algorithm == "rloo" else 0.5)
    scale = 1 if algorithm == "rloo" else total[2:].std(ddof=1) + 1e-4
    np.testing.assert_allclose(advantages[2], gap / scale, rtol=1e-4)
    assert advantages[3, 0] == pytest.approx(-gap / scale, rel=1e-4)


def test_what_must_not_pass():
    """Generation by another model, a ratio that is not 1 before the first step, and losses that are no numbers."""
    read, lengths, _ = some_read()
    responses = Responses(np.zeros((4, 5), np.int32), lengths, read.logprobs + 2e-3, lengths > 0)
    train_policy.check_cache(responses._replace(logprobs=read.logprobs + 2e-4), read, OPTIONS)
    with pytest.raises(InputError, match="0.002 from what it says of it afterwards"):
        train_policy.check_cache(responses, read, OPTIONS)
    train_policy.check_cache(responses, read, dataclasses.replace(OPTIONS, dtype="bfloat16"))
    fine = {"finite": np.ones((2, 2), bool), "ratio_gap": np.array([[5e-5, 0.3], [0.4, 0.5]])}
    train_policy.check_learnt(fine, OPTIONS, 0)
    with pytest.raises(InputError, match="iteration 3 pi / pi_old is 0.0002 from 1"):
        train_policy.check_learnt(fine | {"ratio_gap": np.array([[2e-4, 0.3]])}, OPTIONS, 2)
    with pytest.raises(InputError, match="not finite"):
        train_policy.check_learnt(fine | {"finite": np.array([[True, False]])}, OPTIONS, 0)


EIGHT = """
import dataclasses, jax, numpy as np
from tests import policy_helpers as helpers
assert jax.device_count() == 8
options = dataclasses.replace(helpers.OPTIONS, steps=1, kl_coef=0.1, value="head")
(one, first), (eight, second) = (helpers.train(options, helpers.make(options, devices=n)) for n in (1, 8))
for a, b in zip(one, eight, strict=True):
    for key in a:
        np.testing.assert_allclose(a[key], b[key], rtol=1e-4, atol=1e-4, err_msg=key)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4), first.policy, second.policy)
"""


def test_eight_devices_train_as_one():
    done = subprocess.run([sys.executable, "-c", EIGHT], env=with_devices(8), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
