"""Next-token training of a policy: what it learns, resumed as straight, `scpo sft` and the export of its checkpoint."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scpo_jax import checkpoint, language_model, preemption, sharding, train_language
from scpo_jax.data import completions
from scpo_jax.data.encoding import Text
from scpo_jax.errors import InputError
from scpo_jax.models import hf, module
from scpo_jax.train_language import Options
from scpo_jax.training_state import TrainingState
from tests import chat_helpers, run_helpers
from tests import model_helpers as helpers

pytestmark = pytest.mark.filterwarnings("error:::(jax|flax|scpo_jax|tests).*")
OPTIONS = Options(
    max_steps=8, batch_size=8, learning_rate=3e-2, warmup_steps=2, max_grad_norm=1.0, seed=0, dtype="float32"
)
SMALL = helpers.LLAMA31 | {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "head_dim": 4}


def some_texts(count=24, seed=0):
    """Two random tokens of a prompt, then a response that counts up from the second one."""
    generator, texts = np.random.default_rng(seed), []
    for _ in range(count):
        first, length = int(generator.integers(1, 25)), int(generator.integers(3, 9))
        ids = np.array([generator.integers(1, 25), *range(first, first + length)], np.int32)
        texts.append(Text(ids, (np.arange(len(ids)) > 1).astype(np.int32), 0))
    return texts


def make(devices=1):
    """A tiny language model, its random parameters and its training step on so many devices."""
    model = module.build(SMALL, language=True)
    mesh = sharding.make_mesh(1, devices, 1, jax.devices()[:devices])
    return module.init(model, jax.random.key(0)), train_language.make_program(model, mesh, OPTIONS, sharding.AXES)


def train(program, params, state=None):
    """(losses, parameters) of a training."""
    losses = []

    def log(step, metrics):
        losses.append(metrics["loss"])

    return losses, train_language.train(program, params, some_texts(), OPTIONS, log, state=state)


def test_it_learns_and_a_resumed_training_is_the_straight_one(tmp_path, monkeypatch):
    params, program = make()
    losses, straight = train(program, params)
    assert losses[0] == pytest.approx(np.log(40), rel=0.02) and losses[-1] < losses[0] - 0.5
    assert not straight["score"]["kernel"].any() or np.array_equal(
        straight["score"]["kernel"], params["score"]["kernel"]
    )
    state = TrainingState(tmp_path, keep=2, every=2)
    asked = []
    monkeypatch.setattr(preemption, "due", lambda: asked.append(1) or len(asked) == 5)
    with pytest.raises(preemption.Interrupted, match="the state after 5 steps is saved"):
        train(program, params, state)
    state.close()
    state = TrainingState(tmp_path, keep=2, every=2)
    later, resumed = train(program, params, state)
    state.close()
    assert later == losses[5:]
    jax.tree.map(np.testing.assert_array_equal, resumed, straight)


@pytest.fixture
def poison(monkeypatch):
    """A token of the language: the loss of a batch with it is not finite."""
    token, loss = 39, language_model.next_token_loss

    def poisoned(model, params, batch, dtype):
        total, count = loss(model, params, batch, dtype)
        return jnp.where((batch.input_ids == token).any(), jnp.nan, total), count

    monkeypatch.setattr(language_model, "next_token_loss", poisoned)
    return token


def test_a_step_that_is_not_finite_changes_nothing_and_is_named(poison, capsys):
    params, program = make()
    texts, logged, same = some_texts(), [], []
    texts[5].input_ids[-1] = poison
    drawn = train_language.make_plan(texts, OPTIONS, program).texts
    bad = [k for k in range(OPTIONS.max_steps) if 5 in drawn[k]]
    assert 0 < len(bad) < OPTIONS.max_steps

    def step(*arguments):
        before = jax.device_get(arguments[:2])
        results = program.step(*arguments)
        same.append(all(map(np.array_equal, *map(jax.tree.leaves, (before, jax.device_get(results[:2]))))))
        return results

    trained = train_language.train(
        program._replace(step=step), params, texts, OPTIONS, lambda _, found: logged.append(found),
        ids=[f"pair {i}" for i in range(len(texts))],
    )  # fmt: skip
    assert [k for k, unchanged in enumerate(same) if unchanged] == bad
    assert [found["skipped"] for found in logged] == [sum(b <= k for b in bad) for k in range(OPTIONS.max_steps)]
    assert [k for k, found in enumerate(logged) if "loss" not in found] == bad
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trained))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1].split(",")[0] for line in lines] == [f"step {k + 1} is skipped" for k in bad]
    assert all("pair 5" in line.split("its pairs: ")[1].split(", ") for line in lines)


POLICY = {
    "max_prompt": 16, "new_tokens": 16, "sft.max_steps": 4, "sft.batch_size": 4, "sft.learning_rate": 0.01,
    "scratch.vocab_size": 300, "scratch.hidden_size": 16, "scratch.num_hidden_layers": 1,
    "scratch.num_attention_heads": 2, "scratch.num_key_value_heads": 1, "scratch.intermediate_size": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A workdir in which `scpo sft` has run."""
    made = run_helpers.World(tmp_path_factory.mktemp("sft"))
    assert run_helpers.scpo(*sft(made)) == 0
    return made


