"""Stage policy: a language model is finetuned on responses, then one policy per group is trained against its RM."""

import contextlib
import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
import pyarrow as pa
from etils import epath

from scpo_jax import (
    checkpoint,
    distributed,
    evaluate_policy,
    judge,
    logs,
    policy,
    policy_program,
    policy_prompts,
    preemption,
    sft,
    sharding,
    stages,
    storage,
    train_policy,
)  # fmt: skip
from scpo_jax.checkpoint import Loaded
from scpo_jax.data import preferences
from scpo_jax.errors import InputError
from scpo_jax.judge import Judge
from scpo_jax.models import module
from scpo_jax.models.lora import Lora
from scpo_jax.policy_program import Options
from scpo_jax.policy_prompts import Task
from scpo_jax.policy_rewards import Rewards
from scpo_jax.train_reward import derived_seed
from scpo_jax.training_state import TrainingState
from scpo_jax.workdir import Workdir, digest, slugs_of

EVERYBODY = "all"  # folder of the one policy of all groups (config.policy.tag)


def run(config, workdir: Workdir) -> None:
    """Trains the policies of a run and writes their checkpoints; resumes what was interrupted. Raises InputError."""
    table = preferences.read_table(workdir.pairs)
    opened = open_judge(config, workdir)
    folders, rows = folders_of(config, workdir, groups_of(config, table, opened)), table.to_pylist()
    tasks = {
        folder: [t for g in own for t in policy_prompts.training_tasks(config, rows, g)]
        for folder, own in folders.items()
    }
    if config.policy.sft.max_steps:
        sft.run(config, workdir)
    trainer = Trainer(config, workdir, opened)
    for folder, groups in folders.items():
        trainer.produce(folder, groups, tasks[folder])
    if distributed.is_writer() and workdir.policies.exists():
        for path in workdir.policies.iterdir():
            if path not in folders:  # of groups that the config no longer names
                path.rmtree()
    evaluate_policy.evaluate(config, workdir, folders)


def open_judge(config, workdir: Workdir) -> Judge:
    """The reward models that the config has judge."""
    how = {"method": config.policy.method, "profile": config.policy.profile or None, "dtype": config.model.dtype}
    return judge.open_judge(str(workdir.root), **how)


def groups_of(config, table: pa.Table, opened: Judge) -> list[str]:
    """The groups that get a policy: the named ones, else all that are steered. Raises InputError."""
    named = preferences.group_names(config.policy.groups)
    preferences.check_groups(dict.fromkeys(named, "config.policy.groups"), table["group"].to_pylist())
    wanted = named or stages.steered_groups(config, table)
    without = [] if judges_all(config) else [group for group in wanted if group not in opened.groups]
    if named and without:
        raise InputError(f"config.policy.groups: {without[0]} has no RM of {config.policy.method}")
    for group in without:
        logs.say(f"policy: {group} has no RM of {config.policy.method}, skipped")
    return [group for group in wanted if group not in without]


def judges_all(config) -> bool:
    """Whether one reward model judges for all groups."""
    return bool(config.policy.profile) or config.policy.method == "global"


def folders_of(config, workdir: Workdir, groups: Sequence[str]) -> dict[epath.Path, tuple[str, ...]]:
    """Folder of each policy -> the groups that it serves."""
    if config.policy.tag:
        return {workdir.policies / EVERYBODY: tuple(groups)}
    slugs = slugs_of(groups)
    return {workdir.policies / slugs[group]: (group,) for group in groups}


def options_from(config, name: str) -> Options:
    """The options of the training of the policy `name`."""
    own = {field.name for field in dataclasses.fields(Options)} & set(config.policy)
    settings = {key: config.policy[key] for key in own}
    seed = derived_seed(config.seed, f"policy/{name}")
    return Options(**settings, max_grad_norm=config.train.max_grad_norm, seed=seed)


