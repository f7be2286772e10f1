"""How figures are drawn: narrow, to be readable on a phone, and alike each time (no dates, no random names)."""

import io
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

METHOD_COLOURS = (  # after Okabe and Ito (2008), as dark as needed for a contrast of 3; black is the global RM
    "#000000", "#d55e00", "#0072b2", "#009e73", "#aa4499", "#997700", "#555555", "#8b1a1a", "#332288", "#5d7f00",
)  # fmt: skip
MARKERS = "os^Dv<>Pp*hX"
WIDTH = 4.6  # inches
OTHER_SCRIPTS = ("Noto Sans CJK JP", "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari", "Noto Sans Thai")


class Picture(NamedTuple):
    """A figure in the two forms that are written."""

    name: str
    alt: str  # what it shows, for those who do not see it
    caption: str
    svg: bytes
    png: bytes


def draw(
    name: str, alt: str, caption: str, plot, *data, height: float, columns: int = 1, panels: int = 1, share_y=True
) -> Picture:
    """Draws one figure: `plot(axes, *data)` fills a list of `panels` axes in `columns`, `height` inches each row."""
    from matplotlib import font_manager, rc_context
    from matplotlib.figure import Figure

    installed = {font.name for font in font_manager.fontManager.ttflist}
    style = {
        "font.family": ["DejaVu Sans", *(font for font in OTHER_SCRIPTS if font in installed)],
        "font.size": 10, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
        "grid.color": "#dddddd", "axes.axisbelow": True, "legend.frameon": False, "legend.fontsize": 9,
        "text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "scpo",
    }  # fmt: skip
    rows = -(-panels // columns)
    with rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(WIDTH, min(height * rows, 60)), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=share_y).ravel()
        for spare in axes[panels:]:
            spare.axis("off")
        for axis in axes[max(0, panels - columns) : panels]:
            axis.tick_params(labelbottom=True)
        plot(list(axes[:panels]), *data)
        written = []
        for form, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 160})):
            file = io.BytesIO()
            figure.savefig(file, format=form, **options)
            written.append(file.getvalue())
    return Picture(name, alt, caption, *written)


def colour(methods: Sequence[str], method: str) -> dict:
    """Colour and marker of a method, the same in all figures."""
    place = list(methods).index(method)
    return {"color": METHOD_COLOURS[place % len(METHOD_COLOURS)], "marker": MARKERS[place % len(MARKERS)]}


def label_rows(axis, names: Sequence[str]) -> None:
    """Names from top to bottom at the y axis."""
    axis.set_yticks(range(len(names)), [shortened(name) for name in names])
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)


def bars(axis, records: Sequence[dict | None], key: str, offset: float, **look) -> None:
    """A point with its 95 % interval in every row that has one, in percent."""
    known = [(place, record) for place, record in enumerate(records) if record and record[key] is not None]
    if not known:
        return
    y = np.array([place for place, _ in known]) + offset
    mean, low, high = (100 * np.array([record[name] for _, record in known]) for name in (key, "low", "high"))
    axis.hlines(y, low, high, color=look["color"], linewidth=1.4)
    axis.plot(mean, y, linestyle="", markersize=5, **look)


def legend(axis, columns: int = 3) -> None:
    """The legend of what an axis shows, above the whole figure; none if nothing has a label."""
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        axis.figure.legend(handles, labels, loc="outside upper left", ncols=columns, handletextpad=0.3)


def shortened(name: str, most: int = 18) -> str:
    """A name that fits beside a plot."""
    return name if len(name) <= most else f"{name[: most - 1]}…"
