"""Evaluation of trained policies: `reports/policy.json`, from fresh responses to prompts that were held out.

Every reward model of the run judges them, not only the one that trained the policy; in the simulated world the truth
does as well.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from scpo_jax import (
    controls,
    distributed,
    gold,
    judge,
    logs,
    metrics,
    page,
    policy,
    policy_page,
    policy_prompts,
    policy_records,
    sharding,
)  # fmt: skip
from scpo_jax.data import preferences
from scpo_jax.policy import Samples, Writer
from scpo_jax.policy_prompts import Task
from scpo_jax.policy_records import Pair
from scpo_jax.train_reward import derived_seed
from scpo_jax.workdir import Workdir

RESPONSES = 512  # of each policy
SHOWN = 6  # prompts with both responses
CURVE = {"kl": "objective/kl", "score": "objective/scores", "gold": "objective/gold"}  # of a training's metrics
Score = Callable[[Sequence, Sequence[str]], np.ndarray]  # prompts, responses -> scores [N]


class Answers(NamedTuple):
    """What the reference and a trained policy say to the same tasks."""

    tasks: list[Task]
    before: Samples
    after: Samples


def evaluate(config, workdir: Workdir, folders: Mapping[epath.Path, tuple[str, ...]]) -> None:
    """Samples from the policies of a run and their reference, has the responses judged and writes the report.

    The page of the run, if it has one, gets their section.

    Args:
      folders: checkpoint of a policy -> the groups that it serves.
    """
    rows = preferences.read_table(workdir.pairs).to_pylist()
    mesh = sharding.make_mesh(config.mesh.group, config.mesh.data, config.mesh.model)
    writer = policy.open_writer(config, workdir, mesh, config.policy.batch_size)
    judges, truth, report = judges_of(config, workdir), read_truth(config, workdir), {}
    for folder, groups in folders.items():
        loaded = policy.load(folder)
        about = {
            "kl_budget": config.policy.kl_budget,
            "steps": loaded.card["steps"],
            "curve": curve_of(workdir, folder),
        }
        for group in groups:
            tasks = held_out(config, rows, group)
            if not tasks:
                logs.say(f"policy: {group} has no test user who asks anything, its policy is not evaluated")
                continue
            answers = answered(config, writer, loaded.params, tasks, group)
            report[group] = record_of(answers, judges, trained_against(config, group), group, truth) | about
    if distributed.is_writer():
        workdir.write_json(workdir.reports / "policy.json", report)
        for group, own in report.items():
            logs.say(policy_page.sentence(group, own))
        if (workdir.reports / "evaluation.json").exists():
            page.write(workdir)


def held_out(config, rows: Sequence[dict], group: str) -> list[Task]:
    """What a group's policy is asked: its held-out prompts in random order, again and again up to `RESPONSES`."""
    tasks = policy_prompts.held_out_tasks(config, rows, group)
    order = np.random.default_rng(derived_seed(config.seed, f"policy_prompts/{group}")).permutation(len(tasks))
    return [tasks[i] for i in np.resize(order, RESPONSES)] if len(tasks) else []


def answered(config, writer: Writer, params: dict, tasks: Sequence[Task], group: str) -> Answers:
    """Fresh responses of the reference and of the policy with these parameters."""
    asked = [task.asked for task in tasks]
    seeds = [derived_seed(config.seed, f"policy_{when}/{group}") for when in ("before", "after")]
    before = writer.sample(writer.reference.params, asked, seeds[0])
    return Answers(list(tasks), before, writer.sample(params, asked, seeds[1]))


def judges_of(config, workdir: Workdir) -> dict[str, Score]:
    """The reward models of a run by name: the one that the policies are trained against first, where it is a blend."""
    method = config.policy.method if config.policy.method != "global" else controls.main_method(config.scpo.methods)
    opened, found = functools.partial(judge.open_judge, str(workdir.root), dtype=config.model.dtype), {}
    if config.policy.profile:
        found[config.policy.profile] = opened(method=method, profile=config.policy.profile).default
    every = opened(method=method or "global")
    found["global"] = every.global_scorer() or every.default
    return found | {group: functools.partial(judged_by, every, group) for group in every.groups}


def judged_by(every: judge.Judge, group: str, prompts: Sequence, texts: Sequence[str]) -> np.ndarray:
    """Scores `[N]` by the RM of a group, which is read when it is needed."""
    return every.scorer(group)(prompts, texts)


def trained_against(config, group: str) -> str:
    """The name among the judges of the one that a group's policy is trained against."""
    return config.policy.profile or ("global" if config.policy.method == "global" else group)


