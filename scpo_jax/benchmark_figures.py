"""Figures of `reports/benchmark.json`: accuracy against annotated and against trained pairs."""

from collections.abc import Sequence

from scpo_jax.drawing import Picture, colour, draw, legend

SELECTIONS = ("full", "scpo", "random_subset", "uncertain", "uncertain_weighted", "trim", "trim_weighted")
FILTERS = ("full", "scpo", "filter_only", "weight_only", "inverse_weight", "random_subset")
PURCHASES = ("full", "propose", "random_annotation")
LINES = "Dashed: full on all data; dotted: global RM; band: 95 % interval of full."


def pictures(found: dict, rule: str) -> list[Picture]:
    """The curves under one rule for the optimiser, means over groups and seeds."""
    methods, start = list(found["methods"]), f"Equal {rule}: accuracy on"
    drawn = [
        curves(found, rule, f"benchmark_{rule}", SELECTIONS, "annotated", ["all"],
               f"{start} all test pairs against the pairs whose label is needed. {LINES}"),
        curves(found, rule, f"benchmark_{rule}_subsets", SELECTIONS, "annotated", ["agreed", "edited"],
               f"{start} agreed pairs (the global RM was right) and on edited pairs (it was wrong)."),
        curves(found, rule, f"benchmark_{rule}_trained", FILTERS, "trained", ["all"],
               f"{start} all test pairs against the pairs trained on. {LINES}"),
    ]  # fmt: skip
    if set(PURCHASES) <= set(methods):
        caption = f"{start} all test pairs: all labels of random users, proposed pairs, random pairs. {LINES}"
        drawn.append(curves(found, rule, f"benchmark_{rule}_bought", PURCHASES, "annotated", ["all"], caption))
    return drawn


def curves(
    found: dict, rule: str, name: str, methods: Sequence[str], axis: str, parts: Sequence[str], caption: str
) -> Picture:
    """Accuracy of `methods` against the pairs of `axis`, a panel for each subset of the test pairs in `parts`."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    names = ["global", *found["methods"]]

    def plot(axes, found):
        for panel, which in zip(axes, parts, strict=True):
            for method in (method for method in methods if method in names):
                points = [p for p in found["curves"][rule][method] if p[axis] and p[which]["accuracy"] is not None]
                x, look = [point[axis] for point in points], colour(names, method)
                y, low, high = ([100 * point[which][key] for point in points] for key in ("accuracy", "low", "high"))
                panel.plot(x, y, label=method, linewidth=1.3, markersize=5, **look)
                if method == "full":
                    panel.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)
            if which == "all":
                panel.axhline(100 * found["target"][rule]["accuracy"], color="#555555", linestyle="--", linewidth=1)
                panel.axhline(100 * found["global"]["all"]["accuracy"], color="#000000", linestyle=":", linewidth=1)
            panel.set_xscale("log")
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.xaxis.set_minor_locator(NullLocator())
            panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            panel.set_title(f"{which} pairs", loc="left")
            panel.set_ylabel("accuracy, percent")
        axes[-1].set_xlabel(f"{axis} pairs")
        legend(axes[0])

    alt = f"Accuracy against {axis} pairs, a line for each method, at equal {rule}; the numbers are in the tables."
    return draw(name, alt, caption, plot, found, height=3.0 if len(parts) == 1 else 2.3, panels=len(parts),
                share_y=False)  # fmt: skip