def sft(world, **own) -> list[str]:
    """The arguments of `scpo sft`."""
    keys = [f"--config.policy.{key}={value}" for key, value in (POLICY | own).items()]
    return ["sft", f"--config={world.config}", f"--workdir={world.workdir}", *keys]


def test_the_command_leaves_a_checkpoint_and_does_nothing_twice(world, capsys):
    folder = world.workdir / "checkpoints/sft"
    loaded = checkpoint.load_language_model(folder)
    assert loaded.model.language and loaded.card["steps"] == 4 and "lm_head" not in loaded.params
    rows = [row for row in run_helpers.read_rows(world.workdir / "metrics.jsonl") if row["training"] == "sft"]
    assert [row["step"] for row in rows] == [1] and rows[0]["tokens"] > 4 * 3
    ids = completions.encode_prompts(loaded.tokenizer, ["question 1"], 16)[0]
    assert loaded.tokenizer.decode(ids) == "<|user|>question 1<|assistant|>"
    capsys.readouterr()
    assert run_helpers.scpo(*sft(world)) == 0
    assert "is done already" in capsys.readouterr().err
    with pytest.raises(InputError, match="is a language model of scpo, not a reward model"):
        checkpoint.load(folder)


def test_many_in_a_row_end_the_command(world, monkeypatch, capsys):
    loss = language_model.next_token_loss
    monkeypatch.setattr(language_model, "next_token_loss", lambda *own: (loss(*own)[0] * np.inf, 1))
    assert run_helpers.scpo(*sft(world, **{"sft.learning_rate": 0.02}), "--config.train.max_skipped=2") == 2
    *before, last = capsys.readouterr().err.splitlines()
    assert last.startswith("scpo: error: train sft: 2 steps in a row up to step 2 had no finite loss and gradient")
    assert "a lower config.policy.sft.learning_rate may help" in last
    named = [line.split("its pairs: ")[1].split(", ") for line in before if " is skipped" in line]
    known = {row["pair_id"] for row in run_helpers.read_rows(world.data)}
    assert [len(names) for names in named] == [4, 4] and {name for names in named for name in names} <= known
    assert checkpoint.load_card(world.workdir / "checkpoints/sft")["steps"] == 4, "what was there before stands"


@pytest.mark.parity
def test_the_export_is_a_language_model_for_transformers(world):
    pytest.importorskip("torch")
    import transformers

    folder, output = world.workdir / "checkpoints/sft", world.folder / "hf"
    assert run_helpers.scpo("export", f"--checkpoint={folder}", f"--output={output}") == 0
    assert json.loads((output / "scpo.json").read_text())["method"] == "sft" and not (output / "README.md").exists()
    reference = transformers.AutoModelForCausalLM.from_pretrained(output)
    tokenizer = transformers.AutoTokenizer.from_pretrained(output)
    assert tokenizer.eos_token_id == reference.config.eos_token_id != tokenizer.pad_token_id
    loaded, again = checkpoint.load_language_model(folder), hf.load_language_model(output)[1]
    jax.tree.map(np.testing.assert_array_equal, again["layers"], loaded.params["layers"])


@pytest.mark.parametrize(
    "own, said",
    [
        ({"sft.groups": "Atlantis"}, "config.policy.sft.groups"),
        ({"sft.responses": "best"}, "config.policy.sft.responses='best': it is one of"),
        ({"scratch.num_key_value_heads": 3}, "num_key_value_heads=3: it has to divide num_attention_heads"),
        ({"name_or_path": "/nowhere"}, "no such folder"),
    ],
)
def test_mistakes_are_one_line(world, capsys, own, said):
    assert run_helpers.scpo(*sft(world, **own)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("scpo: error: ") and said in error


def test_a_reward_model_is_no_policy(tmp_path):
    model, params = helpers.make("llama")
    card, tokenizer = {"method": "global", "group": ""}, chat_helpers.make_tokenizer(["a b"])
    checkpoint.save(tmp_path / "rm", checkpoint.Loaded(model, params, tokenizer, card))
    with pytest.raises(InputError, match="is a reward model of scpo, not a language model"):
        checkpoint.load_language_model(tmp_path / "rm")