class Trainer:
    """Trains policies from one reference, in programs that they share."""

    def __init__(self, config, workdir: Workdir, opened: Judge):
        self._config, self._workdir, self._judge = config, workdir, opened
        self._reference = policy.load_reference(config, workdir)
        self._start = adapted(config, self._reference)
        self._mesh = sharding.make_mesh(config.mesh.group, config.mesh.data, config.mesh.model)
        check_sizes(config, self._reference, self._mesh.shape["data"])
        self._sampling = policy.sampling_of(self._reference)
        axes = sharding.AXES if config.mesh.shard_parameters else ("model",)
        self._program = policy_program.make_program(
            self._start.model, self._mesh, options_from(config, ""), self._sampling, axes
        )

    def produce(self, folder: epath.Path, groups: tuple[str, ...], tasks: Sequence[Task]) -> None:
        """Trains the policy of some groups, or goes on with it, and writes its checkpoint."""
        fingerprint = digest([self._workdir.fingerprint("policy"), groups])
        card = distributed.on_writer("the checkpoint of a policy", lambda: checkpoint.load_card(folder))
        if card.get("fingerprint") == fingerprint:
            return
        options, name = options_from(self._config, folder.name), f"policy/{folder.name}"
        rewards = self._prepared(tasks, options)
        state = self._workdir.training / f"policy-{fingerprint[:12]}"
        trained = self._train(tasks, rewards, options, name, state)
        if distributed.is_writer():
            checkpoint.save(folder, self._finished(trained, groups, rewards, fingerprint))
            if state.exists():
                state.rmtree()
        distributed.barrier("the checkpoint of a policy")
        logs.say(f"policy: wrote {folder}")

    def _prepared(self, tasks: Sequence[Task], options: Options) -> Rewards:
        """The reward models, which have seen samples of the reference for each group."""
        settings, groups = self._config.policy, list(dict.fromkeys(task.group for task in tasks))
        rewards = Rewards(self._judge, groups)
        writer = policy.Writer(
            self._reference, self._mesh, max_prompt=settings.max_prompt, new_tokens=settings.new_tokens,
            rows=options.batch_size, dtype=options.dtype,
        )  # fmt: skip
        for group in groups:
            own = [task for task in tasks if task.group == group]
            drawn = np.random.default_rng(options.seed).permutation(settings.reference_samples) % len(own)
            asked = [own[i] for i in drawn]
            texts = writer.sample(self._reference.params, [task.asked for task in asked], options.seed).texts
            rewards.prepare(group, [task.prompt for task in asked], texts, options.batch_size // len(groups) + 1)
        return rewards

    def _train(self, tasks, rewards: Rewards, options: Options, name: str, folder: epath.Path):
        saving, tokenizer = self._config.checkpoint, self._reference.tokenizer
        asked = train_policy.ask(tasks, tokenizer, self._config.policy.max_prompt, self._sampling.pad_id)
        start = policy_program.start(self._start.model, self._start.params, options)
        state = TrainingState(folder, saving.keep, saving.every_steps) if saving.every_steps else None
        progress = logs.Progress(options.steps, name, "step")
        with contextlib.ExitStack() as opened:
            opened.enter_context(preemption.training(state is not None))
            if state:
                opened.callback(state.close)
            metrics = logs.MetricsLog(self._workdir.root).open(name, saving.every_steps, every=1)
            own = opened.enter_context(metrics) if distributed.is_writer() else None

            def log(step: int, found: dict) -> None:
                if own:
                    own(step, found)
                progress.reach(step)

            trained = train_policy.train(
                self._program, start, asked, tokenizer, rewards, options, log,
                observe=evaluate_policy.observer(self._config, self._workdir),
                state=state, name=name,
            )  # fmt: skip
        progress.close()
        return trained

    def _finished(self, trained, groups: tuple[str, ...], rewards: Rewards, fingerprint: str) -> Loaded:
        """The policy as its checkpoint has it."""
        settings = self._config.policy
        own = {"max_prompt": settings.max_prompt, "new_tokens": settings.new_tokens, "tag": settings.tag}
        own |= {"group": groups[0] if len(groups) == 1 else "", "groups": list(groups), "fingerprint": fingerprint}
        own |= {"judge": settings.method, "profile": settings.profile, "steps": trained.steps, "kl": trained.kl}
        own |= {"scales": {group: scale._asdict() for group, scale in rewards.scales.items()}}
        own |= {"base": self._start.card["base"]} if self._start.model.lora else {}
        params = policy_program.policy_params(self._start.params, trained.policy)
        return self._start._replace(params=params, card={"method": "policy", **own})


def adapters_of(config) -> Lora | None:
    """The adapters that the config asks for; None where all parameters are trained."""
    settings = config.policy.lora
    return Lora(settings.rank, float(settings.alpha), tuple(settings.targets)) if settings.rank else None


def adapted(config, reference: Loaded) -> Loaded:
    """What training starts from: the reference, with fresh adapters if the config asks for them. Raises InputError."""
    adapters = adapters_of(config)
    if adapters is None:
        return reference
    key = jax.random.key(derived_seed(config.seed, "policy/lora"))
    model, params = module.adapt(reference.model, jax.device_get(reference.params), adapters, key)
    name = "../../sft" if config.policy.sft.max_steps else config.policy.name_or_path
    folder = epath.Path(name).expanduser()
    if not name.startswith("..") and folder.exists():
        name = str(storage.absolute(folder))
    return reference._replace(
        model=model, params=params, card={"base": checkpoint.reference(name, config.policy.revision, params)}
    )


def check_sizes(config, reference: Loaded, devices: int) -> None:
    """Refuses texts that the policy is too short for, and batches that the devices cannot share."""
    settings, most = config.policy, reference.model.max_positions
    if most is not None and settings.max_prompt + settings.new_tokens > most:
        raise InputError(
            f"config.policy.max_prompt={settings.max_prompt} and config.policy.new_tokens={settings.new_tokens}: the "
            f"policy takes {most} tokens"
        )
    size = settings.batch_size // settings.num_mini_batches
    if size % devices:
        raise InputError(
            f"config.policy.batch_size={settings.batch_size} in {settings.num_mini_batches} minibatches: {size} "
            f"responses are no multiple of {devices} devices (config.mesh.data)"
        )
