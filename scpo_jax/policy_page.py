"""What `report.html` shows of trained policies: sentences, tables, a figure, and responses before and after."""

from collections.abc import Mapping, Sequence

import numpy as np

from scpo_jax import passages
from scpo_jax.drawing import Picture, draw, legend, shortened
from scpo_jax.tables import Table, spread

ENDS = ("before", "after")
SMOOTHED = 5  # logged steps of a curve that are averaged for a line
LINES = {"score": ("#d55e00", "-", "score"), "gold": ("#0072b2", "--", "gold (truth)")}  # colours of METHOD_COLOURS


def section(found: dict) -> dict:
    """What the macro `policies` of the templates shows; {} without a `reports/policy.json`."""
    return found and {
        "answer": [sentence(group, own) for group, own in found.items()],
        "overview": overview(found),
        "wording": wording_table(found),
        "groups": [
            {
                "group": group,
                "judges": judges_table(own),
                "gold": gold_table(own),
                "samples": [example(row) for row in own["samples"]],
            }
            for group, own in found.items()
        ],
    }


def number(record: Mapping, sign: bool = False, unit: float = 1.0) -> str:
    """A mean with its 95 % interval, in `unit`s."""
    form = f"{'+' if sign else ''}.2f"
    mean, low, high = (format(record[key] / unit, form) for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def in_deviations(record: Mapping) -> str:
    """A change in standard deviations of single responses before; "-" where these are all alike."""
    return number(record["change"], True, record["std"]) if record["std"] else "-"


def share(record: Mapping) -> str:
    """A share in percent with its interval."""
    return spread({"accuracy": record["mean"], "low": record["low"], "high": record["high"]})


def sentence(group: str, own: dict) -> str:
    """What became of a policy."""
    judged = own["judges"]
    said = (
        f"{group}: the policy, trained against the RM {own['trained_against']}, gains "
        f"{in_deviations(judged[own['trained_against']])} standard deviations of its score at a KL of "
        f"{number(own['kl_interval'])} nats a response"
    )
    other = next((name for name in ("global", *judged) if name in judged and name != own["trained_against"]), None)
    if other:
        said += f"; judged by the RM {other} its responses win {share(judged[other]['win_rate'])} % of the prompts"
    truth = own.get("gold", {}).get(group)
    if truth:
        said += f"; by the truth {group} gains {in_deviations(truth)} standard deviations"
    return f"{said}."


def overview(found: dict) -> Table:
    """A row for each policy."""
    rows = []
    for group, own in found.items():
        score, truth = own["judges"][own["trained_against"]], own.get("gold", {}).get(group)
        told = [f"{truth[when]['mean']:.2f}" for when in ENDS] + [in_deviations(truth)] if truth else ["-"] * 3
        scores = [f"{own[f'score_{when}']:.2f}" for when in ENDS] + [in_deviations(score)]
        rows.append([group, own["trained_against"], own["steps"], number(own["kl_interval"]), *scores, *told])
    note = (
        "Mean over fresh responses to prompts of test users, with 95 % intervals of a bootstrap over prompts; changes "
        "in standard deviations of single responses of the reference. KL to the reference in nats a response."
    )
    header = [
        "policy",
        "trained against",
        "steps",
        "KL",
        "score before",
        "after",
        "change",
        "gold before",
        "after",
        "change",
    ]
    return Table("Before and after", note, header, rows)


def wording_table(found: dict) -> Table:
    """How long and how varied responses are."""
    rows = [
        [f"{group}, {when}", f"{own[when]['length']:.1f}", f"{100 * own[when]['end_rate']:.1f}",
         *(f"{own[when][f'distinct_{n}']:.3f}" for n in (1, 2)),
         f"{100 * own['in_grammar'][when]:.1f}" if "in_grammar" in own else "-"]
        for group, own in found.items() for when in ENDS
    ]  # fmt: skip
    note = "Distinct words and pairs of words as a share of all; they fall as responses become longer."
    header = ["responses", "tokens", "ended, %", "distinct words", "distinct pairs", "in the grammar, %"]
    return Table("Wording", note, header, rows)


def judges_table(own: dict) -> Table:
    """What every reward model says of a policy."""
    rows = [
        [f"{name} (trained against)" if name == own["trained_against"] else name,
         *(f"{record[when]['mean']:.2f}" for when in ENDS), in_deviations(record), share(record["win_rate"])]
        for name, record in own["judges"].items()
    ]  # fmt: skip
    note = "Win rate: how often the response after scores higher than the one before to the same prompt; a tie is half."
    return Table("By reward model", note, ["RM", "before", "after", "change, deviations", "win rate, %"], rows)


def gold_table(own: dict) -> Table | None:
    """What the truth says of a policy, to whom."""
    if not own.get("gold"):
        return None
    rows = [
        [name, *(f"{record[when]['mean']:.2f}" for when in ENDS), in_deviations(record), share(record["win_rate"]),
         in_deviations(own["gold_without_length"][name])]
        for name, record in own["gold"].items()
    ]  # fmt: skip
    note = (
        "True utility of the responses, in which an attribute counts once, however often it is stated; a text outside "
        "the grammar counts as the 5th percentile of the reference's. Changes in deviations of single responses."
    )
    header = ["to", "before", "after", "change", "win rate, %", "change without the attribute length"]
    return Table("By the truth", note, header, rows)


def example(row: dict) -> dict:
    """A prompt with both responses for the template."""
    sides = [
        {
            "side": when,
            "text": passages.beginning(row[when]),
            "score": f"{row[f'score_{when}']:.2f}",
            "gold": f"{row[f'gold_{when}']:.2f}" if f"gold_{when}" in row else "",
            "direction": passages.direction(row[when]),
        }
        for when in ENDS
    ]
    prompt = row["prompt"]
    return {"prompt": passages.end(prompt), "direction": passages.direction(prompt), "sides": sides}


def smoothed(values: Sequence[float]) -> np.ndarray:
    """Running mean over `SMOOTHED` neighbours, fewer at the ends."""
    padded = np.convolve(values, np.ones(SMOOTHED), "same")
    return padded / np.convolve(np.ones(len(values)), np.ones(SMOOTHED), "same")


def picture(found: dict) -> Picture | None:
    """Score and gold against KL along each training."""
    parts = {group: own for group, own in found.items() if own["curve"]}

    def plot(axes, parts):
        for axis, (group, own) in zip(axes, parts.items(), strict=True):
            against(axis, own, group)
            axis.set_title(shortened(group), loc="left")
            axis.set_ylabel("change, deviations")
        axes[-1].set_xlabel("KL to the reference, nats a response")
        legend(axes[0], 2)

    if not parts:
        return None
    alt = "Score, and true utility where known, against KL along the training of each policy; see the tables."
    caption = (
        "On the responses of training, change in standard deviations of single responses of the reference. "
        "Vertical line: KL budget; mark: the policy that was kept, on held-out prompts."
    )
    return draw("policy", alt, caption, plot, parts, height=2.6, panels=len(parts), share_y=False)


def against(axis, own: dict, group: str) -> None:
    """One policy's curves, its KL budget, and where the kept policy ended."""
    records = {"score": own["judges"][own["trained_against"]], "gold": own.get("gold", {}).get(group)}
    for name, (ink, style, label) in LINES.items():
        points, record = [row for row in own["curve"] if row.get(name) is not None], records[name]
        if not points or not record or not record["std"]:
            continue
        kl, values = (smoothed([row[key] for row in points]) for key in ("kl", name))
        values = (values - record["before"]["mean"]) / record["std"]
        axis.plot(kl, values, color=ink, linestyle=style, linewidth=1.3, label=label)
        mark = {"marker": "o", "linestyle": "", "color": ink, "markerfacecolor": "white"}
        axis.plot([own["kl"]], [record["change"]["mean"] / record["std"]], **mark)
    if own["kl_budget"] is not None:
        axis.axvline(own["kl_budget"], color="#555555", linestyle=":", linewidth=1)
