"""Seconds of an iteration of PPO, here and in trl's PPOTrainer: the same policy, prompts, sizes and reward model.

    python -m tests.bench.ppo --model=../shared/data/stories260k --batch=8 --prompt=32 --new_tokens=53

Policy, reference, value model and reward model all have the structure and backbone of --model; float32, and no end
token: all responses have --new_tokens tokens. Sizes are by default those of trl's PPOConfig. trl's reward model reads
the policy's tokens, ours the text. The two take turns, trl with two threads and then with one; of each the fastest
iteration counts. Needs `pip install -e '.[bench]'`.
"""

import collections
import functools
import pathlib
import tempfile
import threading
import time
from collections.abc import Callable
from unittest import mock

import jax
import numpy as np
from absl import app, flags, logging

from scpo_jax import compilations, judge, policy_program, sharding, train_policy
from scpo_jax.models import hf, module
from scpo_jax.policy_program import Options
from scpo_jax.policy_prompts import Task
from scpo_jax.policy_rewards import Rewards
from scpo_jax.sampling import Sampling
from tests.bench.stories import OPENINGS

MODEL = flags.DEFINE_string("model", "../shared/data/stories260k", "Hugging Face folder of a Llama")
BATCH = flags.DEFINE_integer("batch", 8, "responses of an iteration")
PROMPT = flags.DEFINE_integer("prompt", 32, "tokens of each prompt")
NEW_TOKENS = flags.DEFINE_integer("new_tokens", 53, "tokens of each response")
MINIBATCHES = flags.DEFINE_integer("minibatches", 1, "gradient steps of an epoch")
EPOCHS = flags.DEFINE_integer("epochs", 4, "passes over a batch")
ITERATIONS = 4  # of a turn
RATE, KL_COEF = 1e-4, 0.05


class Measured:
    """Seconds of iterations, and of named parts of each."""

    def __init__(self):
        self.iterations: list[float] = []
        self.parts: list[dict[str, float]] = []
        self._open, self._start = collections.Counter(), 0.0

    def begin(self) -> None:
        self._open, self._start = collections.Counter(), time.perf_counter()

    def end(self) -> None:
        """Of an iteration, and the beginning of the next."""
        self.iterations.append(time.perf_counter() - self._start)
        self.parts.append(dict(self._open))
        self.begin()

    def timed(self, name: str, function: Callable) -> Callable:
        """The function, whose seconds count as those of the part `name`."""

        @functools.wraps(function)
        def run(*arguments, **options):
            start = time.perf_counter()
            found = function(*arguments, **options)
            self._open[name] += time.perf_counter() - start
            return found

        return run

    def said(self) -> str:
        """The fastest iteration and its parts."""
        best = int(np.argmin(self.iterations))
        parts = self.parts[best] | {"rest": self.iterations[best] - sum(self.parts[best].values())}
        shares = ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items())
        return f"{min(self.iterations):.2f} s an iteration ({shares}); median {np.median(self.iterations):.2f} s"


def write_reward_model(folder: pathlib.Path, to: pathlib.Path) -> None:
    """A reward model with the backbone and the tokenizer of the policy, and a head of random weights."""
    policy, params = hf.load_language_model(folder)
    model = module.build({key: value for key, value in policy.config.items() if key != "architectures"})
    drawn = module.init(model, jax.random.key(0))
    hf.save(model, {name: drawn[name] if name == "score" else params[name] for name in drawn}, to)
    hf.save_tokenizer(hf.load_tokenizer(folder), to)


def make_prompts(tokenizer) -> list[str]:
    """Texts of about --prompt tokens."""
    drawn = np.random.default_rng(0).choice(OPENINGS, (4 * BATCH.value, PROMPT.value))
    ids = tokenizer([" ".join(row) for row in drawn], add_special_tokens=False)["input_ids"]
    return [tokenizer.decode(row[: PROMPT.value]) for row in ids]