def read_truth(config, workdir: Workdir) -> dict | None:
    """What the simulated world knows; None of any other data."""
    return workdir.read_json(workdir.simulated / "truth.json") if config.data.source == "simulated" else None


def record_of(answers: Answers, judges: Mapping[str, Score], own: str, group: str, truth: dict | None) -> dict:
    """The report of one policy that was trained against the judge `own` for a group."""
    prompts = [task.prompt for task in answers.tasks]
    shown = [preferences.as_text(prompt) for prompt in prompts]
    sides = answers.before, answers.after
    counts = metrics.bootstrap_counts(np.array(shown), np.random.default_rng(derived_seed(0, f"policy/{group}")))
    scores = {name: tuple(score(prompts, side.texts) for side in sides) for name, score in judges.items()}
    by_judge = {name: policy_records.judged(*pair, counts) for name, pair in scores.items()}
    kl, known = metrics.mean_record(answers.after.kl, counts), {}
    levels = tuple(gold.levels_of(side.texts) for side in sides)
    if truth:
        known = gold_records(levels, truth, group, counts)
    return {
        "score_before": by_judge[own]["before"]["mean"],
        "score_after": by_judge[own]["after"]["mean"],
        "kl": kl["mean"],
        **{f"gold_{key}": value for key, value in headline(known, group).items()},
        "trained_against": own,
        "responses": len(prompts),
        "prompts": len(set(shown)),
        "kl_interval": kl,
        "judges": by_judge,
        **known,
        **{
            when: policy_records.wording(side.texts, side.lengths, side.ended)
            for when, side in zip(("before", "after"), sides, strict=True)
        },
        "samples": policy_records.side_by_side(
            shown, tuple(side.texts for side in sides), scores[own], own_gold(levels, truth, group), SHOWN
        ),
    }


def observer(config, workdir: Workdir) -> Callable[[Sequence[str], Sequence[str]], dict]:
    """What is logged of the responses of a training, given these and their groups: in the simulated world their gold.

    The reference are the chosen responses of a group's train users, which policies learn from first.
    """
    truth = read_truth(config, workdir)
    if not truth:
        return lambda responses, groups: {}
    weights, chosen = gold.weights_of(truth), {}
    for row in preferences.read_table(workdir.pairs).to_pylist():
        if row["split"] == "train" and row["group"] in weights:
            chosen.setdefault(row["group"], []).append(row["chosen"])

    @functools.cache
    def reference(group: str) -> np.ndarray:
        return gold.levels_of(chosen[group])

    def observe(responses: Sequence[str], groups: Sequence[str]) -> dict:
        levels, owners = gold.levels_of(responses), np.array(groups)
        own = [gold.gold(levels[owners == g], reference(g), weights[g]) for g in set(groups) & chosen.keys()]
        return {"objective/gold": float(np.concatenate(own).mean())} if own else {}

    return observe


def gold_records(levels: Pair, truth: dict, group: str, counts: np.ndarray) -> dict:
    """What the truth says of responses with levels `[N, A]`, to whom, and how many are of its grammar."""
    inside = [float(1 - np.isnan(own[:, 0]).mean()) for own in levels]
    if not inside[0]:
        logs.say(f"policy: no response of the reference to {group} is of the simulated world's grammar: no gold")
    return {
        "gold": policy_records.golden(*levels, gold.weights_of(truth), counts),
        "gold_without_length": policy_records.golden(*levels, gold.weights_of(truth, gold.LENGTH), counts),
        "in_grammar": dict(zip(("before", "after"), inside, strict=True)),
    }


def headline(known: dict, group: str) -> dict:
    """Gold to the policy's own group, before and after, and the deviation of single responses before."""
    own = known.get("gold", {}).get(group)
    return {"before": own["before"]["mean"], "after": own["after"]["mean"], "std": own["std"]} if own else {}


def own_gold(levels: Pair, truth: dict | None, group: str) -> Pair | None:
    """Gold `[N]` of each response to the policy's own group."""
    if not truth or np.isnan(levels[0]).all():
        return None
    weights = gold.weights_of(truth).get(group)
    return None if weights is None else tuple(gold.gold(own, levels[0], weights) for own in levels)


def curve_of(workdir: Workdir, folder: epath.Path) -> list[dict]:
    """Score, and gold where it is known, against KL on the training's own responses, from `metrics.jsonl`."""
    rows = logs.read_metrics(workdir.root)
    return policy_records.read_curve([row for row in rows if row["training"] == f"policy/{folder.name}"], CURVE)
