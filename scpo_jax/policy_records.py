"""What a policy's training changed, as records: scores by several judges, win rates, distance, wording, gold.

Before is the reference policy, after the trained one; both answer the same prompts. Intervals are of a bootstrap over
distinct prompts. Numpy only. Legend of dimensions: N responses, A attributes.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from scpo_jax import gold, metrics

Pair = tuple[np.ndarray, np.ndarray]  # [N] before, [N] after


def change(before: np.ndarray, after: np.ndarray, counts: np.ndarray) -> dict:
    """A number of each response, `[N]` before and after: both means and the mean change, with their intervals.

    "std" is the standard deviation of single responses before: the unit in which judges can be compared.
    """
    own = {"before": before, "after": after, "change": after - before}
    return {name: metrics.mean_record(values, counts) for name, values in own.items()} | {"std": float(before.std())}


def judged(before: np.ndarray, after: np.ndarray, counts: np.ndarray) -> dict:
    """`change` of a judge's scores, and how often the response after is the better one of a prompt; a tie is half."""
    wins = (after > before) + 0.5 * (after == before)
    return change(before, after, counts) | {"win_rate": metrics.mean_record(wins, counts)}


def golden(before: np.ndarray, after: np.ndarray, weights: Mapping[str, np.ndarray], counts: np.ndarray) -> dict:
    """Judge -> `judged` by the truth of responses with levels `[N, A]`; {} if no response before is of the grammar."""
    if np.isnan(before).all():
        return {}
    return {
        judge: judged(gold.gold(before, before, own), gold.gold(after, before, own), counts)
        for judge, own in weights.items()
    }


def wording(texts: Sequence[str], lengths: np.ndarray, ended: np.ndarray) -> dict:
    """Of responses: tokens on average, share that ended by themselves, distinct words and pairs of words."""
    return {
        "length": float(np.mean(lengths)),
        "end_rate": float(np.mean(ended)),
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
    }


def distinct(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams of words as a share of all n-grams of these texts (arXiv 1510.03055); 0 of none.

    It falls with the number of words: to be compared between as many texts of about one length.
    """
    found = [gram for words in map(str.split, texts) for gram in zip(*(words[i:] for i in range(n)), strict=False)]
    return len(set(found)) / max(len(found), 1)


def side_by_side(prompts: Sequence[str], texts: tuple, scores: Pair, truth: Pair | None, most: int) -> list[dict]:
    """The first `most` distinct prompts with both responses, their scores and, where known, their gold."""
    rows = []
    for i in sorted({prompt: i for i, prompt in reversed(list(enumerate(prompts)))}.values())[:most]:
        row = {"prompt": prompts[i]}
        for when, text, score in zip(("before", "after"), texts, scores, strict=True):
            row |= {when: text[i], f"score_{when}": float(score[i])}
        if truth:
            row |= {f"gold_{when}": float(own[i]) for when, own in zip(("before", "after"), truth, strict=True)}
        rows.append(row)
    return rows


def read_curve(rows: Sequence[Mapping], names: Mapping[str, str]) -> list[dict]:
    """The curve of a training from its rows of `metrics.jsonl`: name -> metric, of the metrics that rows have."""
    return [
        {"step": row["step"], **{name: row[metric] for name, metric in names.items() if metric in row}} for row in rows
    ]
