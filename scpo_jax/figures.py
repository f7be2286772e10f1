"""Figures of a run, made of its reports; each makes sense without colour as well (shapes, hatches, numbers)."""

from collections.abc import Sequence

import numpy as np

from scpo_jax.drawing import MARKERS, METHOD_COLOURS, Picture, bars, colour, draw, label_rows, legend, shortened

KEPT, DROPPED = "#0072b2", "#e0b07a"
MANY = 12  # groups: with more, figures pool them or leave out numbers
BINS = 20  # of histograms


def accuracy(report: dict) -> Picture:
    """Accuracy on all test pairs per group, by the global RM and by the main method."""
    groups, methods, main = report["groups"], list(report["methods"]), report["paired"]["method"]
    shown = [method for method in ("global", main) if method]

    def plot(axes, report):
        for i, method in enumerate(shown):
            records = [report["methods"][method].get(group, {}).get("all") for group in groups]
            offset = 0.3 * (i - (len(shown) - 1) / 2)
            bars(axes[0], records, "accuracy", offset, label=method, **colour(methods, method))
        if "bayes" in report:
            best = [100 * report["bayes"][group]["all"] for group in groups]
            axes[0].plot(best, range(len(groups)), "|", color="#555555", markersize=12, label="truth (Bayes)")
        axes[0].axvline(50, color="#888888", linewidth=1, linestyle=":")
        label_rows(axes[0], groups)
        axes[0].set_xlabel("accuracy on all test pairs, percent")
        legend(axes[0])

    alt = f"Accuracy per group by {' and '.join(shown)} with 95 % intervals; the numbers are in the table above."
    caption = "Accuracy before and after, with 95 % intervals of a bootstrap over users. Dotted: chance."
    return draw("accuracy", alt, caption, plot, report, height=0.9 + 0.34 * len(groups))


def methods(report: dict) -> Picture | None:
    """Mean accuracy of every method on all, agreed and edited pairs."""
    names, parts = list(report["methods"]), ("all", "agreed", "edited")
    if len(names) == 1 or report["macro"]["global"]["all"] is None:
        return None

    def plot(axes, report):
        axis = axes[0]
        for i, which in enumerate(parts):
            records = [report["macro"][name][which] for name in names]
            look = {"color": METHOD_COLOURS[(0, 2, 1)[i]], "marker": MARKERS[i]}
            bars(axis, records, "difference", 0.22 * (i - 1), label=f"{which} pairs", **look)
        label_rows(axis, names)
        axis.set_xlabel("accuracy, percent, mean over groups")
        legend(axis)

    alt = "Mean accuracy of every method on all, agreed and edited test pairs; the numbers are in the tables."
    caption = "Agreed: the global RM was right, which must not be lost. Edited: it was wrong, which is to be gained."
    return draw("methods", alt, caption, plot, report, height=0.9 + 0.42 * len(names))


def panels_of(rows: Sequence[dict], groups: Sequence[str]) -> dict[str, list[dict]]:
    """title -> rows of each group, or of all groups together where they are many."""
    if len(groups) > MANY:
        return {f"{len(groups)} groups": list(rows)} if rows else {}
    found = {group: [row for row in rows if row["group"] == group] for group in groups}
    return {group: own for group, own in found.items() if own}


def histograms(rows: Sequence[dict], groups: Sequence[str], panel, x: str, y: str, *texts: str) -> Picture | None:
    """A histogram per group: `panel(axis, rows)` draws it and returns its title; `texts` are name, alt and caption."""
    parts = panels_of(rows, groups)

    def plot(axes, parts):
        for axis, (group, own) in zip(axes, parts.items(), strict=True):
            axis.set_title(f"{shortened(group)}: {panel(axis, own)}", loc="left")
        for axis in axes[-2:]:
            axis.set_xlabel(x)
        axes[0].set_ylabel(y)
        legend(axes[0])

    size = {"height": 1.25 if len(parts) > 1 else 2.4, "columns": min(2, len(parts)), "panels": len(parts)}
    return draw(*texts, plot, parts, **size) if parts else None


