"""Policies trained against their own country's RM beside policies trained against the global RM, at equal KL.

    python -m tests.bench.policies --workdirs=runs/ppo_1,runs/ppo_2,runs/ppo_3 --group=Chile \
        --against=runs/global_1,runs/global_2,runs/global_3

Each is a finished workdir of the simulated world, the two lists in the same order of seeds. Gold is true utility to the
group; its gain is in standard deviations of single reference responses.
"""

import argparse
import json
import pathlib

import numpy as np

from scpo_jax.policy_page import smoothed

LEVELS = (1.0, 2.0, 4.0, 6.0, 8.0)  # nats a response


def main(workdirs: list[str], against: list[str], group: str) -> None:
    """Prints the final policies on held-out prompts, then both kinds along their trainings."""
    found = {
        name: [report_of(folder, group) for folder in own] for name, own in (("own", workdirs), ("global", against))
    }
    print("| run | trained against | KL | gold before | after | gain [95 %] | gold_std | score gain | in grammar, % |")
    print("|---|---|---|---|---|---|---|---|---|")
    for folder, own in zip([*workdirs, *against], [*found["own"], *found["global"]], strict=True):
        print(f"| {pathlib.Path(folder).name} | {row_of(own, group)} |")
    if against:
        print("\nThe one against the own RM gains more by, at these final KL:\n")
        apart = [difference(*both, group) for both in zip(found["own"], found["global"], strict=True)]
        for i, (more, wide) in enumerate(apart):
            kls = " and ".join(f"{every[i]['kl']:.2f}" for every in found.values())
            print(f"- {i + 1}: {more:+.2f} [{more - wide:+.2f}, {more + wide:+.2f}] at {kls} nats")
        print(f"- mean: {np.mean([more for more, _ in apart]):+.2f}")
    print("\nGain of gold along the training, at the KL of its responses:\n")
    names = [f"{name} {i + 1}" for name, own in found.items() for i in range(len(own))]
    print(f"| KL | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    ends = [own["kl"] for own in found["own"]]
    for level in (*LEVELS, *ends):
        gains = [gain_at(own, group, level) for every in found.values() for own in every]
        print(f"| {level:.2f} | {' | '.join('-' if g is None else f'{g:+.2f}' for g in gains)} |")


def report_of(folder: str, group: str) -> dict:
    """What `reports/policy.json` says of a group's policy."""
    return json.loads((pathlib.Path(folder) / "reports" / "policy.json").read_text())[group]


def row_of(own: dict, group: str) -> str:
    """The cells of a final policy."""
    change, std = own["gold"][group]["change"], own["gold_std"]
    gain, low, high = (change[key] / std for key in ("mean", "low", "high"))
    score = own["judges"][own["trained_against"]]
    return (
        f"{own['trained_against']} | {own['kl']:.2f} | {own['gold_before']:.2f} | {own['gold_after']:.2f} | "
        f"{gain:+.2f} [{low:+.2f}, {high:+.2f}] | {std:.2f} | {score['change']['mean'] / score['std']:+.2f} | "
        f"{100 * own['in_grammar']['before']:.1f} → {100 * own['in_grammar']['after']:.1f}"
    )


def difference(own: dict, other: dict, group: str) -> tuple[float, float]:
    """(how much more gold the first gains, half of the 95 % interval) in deviations, as if of independent samples."""
    changes = [every["gold"][group]["change"] for every in (own, other)]
    more, std = changes[0]["mean"] - changes[1]["mean"], own["gold_std"]
    return more / std, float(np.hypot(*[(change["high"] - change["low"]) / 2 for change in changes])) / std


def gain_at(own: dict, group: str, kl: float) -> float | None:
    """Gain of gold where the smoothed KL of a training first reaches `kl`; None if it never does."""
    points = [row for row in own["curve"] if "gold" in row]
    x, y = (smoothed([row[key] for row in points]) for key in ("kl", "gold"))
    later = np.flatnonzero(x >= kl)
    if not len(later) or not later[0]:
        return None
    i = later[0]
    value = np.interp(kl, x[i - 1 : i + 1], y[i - 1 : i + 1])
    return float(value - own["gold"][group]["before"]["mean"]) / own["gold_std"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdirs", required=True)
    parser.add_argument("--against", default="")
    parser.add_argument("--group", default="Chile")
    given = parser.parse_args()
    main(given.workdirs.split(","), [folder for folder in given.against.split(",") if folder], given.group)
