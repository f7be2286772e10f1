"""Who takes part in `throughput`: each a function of its turns and its job, in its own process.

They import their library themselves: torch's memory is not to count as ours.
"""

import ctypes
import functools
import json
import pathlib
import resource
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

PAIRS, TEXTS = 8, 8  # of a training step; of a batch of `score_eager`
AT_ONCE = 4  # pairs that the peers take at once, their gradients added: 8 of 512 tokens take more than 20 GiB
LEARNING_RATE, LENGTH = 1e-6, 512


class Job(NamedTuple):
    """What all contenders do: start from the weights in `folder` and take `turns`."""

    folder: str
    texts: tuple  # the token ids of the chosen and of the rejected texts; or one list, to score
    turns: list[list[int]]  # which training steps, or which texts
    threads: int

    @property
    def order(self) -> np.ndarray:
        """The pairs of each training step `[K, 8]`, as `scpo run` orders them: every pair once."""
        from scpo_jax.data import order

        totals = np.array([len(a) + len(b) for a, b in zip(*self.texts, strict=True)])
        return order.shuffled(totals, PAIRS, 0, len(totals) // PAIRS)


class Turns:
    """A contender's turns: each begins when the other side says so, and ends with what was measured.

    The clock starts after the first piece of work, which is done twice: memory that waited for its turn was given back,
    and what it takes to get it anew is not what a training costs whose steps follow each other.
    """

    def __init__(self, connection):
        self._connection, self._start = connection, 0.0

    def begin(self) -> None:
        """Waits for the turn."""
        self._connection.recv()

    def start(self) -> None:
        """Starts the clock."""
        self._start = time.perf_counter()

    def ready(self) -> None:
        """To be called once, when the start-up is over."""
        self._connection.send("ready")

    def end(self, units: int, tokens: int, computed: int, scores=None) -> None:
        """`units` pairs or texts of `tokens` tokens are done; with padding `computed` ones."""
        seconds = time.perf_counter() - self._start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        measured = {"seconds": seconds, "units": units, "tokens": tokens, "computed": computed, "peak_bytes": peak}
        ctypes.CDLL(None).malloc_trim(0)  # the others need the memory
        self._connection.send(measured | ({} if scores is None else {"scores": scores}))


def play(contender: Callable[[Turns, Job], None], connection, job: Job) -> None:
    """Runs a contender in this process."""
    contender(Turns(connection), job)


def save_start(geometry: dict, folder: str) -> None:
    """Random weights as a Hugging Face folder."""
    import jax

    from scpo_jax.models import hf, module

    model = module.build(geometry)
    hf.save(model, module.init(model, jax.random.key(0)), pathlib.Path(folder))


def tokens_of(job: Job, steps: np.ndarray) -> int:
    """Tokens of the texts of these pairs, without padding."""
    return sum(len(side[i]) for side in job.texts for i in steps.reshape(-1))


def our_texts(side: list[np.ndarray]) -> list:
    from scpo_jax.data.encoding import Text

    return [Text(ids.astype(np.int32), np.zeros(len(ids), np.int32), 0) for ids in side]


def train_ours(turns: Turns, job: Job) -> None:
    """The step of `scpo run` on its packed batches, prepared and run as its loop does."""
    import jax
    from jax.sharding import PartitionSpec as P

    from scpo_jax import sharding, train_step
    from scpo_jax.data import batches, packing
    from scpo_jax.models import hf

    model, params = hf.load(job.folder)
    mesh = sharding.make_mesh(1, 1, 1)
    program = train_step.make_program(
        model, mesh, dtype="float32", weight_decay=0.0, max_grad_norm=1.0, center_rewards_coefficient=0.0
    )
    ones = np.ones(len(job.texts[0]), np.float32)
    pairs = [batches.Pairs(*map(our_texts, job.texts), ones, 0 * ones)]
    dealt = batches.deal(pairs, [job.order], 1, 1)
    shapes = packing.choose_shapes([dealt.lengths], model.width, "cpu")
    plan = batches.plan(dealt, model.width, shapes, "cpu")
    state = sharding.place(jax.tree.map(lambda leaf: np.asarray(leaf)[None], params), mesh, program.specs)
    state = state, program.init(state)
    rates, seeds = np.array([LEARNING_RATE], np.float32), np.array([0], np.uint32)

    def step(state, k):
        batch = sharding.shares_of(functools.partial(batches.batch_at, pairs, plan, k), mesh, 1)
        numbers = (plan.pairs[k] >= 0).sum((1, 2), dtype=np.int32), rates, seeds, np.int32(k)
        *state, metrics = program.step(*state, batch, *sharding.place(numbers, mesh, (P(), P(), P(), P())), {})
        return state, metrics

    compiled = {tuple(plan.shapes[k]): k for own in job.turns for k in own}
    for k in compiled.values():
        state, _ = jax.block_until_ready(step(state, k))
    turns.ready()
    for own in job.turns:
        turns.begin()
        state, _ = jax.block_until_ready(step(state, own[0]))
        turns.start()
        for k in own:
            state, metrics = step(state, k)
        jax.block_until_ready((state, metrics))
        turns.end(PAIRS * len(own), tokens_of(job, job.order[own]), int(plan.shapes[own].prod(1).sum()))


def torch_model(job: Job):
    """The same weights in transformers."""
    import torch
    import transformers

    torch.set_num_threads(job.threads)
    transformers.logging.set_verbosity_error()
    return transformers.AutoModelForSequenceClassification.from_pretrained(job.folder, dtype=torch.float32)


class Computed:
    """Counts the tokens, padding and all, that go through a model of transformers."""

    def __init__(self, model):
        self.tokens = 0
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model, arguments, named) -> None:
        self.tokens += named["input_ids"].numel()

    def take(self) -> int:
        """How many since the last time."""
        tokens, self.tokens = self.tokens, 0
        return tokens