def kept(selection: Sequence[dict], groups: Sequence[str]) -> Picture | None:
    """Global probabilities of the training pairs, kept and dropped."""

    def panel(axis, rows):
        edges = np.linspace(0, 1, BINS + 1)
        p, keep = np.array([row["p_global"] for row in rows]), np.array([row["keep"] for row in rows])
        counts = [np.histogram(p[mask], edges)[0] / len(p) * 100 for mask in (keep, ~keep)]
        axis.stairs(counts[0], edges, fill=True, color=KEPT, label="kept")
        axis.stairs(sum(counts), edges, baseline=counts[0], fill=True, color=DROPPED, hatch="///", label="dropped")
        return f"{100 * keep.mean():.0f} % kept"

    rows = [row for row in selection if row["split"] == "train"]
    alt = "Histograms of the global probability of training pairs, kept and dropped by the filter, per group."
    caption = "Training pairs by the probability that the global RM gives to their label; the filter keeps p < tau."
    return histograms(rows, groups, panel, "global probability p", "% of pairs", "kept", alt, caption)


def weights(selection: Sequence[dict], groups: Sequence[str]) -> Picture | None:
    """Weights of the kept training pairs."""

    def panel(axis, rows):
        edges, values = np.linspace(0, 1, BINS // 2 + 1), np.array([row["weight"] for row in rows])
        axis.stairs(np.histogram(values, edges)[0] / len(values) * 100, edges, fill=True, color=KEPT)
        return f"mean {values.mean():.2f}"

    rows = [row for row in selection if row["split"] == "train" and row["keep"]]
    alt = "Histograms of the weights of the kept training pairs, per group."
    caption = "Weights of the kept pairs: 1 where the global RM does not disagree, less the more it does."
    return histograms(rows, groups, panel, "weight w", "% of kept pairs", "weights", alt, caption)


def heat_map(report: dict) -> Picture | None:
    """What every group's RM gains or loses on every group's pairs."""
    main, groups = report["paired"]["method"], list(report["bias"].get("global", {}))
    rows = [group for group in groups if group in report["bias"].get(main, {})]
    if len(groups) < 2 or not rows:
        return None
    before = np.array([report["bias"]["global"][groups[0]][other] for other in groups])
    after = np.array([[report["bias"][main][group][other] for other in groups] for group in rows])

    def plot(axes, change):
        axis, most = axes[0], max(float(np.abs(change).max()), 1.0)
        image = axis.imshow(change, cmap="PuOr_r", vmin=-most, vmax=most, aspect="auto")
        axis.set_xticks(range(len(groups)), [shortened(group) for group in groups], rotation=50, ha="right")
        axis.set_yticks(range(len(rows)), [shortened(group) for group in rows])
        axis.set_xlabel("test pairs of")
        axis.set_ylabel("RM of")
        axis.grid(visible=False)
        for (i, j), value in np.ndenumerate(change) if len(groups) <= MANY else ():
            ink = "white" if abs(value) > 0.6 * most else "black"
            axis.text(j, i, f"{round(value):+d}", ha="center", va="center", color=ink, fontsize=9)
        axis.figure.colorbar(image, ax=axis, orientation="horizontal", fraction=0.06, label="points of accuracy")

    alt = f"Heat map: change of accuracy that the {main} RM of each group brings on each group's test pairs, in points."
    caption = f"Accuracy of the {main} RM of one group on the pairs of another, minus that of the global RM, in points."
    return draw("bias", alt, caption, plot, 100 * (after - before), height=1.8 + 0.34 * len(rows))


def trade_off(report: dict) -> Picture | None:
    """Accuracy of every method against its excess bias."""
    names = [name for name in report["methods"] if report["excess_bias"].get(name, {}).get("mean")]
    if not names:
        return None

    def plot(axes, report):
        axis = axes[0]
        for name in names:
            bias, gain = report["excess_bias"][name]["mean"], report["macro"][name]["all"]
            look = colour(list(report["methods"]), name)
            (x, left, right), (y, low, high) = (
                [100 * record[key] for key in ("difference", "low", "high")] for record in (bias, gain)
            )
            axis.plot([left, right], [y, y], color=look["color"], linewidth=1)
            axis.plot([x, x], [low, high], color=look["color"], linewidth=1)
            axis.plot(x, y, linestyle="", label=name, **look)
        axis.axhline(100 * report["macro"]["global"]["all"]["difference"], color="#555555", linestyle="--", linewidth=1)
        axis.set_xlabel("excess bias, points lost on other groups' pairs")
        axis.set_ylabel("accuracy on own pairs, percent")
        legend(axis, 2)

    alt = "Mean accuracy of every method on its own groups' pairs against its excess bias; numbers are in the tables."
    caption = "What methods gain for their own groups and cost the others, with 95 % intervals. Dashed: global RM."
    return draw("trade_off", alt, caption, plot, report, height=2.8 + 0.09 * len(names))


def controls(report: dict) -> Picture | None:
    """How much better each group's own RM is than its controls."""
    tests = report["controls"].get("tests", {})
    names = [name for name in (*report["controls"]["accuracy"], "global") if any(name in own for own in tests.values())]
    if not tests or names == ["global"]:
        return None

    def plot(axes, tests):
        for i, name in enumerate(names):
            offset = 0.7 * ((i + 0.5) / len(names) - 0.5)
            look = {"label": name.replace("_", " "), **colour(["global", *report["controls"]["accuracy"]], name)}
            bars(axes[0], [own.get(name) for own in tests.values()], "difference", offset, **look)
        axes[0].axvline(0, color="#555555", linewidth=1)
        label_rows(axes[0], list(tests))
        axes[0].set_xlabel("own RM minus control, points of accuracy")
        legend(axes[0], 2)

    alt = "Own RM minus each control per group in points of accuracy with 95 % intervals; numbers in the sentences."
    caption = "Right of the line a group's own RM is better on its test pairs. Culture is claimed where it beats both."
    return draw("controls", alt, caption, plot, tests, height=1.1 + 0.13 * (len(names) + 1) * len(tests))


def pooled_bins(records: Sequence[dict]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean confidence and accuracy in percent, and pairs, in the bins of several calibrations together."""
    cells = [[record["bins"][b] for record in records] for b in range(len(records[0]["bins"]))]
    cells = [[cell for cell in own if cell["n"]] for own in cells]
    cells = [own for own in cells if own]
    total = np.array([sum(cell["n"] for cell in own) for own in cells])
    sums = [[sum(cell["n"] * cell[key] for cell in own) for own in cells] for key in ("confidence", "accuracy")]
    return *(100 * np.array(values) / total for values in sums), total


def reliability(report: dict) -> Picture | None:
    """How often RMs are right at each confidence, all groups together."""
    parts = {name: own for name, own in report["calibration"].items() if own}

    def plot(axes, parts):
        for axis, (name, own) in zip(axes, parts.items(), strict=True):
            x, y, total = pooled_bins(list(own.values()))
            axis.plot([50, 100], [50, 100], color="#888888", linestyle=":")
            look = colour(list(report["methods"]), name)
            axis.plot(x, y, color=look["color"], linewidth=1)
            axis.scatter(x, y, s=80 * np.sqrt(total / total.max()), color=look["color"], marker=look["marker"])
            axis.set_title(name, loc="left")
        axes[0].set_ylabel("right, percent")
        for axis in axes[-2:]:
            axis.set_xlabel("confidence, percent")

    if not parts:
        return None
    alt = "Reliability: share of pairs ranked right against the RM's confidence, per method; errors are in the table."
    caption = "Calibrated RMs lie on the dotted line, over-confident ones below. Larger marks stand for more pairs."
    size = {"height": 1.6 if len(parts) > 1 else 2.6, "columns": min(2, len(parts)), "panels": len(parts)}
    return draw("reliability", alt, caption, plot, parts, **size)


CURVES = ("validation_accuracy", "validation_agreed", "validation_edited")


def training(report: dict, curves: dict[str, dict[str, list[tuple[int, float]]]]) -> Picture | None:
    """Accuracy on held-out training users while RMs are trained.

    Args:
      curves: of CURVES -> method -> (step, mean over groups).
    """
    parts = {name: own for name, own in curves.items() if own}

    def plot(axes, parts):
        for axis, (name, own) in zip(axes, parts.items(), strict=True):
            for method, points in own.items():
                look = colour(list(report["methods"]), method)
                axis.plot(*np.array(points).T * [[1], [100]], label=method, linewidth=1.2, **look)
            kind = name.removeprefix("validation_")
            axis.set_title("all pairs" if kind == "accuracy" else f"{kind} pairs", loc="left")
            axis.set_ylabel("accuracy, percent")
        axes[-1].set_xlabel("step")
        legend(axes[0])

    if not parts:
        return None
    alt = "Accuracy on the pairs of held-out training users against training steps, mean over groups, per method."
    caption = "Accuracy on held-out training users while training, mean over groups; of these steps one is kept."
    return draw("training", alt, caption, plot, parts, height=2.3, panels=len(parts), share_y=False)
