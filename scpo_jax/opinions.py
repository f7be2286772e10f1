"""`scpo evaluate --source=global_opinions`: survey answers of countries as a test of any reward model.

Beside pairwise accuracy: how near softmax(reward / T) over a question's options is to the country's shares, T fitted
on training questions, with the global RM and the uniform distribution to compare with.
"""

from collections.abc import Sequence

import numpy as np

from scpo_jax import distributed, evaluate, files, logs, metrics, score
from scpo_jax.data import global_opinions, preferences
from scpo_jax.data.global_opinions import Cell
from scpo_jax.judge import Judge
from scpo_jax.workdir import Workdir, digest, is_workdir

TEST_SIZE, SPLIT_SEED = 0.15, 0  # of a model that was not trained on these questions
LARGEST = 1e3  # of the inverse temperature, times the deviation of the rewards


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Jensen-Shannon divergence of two distributions `[K]` in bits, from 0 to 1 (Lin 1991)."""
    middle = (p + q) / 2

    def bits(a):
        return np.sum(a * np.log2(np.where(a > 0, a, 1) / np.where(a > 0, middle, 1)))

    return float(np.clip((bits(p) + bits(q)) / 2, 0.0, 1.0))


def softmax(rewards: np.ndarray, inverse: float) -> np.ndarray:
    """exp(inverse * rewards) over its sum, `[K]`."""
    powers = np.exp(inverse * (rewards - rewards.max()))
    return powers / powers.sum()


def fit_inverse_temperature(rewards: Sequence[np.ndarray], shares: Sequence[np.ndarray]) -> float:
    """1 / T >= 0 that minimises the mean cross-entropy of shares and softmax(rewards / T) over cells.

    The derivative, mean reward under the softmax minus that under the shares, rises with 1 / T: bisection. 0 (uniform)
    where rewards do not go with shares.
    """
    scale = float(np.mean([np.std(own) for own in rewards])) if len(rewards) else 0.0
    low, high = 0.0, LARGEST / scale if scale else 0.0

    def excess(inverse):
        return sum((softmax(r, inverse) - s) @ r for r, s in zip(rewards, shares, strict=True))

    if not scale or excess(low) >= 0:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return (low + high) / 2


def similarities(cells: Sequence[Cell], rewards: Sequence[np.ndarray], inverse: float) -> dict[str, dict]:
    """ "similarity_divergence" 1 - JSD and "similarity_distance" 1 - sqrt(JSD): mean over cells with 95 % interval.

    The interval is of a bootstrap over batteries of questions, as that of accuracies.
    """
    jsd = np.array([divergence(cell.shares, softmax(r, inverse)) for cell, r in zip(cells, rewards, strict=True)])
    values = {"similarity_divergence": 1 - jsd, "similarity_distance": 1 - np.sqrt(jsd)}
    if not len(jsd):
        return {name: {"mean": None, "low": None, "high": None, "n": 0} for name in values}
    counts = metrics.bootstrap_counts(np.array([cell.battery for cell in cells]), np.random.default_rng(0))
    found = {}
    for name, own in values.items():
        low, high = metrics.interval(metrics.resampled_means(own, counts))
        found[name] = {"mean": float(own.mean()), "low": low, "high": high, "n": len(own)}
    return found


def evaluate_file(judge: Judge, model: str, data: str, output: str, groups: Sequence[str] = ()) -> None:
    """Writes accuracies and similarities of a model on test questions, by country; raises InputError.

    `groups` are countries; () for those that the model has an RM for, or all if it has none of them.
    """
    path, file = files.output_path(output), global_opinions.fetch(data)
    source, cells = global_opinions.read(file, groups=tuple(groups)), global_opinions.cells(file)
    distributed.check_same(f"--data={data}", digest([source.units, len(source.pairs)]))
    present = dict.fromkeys(cell.country for cell in cells)
    countries = list(groups) or [country for country in present if country in judge.groups] or list(present)
    train, test = split_of(model, source.units)
    methods = {"global": {}, judge.method: judge.groups} if judge.groups else {judge.method: {}}
    report = {"groups": countries, "batteries": {"train": len(train), "test": len(test)}, "temperature": {}}
    report["methods"] = {method: {} for method in ["uniform", *methods]}
    own = {c: [cell for cell in cells if cell.country == c] for c in countries}
    tested = {c: [cell for cell in own[c] if cell.battery in test] for c in countries}
    pairs = {c: [p for p in source.pairs if p["group"] == c and p["user_id"] in test] for c in countries}
    for country in countries:
        flat = [np.zeros(len(cell.options)) for cell in tested[country]]
        report["methods"]["uniform"][country] = similarities(tested[country], flat, 0.0)
    for method, models in methods.items():
        scores = {c: scores_of(judge, own[c], c if c in models else "") for c in countries}
        rewards = {c: [rewards_of(cell, scores[c]) for cell in own[c]] for c in countries}
        both = [asked for c in countries for asked in zip(own[c], rewards[c], strict=True)]
        fitted = [(values, cell.shares) for cell, values in both if cell.battery in train]
        inverse = fit_inverse_temperature(*zip(*fitted, strict=True)) if fitted else 0.0
        report["temperature"][method] = 1 / inverse if inverse else None
        for country in countries:
            asked = zip(own[country], rewards[country], strict=True)
            values = [values for cell, values in asked if cell.battery in test]
            near = similarities(tested[country], values, inverse)
            report["methods"][method][country] = {"all": accuracy(pairs[country], scores[country]), **near}
    report["macro"] = {method: macro(of_group.values()) for method, of_group in report["methods"].items()}
    if distributed.is_writer():
        Workdir.write_json(path, report)
    for method, means in report["macro"].items():
        said = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in means.items() if value is not None)
        logs.say(f"{method}, mean over {len(countries)} countries: {said}")


def accuracy(pairs: Sequence[dict], scores: dict[str, np.float32]) -> dict:
    """The record A of pairs, with an interval by batteries."""
    if not pairs:
        return metrics.accuracy_record(np.zeros(0), np.zeros((1, 0)))
    return metrics.accuracy_record(evaluate.margins_of(pairs, scores), evaluate.test_pairs(pairs).counts)


def split_of(model: str, units: Sequence[str]) -> tuple[set[str], set[str]]:
    """(train, test) batteries: those of a workdir that was trained on these questions, else a split of its own kind."""
    if is_workdir(model):
        run = Workdir(model)
        if run.record()["config"]["data.source"] == "global_opinions":
            split = run.read_json(run.split)
            return set(split["train"]), set(split["test"])
    train, test = preferences.split_units(units, TEST_SIZE, SPLIT_SEED)
    return set(train), set(test)


def scores_of(judge: Judge, cells: Sequence[Cell], group: str) -> dict[str, np.float32]:
    """text key -> score of every option, by the RM of a group ("" for the global one)."""
    texts = score.distinct_texts(*([[cell.question] * len(cell.options), cell.options] for cell in cells))
    if not texts:
        return {}
    prompts, options = zip(*texts.values(), strict=True)
    return dict(zip(texts, judge.score(prompts, options, [group] * len(texts)), strict=True))


def rewards_of(cell: Cell, scores: dict[str, np.float32]) -> np.ndarray:
    """Rewards `[K]` float64 of a cell's options."""
    return np.array([scores[score.text_key(cell.question, option)] for option in cell.options], float)


def macro(records: Sequence[dict]) -> dict[str, float | None]:
    """Means over countries; None where no country has a value."""
    values = {"accuracy": [], "similarity_divergence": [], "similarity_distance": []}
    for record in records:
        own = {name: record[name]["mean"] for name in ("similarity_divergence", "similarity_distance")}
        own["accuracy"] = record["all"]["accuracy"] if "all" in record else None
        for name, value in own.items():
            values[name] += [] if value is None else [value]
    return {name: float(np.mean(own)) if own else None for name, own in values.items()}