def words_tokenizer():
    """A tokenizer with nothing but padding, which trl asks for."""
    import tokenizers
    import transformers

    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel({"[PAD]": 0}, "[PAD]")),
        pad_token="[PAD]", eos_token="[PAD]",
    )  # fmt: skip


def train_trl(turns: Turns, job: Job, tuned: bool = False) -> None:
    """The loop of trl's RewardTrainer: the batches of the turns follow each other.

    `tuned` by us: without its gradient checkpointing, a step's pairs in two halves, which need less padding.
    """
    import datasets
    import transformers
    import trl

    model = torch_model(job)
    computed, order = Computed(model), job.order
    steps = [k for own in job.turns for k in (own[0], *own)]
    bounds = np.cumsum([0, *(1 + len(own) for own in job.turns)])  # steps finished before each turn

    class TakeTurns(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            done = state.global_step
            if done == 0:
                turns.ready()
            if done in bounds:
                turns.begin()
            if done - 1 in bounds:
                computed.take()
                turns.start()

        def on_step_end(self, args, state, control, **kwargs):
            done = state.global_step
            if done in bounds[1:]:
                own = job.turns[list(bounds).index(done) - 1]
                turns.end(PAIRS * len(own), tokens_of(job, order[own]), computed.take())

    rows = [i for k in steps for i in order[k]]
    names = "chosen_ids", "rejected_ids"
    columns = {name: [side[i].tolist() for i in rows] for name, side in zip(names, job.texts, strict=True)}
    settings = trl.RewardConfig(
        output_dir=f"{job.folder}/trl", per_device_train_batch_size=AT_ONCE if tuned else PAIRS,
        gradient_accumulation_steps=PAIRS // AT_ONCE if tuned else 1, max_steps=len(steps), max_length=LENGTH,
        learning_rate=LEARNING_RATE, train_sampling_strategy="sequential", disable_dropout=False,
        gradient_checkpointing=not tuned, bf16=False, use_cpu=True, report_to=[], save_strategy="no",
        disable_tqdm=True, logging_steps=10**6,
    )  # fmt: skip
    trainer = trl.RewardTrainer(
        model, settings, train_dataset=datasets.Dataset.from_dict(columns), processing_class=words_tokenizer(),
        callbacks=[TakeTurns()],
    )  # fmt: skip
    trainer.train()


def train_padded(turns: Turns, job: Job) -> None:
    """The reference's way: every text padded to 512 tokens. The first step of each turn only."""
    import torch

    model = torch_model(job).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    computed, order = Computed(model), job.order

    def step(pairs):
        optimizer.zero_grad()
        for part in np.split(pairs, len(pairs) // AT_ONCE):
            inputs = padded([side[i] for side in job.texts for i in part], LENGTH)
            chosen, rejected = model(**inputs).logits[:, 0].chunk(2)
            (-torch.nn.functional.logsigmoid(chosen - rejected)).sum().div(PAIRS).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    turns.ready()
    for own in job.turns:
        turns.begin()
        step(order[own[0]][:AT_ONCE])
        computed.take()
        turns.start()
        step(order[own[0]])
        turns.end(PAIRS, tokens_of(job, order[own[0]]), computed.take())


def products(turns: Turns, job: Job) -> None:
    """A bound: the matrix products of the linear maps for the texts' tokens, and nothing else.

    Of all layers but the last, which needs few tokens; three times where a gradient is taken. The best float32 product
    of this machine (XLA's and torch's are alike) has these sizes: one with more to do is slower.
    """
    import jax
    import jax.numpy as jnp

    config = json.loads((pathlib.Path(job.folder) / "config.json").read_text())
    width, inner, training = config["hidden_size"], config["intermediate_size"], len(job.texts) == 2
    maps = [jnp.ones(shape, jnp.float32) for shape in (*4 * [(width, width)], (width, inner), (inner, width))]
    times = (config["num_hidden_layers"] - 1) * (3 if training else 1)
    product = jax.jit(jnp.matmul)

    def compute(tokens: int) -> None:
        x, wide = (jnp.ones((tokens, size), jnp.float32) for size in (width, inner))
        for _ in range(times):
            for kernel in maps:
                jax.block_until_ready(product(wide if len(kernel) == inner else x, kernel))

    tokens = [
        tokens_of(job, job.order[own]) if training else sum(len(job.texts[0][i]) for i in own) for own in job.turns
    ]
    turns.ready()
    for own, count in zip(job.turns, tokens, strict=True):
        turns.begin()
        compute(count)
        turns.start()
        compute(count)
        turns.end(PAIRS * len(own) if training else len(own), count, count)


def padded(texts: list[np.ndarray], length: int) -> dict:
    """Inputs of a model of transformers, one text a row of `length` tokens."""
    import torch

    ids, mask = torch.zeros((2, len(texts), length), dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = torch.as_tensor(text), 1
    return {"input_ids": ids, "attention_mask": mask}


def score_ours(turns: Turns, job: Job) -> None:
    """The scoring stage: packed rows over sorted texts."""
    import jax

    from scpo_jax import score
    from scpo_jax.data import packing
    from scpo_jax.models import hf

    model, params = hf.load(job.folder)
    function = score.score_function(model, "float32")
    parts = [our_texts([job.texts[0][i] for i in own]) for own in job.turns]
    lengths = [[len(text.input_ids) for text in part] for part in parts]
    plans = [packing.plan_batches(own, model.width, score.most_tokens(model.width, "cpu")) for own in lengths]
    compiled = {}
    for part, plan in zip(parts, plans, strict=True):
        for indices, *places, slots in plan:
            compiled[places[-1], slots] = packing.lay_out([part[i] for i in indices], *places, slots)
    for batch in compiled.values():
        jax.block_until_ready(function.compiled(params, batch))
    turns.ready()
    for part, own, plan in zip(parts, lengths, plans, strict=True):
        turns.begin()
        score.score_texts(function, params, part[:TEXTS])
        turns.start()
        scores = score.score_texts(function, params, part)
        turns.end(len(part), sum(own), sum(int(np.prod(batch.shape)) for batch in plan), scores)


def score_eager(turns: Turns, job: Job) -> None:
    """Transformers in batches of 8 texts in their order, padded to the longest of the batch."""
    import torch

    model = torch_model(job).eval()
    computed = Computed(model)
    turns.ready()
    for own in job.turns:
        turns.begin()
        texts, scores = [job.texts[0][i] for i in own], []
        with torch.no_grad():
            model(**padded(texts[:TEXTS], max(map(len, texts[:TEXTS]))))
            computed.take()
            turns.start()
            for first in range(0, len(texts), TEXTS):
                part = texts[first : first + TEXTS]
                scores.append(model(**padded(part, max(map(len, part)))).logits[:, 0].numpy())
        turns.end(len(texts), sum(map(len, texts)), computed.take(), np.concatenate(scores))