def ours(folder: pathlib.Path, reward_model: pathlib.Path, prompts: list[str]):
    """(runs our training and gives how often it compiled after the first iteration, its measure)."""
    (model, params), tokenizer = hf.load_language_model(folder), hf.load_tokenizer(folder)
    options = Options(
        algorithm="ppo", steps=ITERATIONS, batch_size=BATCH.value, num_generations=1,
        num_mini_batches=MINIBATCHES.value, num_ppo_epochs=EPOCHS.value, learning_rate=RATE, kl_coef=KL_COEF,
        kl_estimator="k1", kl_target=0.0, kl_horizon=1, kl_budget=None, missing_eos_penalty=0.0, cliprange=0.2,
        cliprange_value=0.2, vf_coef=0.1, gamma=1.0, gae_lambda=0.95, value="own", value_warmup_steps=0,
        new_tokens=NEW_TOKENS.value, dtype="float32", remat=False, max_grad_norm=1.0, seed=0,
    )  # fmt: skip
    mesh, settings = sharding.make_mesh(1, 1, 1, jax.devices()[:1]), Sampling((), tokenizer.pad_token_id)
    program = policy_program.make_program(model, mesh, options, settings, sharding.AXES)
    start = policy_program.start(model, params, options)
    asked = train_policy.ask([Task(text, text, "all") for text in prompts], tokenizer, PROMPT.value, settings.pad_id)
    rewards = Rewards(judge.open_judge(str(reward_model), max_length=PROMPT.value + NEW_TOKENS.value), ["all"])
    first = train_policy.sample(
        program, program.place(start), asked, np.arange(BATCH.value), tokenizer, options, ITERATIONS
    )
    rewards.prepare("all", [task.prompt for task in first.tasks], first.texts, BATCH.value)
    measured, thread = Measured(), threading.get_ident()
    timed = {"sample": "generation", "finish_reading": "reading", "learn": "update"}
    patches = {name: measured.timed(part, getattr(train_policy, name)) for name, part in timed.items()}

    def run() -> int:
        compiled = []

        def log(step, metrics):
            measured.end()
            compiled.append(compilations.count(thread))

        measured.begin()
        scored = mock.patch.object(rewards, "scores", measured.timed("scoring", rewards.scores))
        with mock.patch.multiple(train_policy, **patches), scored:
            train_policy.train(program, start, asked, tokenizer, rewards, options, log)
        return compiled[-1] - compiled[0]

    return run, measured, asked


def theirs(folder: pathlib.Path, reward_model: pathlib.Path, asked: train_policy.Asked, output: str):
    """(runs trl's training, its measure)."""
    import datasets
    import torch
    import transformers
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    language, scoring = transformers.AutoModelForCausalLM, transformers.AutoModelForSequenceClassification
    policy, reference = (language.from_pretrained(folder, dtype=torch.float32) for _ in range(2))
    value, reward = (scoring.from_pretrained(reward_model, num_labels=1, dtype=torch.float32) for _ in range(2))
    torch.nn.init.zeros_(value.score.weight)
    settings = PPOConfig(
        output_dir=output, per_device_train_batch_size=BATCH.value, gradient_accumulation_steps=1,
        num_mini_batches=MINIBATCHES.value, num_ppo_epochs=EPOCHS.value, total_episodes=ITERATIONS * BATCH.value,
        local_rollout_forward_batch_size=BATCH.value, response_length=NEW_TOKENS.value, temperature=1.0,
        learning_rate=RATE, kl_coef=KL_COEF, num_sample_generations=0, save_strategy="no", report_to="none",
        use_cpu=True, bf16=False, gradient_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    data = datasets.Dataset.from_dict({"input_ids": [ids.tolist() for ids in asked.input_ids]})
    measured = Measured()

    class Clock(transformers.TrainerCallback):
        def on_train_begin(self, *_, **__):
            measured.begin()

        def on_step_end(self, *_, **__):
            measured.end()

    trainer = PPOTrainer(
        args=settings, processing_class=tokenizer, model=policy, ref_model=reference, reward_model=reward,
        value_model=value, train_dataset=data, eval_dataset=data, callbacks=[Clock()],
    )  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    timed = measured.timed("generation", ppo_trainer.batch_generation)

    def generation(*arguments):
        responses, logits = timed(*arguments)
        assert logits.shape[:2] == (BATCH.value, NEW_TOKENS.value)
        return responses, logits

    def run(threads: int) -> None:
        torch.set_num_threads(threads)
        with mock.patch.object(ppo_trainer, "batch_generation", generation):
            trainer.train()

    return run, measured


def main(_) -> None:
    logging.set_verbosity(logging.ERROR)
    folder = pathlib.Path(MODEL.value)
    with tempfile.TemporaryDirectory() as output:
        reward_model = pathlib.Path(output) / "reward_model"
        write_reward_model(folder, reward_model)
        run_ours, own, asked = ours(folder, reward_model, make_prompts(hf.load_tokenizer(folder)))
        run_theirs, other = theirs(folder, reward_model, asked, output)
        compiled = 0
        for threads in (2, 1):
            compiled += run_ours()
            run_theirs(threads)
    print(f"{compiled} programs compiled after the first iteration")
    print(f"scpo  {own.said()}")
    print(f"trl   {other.said()}")
    print(f"{min(other.iterations) / min(own.iterations):.1f} times as fast")


if __name__ == "__main__":
    app.run(main)
