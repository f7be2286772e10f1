"""`scpo sft`: supervised finetuning of the policy, by next-token loss on the responses of the training pairs.

It makes what PPO starts from and is held to: the reference policy.
"""

import contextlib
from collections.abc import Sequence

import jax
from etils import epath

from scpo_jax import checkpoint, configuration, distributed, logs, preemption, sharding, train_language
from scpo_jax.checkpoint import Loaded
from scpo_jax.data import completions, language_vocabulary, preferences
from scpo_jax.data.encoding import Text
from scpo_jax.errors import InputError
from scpo_jax.models import hf, module
from scpo_jax.models.module import RewardModel
from scpo_jax.train_reward import derived_seed
from scpo_jax.training_state import TrainingState
from scpo_jax.workdir import Workdir, digest


def run(config, workdir: Workdir) -> None:
    """Trains the language model that `config.policy` names, or one from scratch, and writes its checkpoint.

    Reads the pairs of stage prepare; goes on where it was interrupted. Raises InputError.
    """
    if not config.policy.sft.max_steps:
        raise InputError("config.policy.sft.max_steps=0: there is nothing to train")
    fingerprint = digest([own_keys(config), workdir.fingerprint("prepare")])
    card = distributed.on_writer("the checkpoint of sft", lambda: checkpoint.load_card(workdir.sft))
    if card.get("fingerprint") == fingerprint:
        logs.say(f"sft: {workdir.sft} is done already")
        return
    rows = training_rows(config, preferences.read_table(workdir.pairs).to_pylist())
    prompts, responses = texts_of(config, rows)
    start = load_start(config, [*map(preferences.as_text, prompts), *responses])
    policy = config.policy
    texts = completions.encode(start.tokenizer, prompts, responses, policy.max_prompt, policy.new_tokens)
    check_lengths(start.model, texts)
    state = workdir.training / f"sft-{fingerprint[:12]}"
    ids = [row["pair_id"] for row in rows] * (len(texts) // len(rows))
    params = train(config, workdir, start, texts, ids, state)
    if distributed.is_writer():
        card = {"method": "sft", "group": "", "texts": len(texts), "fingerprint": fingerprint}
        card |= {"max_prompt": policy.max_prompt, "new_tokens": policy.new_tokens, "steps": policy.sft.max_steps}
        checkpoint.save(workdir.sft, start._replace(params=params, card=card))
        if state.exists():
            state.rmtree()
    distributed.barrier("the checkpoint of sft")
    logs.say(f"sft: wrote {workdir.sft}")


def own_keys(config) -> dict:
    """The config keys that decide what is trained, with their values."""
    values, own = configuration.flatten(config), ("seed", "train.max_grad_norm", "policy.revision", "policy.dtype")
    own += ("policy.name_or_path", "policy.max_prompt", "policy.new_tokens", "policy.scratch.", "policy.sft.")
    return {key: value for key, value in values.items() if key.startswith(own)}


def training_rows(config, rows: list[dict]) -> list[dict]:
    """The training pairs of config.policy.sft.groups, () for all."""
    groups = preferences.group_names(config.policy.sft.groups)
    preferences.check_groups(dict.fromkeys(groups, "config.policy.sft.groups"), sorted({row["group"] for row in rows}))
    found = [row for row in rows if row["split"] == "train" and (not groups or row["group"] in groups)]
    if not found:
        raise InputError("sft has no training pair: see config.policy.sft.groups")
    return found


def texts_of(config, rows: list[dict]) -> tuple[list, list[str]]:
    """(prompts, responses) of pairs to learn from: those of config.policy.sft.responses."""
    which = config.policy.sft.responses
    sides = ("chosen", "rejected") if which == "both" else (which,)
    prompts = [preferences.prompt_of(row) for row in rows]
    return prompts * len(sides), [row[side] for side in sides for row in rows]


def load_start(config, texts: Sequence[str]) -> Loaded:
    """The language model that training starts from; from scratch one with a tokenizer made of these texts."""
    policy = config.policy
    if policy.name_or_path:
        if checkpoint.is_checkpoint(policy.name_or_path):
            return checkpoint.load_language_model(policy.name_or_path)
        folder = hf.resolve(policy.name_or_path, policy.revision)
        return Loaded(*hf.load_language_model(folder), hf.load_tokenizer(folder), {})
    longest = policy.max_prompt + policy.new_tokens
    tokenizer = language_vocabulary.make_tokenizer(texts, policy.scratch.vocab_size, longest)
    model = module.build(scratch_config(config, tokenizer, longest), "config.policy.scratch", language=True)
    return Loaded(model, module.init(model, jax.random.key(derived_seed(config.seed, "policy"))), tokenizer, {})


def scratch_config(config, tokenizer, longest: int) -> dict:
    """The `config.json` of a Llama to start from random weights."""
    return {
        "model_type": "llama",
        "hidden_act": "silu",
        **config.policy.scratch.to_dict(),
        "vocab_size": len(tokenizer),
        "max_position_embeddings": longest,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }


def check_lengths(model: RewardModel, texts: Sequence[Text]) -> None:
    """Refuses texts longer than the model has positions for."""
    longest = max(len(text.input_ids) for text in texts)
    if longest > model.max_positions:
        raise InputError(
            f"a text has {longest} tokens but the policy takes {model.max_positions}: "
            "lower config.policy.max_prompt or config.policy.new_tokens"
        )


def train(
    config, workdir: Workdir, start: Loaded, texts: Sequence[Text], ids: Sequence[str], folder: epath.Path
) -> dict:
    """The trained parameters, on the host; what is under way is saved in `folder`, and gone on with.

    `ids` are the pairs that the texts are of.
    """
    sft, saving = config.policy.sft, config.checkpoint
    options = train_language.Options(
        max_steps=sft.max_steps, batch_size=sft.batch_size, learning_rate=sft.learning_rate,
        warmup_steps=sft.warmup_steps, max_grad_norm=config.train.max_grad_norm,
        seed=derived_seed(config.seed, "sft"), dtype=config.policy.dtype,
    )  # fmt: skip
    mesh = sharding.make_mesh(config.mesh.group, config.mesh.data, config.mesh.model)
    axes = sharding.AXES if config.mesh.shard_parameters else ("model",)
    program = train_language.make_program(start.model, mesh, options, axes)
    state = TrainingState(folder, saving.keep, saving.every_steps) if saving.every_steps else None
    progress = logs.Progress(sft.max_steps, "sft", "step")
    with contextlib.ExitStack() as opened:
        opened.enter_context(preemption.training(state is not None))
        if state:
            opened.callback(state.close)
        metrics = logs.MetricsLog(workdir.root)
        own = opened.enter_context(metrics.open("sft", saving.every_steps)) if distributed.is_writer() else None

        def log(step: int, found: dict) -> None:
            if own:
                own(step, found)
            progress.reach(step)

        params = train_language.train(
            program, start.params, texts, options, log,
            ids=ids, state=state, max_skipped=config.train.max_skipped,
        )  # fmt: skip
    progress.close()
    return params
