"""Pairs to look at: what the filter retains and drops, and what the weights are, at five places (paper, tables 13, 14).

Written as JSON and as LaTeX; texts of other scripts than Latin need XeLaTeX or LuaLaTeX.
"""

from collections.abc import Sequence

from scpo_jax import storage
from scpo_jax.workdir import Workdir

PLACES = (0.0, 0.25, 0.5, 0.75, 1.0)
SHOWN = ("prompt", "chosen", "rejected", "score_chosen", "score_rejected")  # of a pair; scores are the annotator's
CHARACTERS = 240  # of a text in LaTeX at most
SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def nearest(rows: Sequence[dict], key: str) -> list[dict]:
    """For each of PLACES the row whose `key` is nearest, with "place"; of equally near ones the first by pair_id."""
    if not rows:
        return []
    ordered = sorted(rows, key=lambda row: row["pair_id"])
    return [{"place": place} | min(ordered, key=lambda row: abs(row[key] - place)) for place in PLACES]


def collect(rows: Sequence[dict], selection: Sequence[dict]) -> dict[str, dict[str, list[dict]]]:
    """group -> "retained", "filtered" (nearest to each place by p_global) and "weights" -> training pairs.

    `rows` are of the table of preferences, `selection` the same pairs in the selection. A list is empty if a group has
    no such pair; one pair can be the nearest to several places.
    """
    shown = {row["pair_id"]: {name: row.get(name) for name in SHOWN} for row in rows}
    groups: dict[str, list[dict]] = {}
    for row in selection:
        if row["split"] == "train":
            groups.setdefault(row["group"], []).append(row)
    found = {}
    for group, own in groups.items():
        lists = {
            "retained": nearest([row for row in own if row["keep"]], "p_global"),
            "filtered": nearest([row for row in own if not row["keep"]], "p_global"),
            "weights": nearest(own, "weight"),
        }
        found[group] = {name: [row | shown[row["pair_id"]] for row in chosen] for name, chosen in lists.items()}
    return found


def latex(examples: dict[str, dict[str, list[dict]]]) -> str:
    """A table for each group and list; the document needs the packages booktabs and tabularx."""
    captions = {
        "retained": "retained pairs nearest to a global probability",
        "filtered": "filtered pairs nearest to a global probability",
        "weights": "pairs nearest to a weight",
    }
    lines = ["% needs \\usepackage{booktabs,tabularx}"]
    for group, lists in examples.items():
        for name, rows in lists.items():
            lines += [r"\begin{table}", rf"\caption{{{escape(group)}: {captions[name]}}}", r"\scriptsize"]
            lines += [r"\begin{tabularx}{\linewidth}{rrrXrrXrr}", r"\toprule"]
            lines += [r"near & $p$ & $w$ & chosen & $r^+$ & score & rejected & $r^-$ & score \\", r"\midrule"]
            for row in rows:
                lines += [rf"\multicolumn{{9}}{{p{{0.95\linewidth}}}}{{\emph{{{escape(row['prompt'])}}}}} \\"]
                lines += [" & ".join(_cells(row)) + r" \\ \addlinespace"]
            lines += [r"\bottomrule", r"\end{tabularx}", r"\end{table}", ""]
    return "\n".join(lines)


def _cells(row: dict) -> list[str]:
    cells = [f"{row['place']:g}", f"{row['p_global']:.2f}", f"{row['weight']:.2f}"]
    for side in ("chosen", "rejected"):
        given = row[f"score_{side}"]
        cells += [escape(row[side]), f"{row[f'ref_{side}']:.2f}", "--" if given is None else f"{given:g}"]
    return cells


def escape(text: str) -> str:
    """A text for LaTeX, in one line and shortened."""
    line = " ".join(text.split())
    short = line if len(line) <= CHARACTERS else line[:CHARACTERS].rstrip() + "…"
    return "".join(SPECIAL.get(letter, letter) for letter in short)


def write(workdir: Workdir, rows: Sequence[dict], selection: Sequence[dict]) -> None:
    """Writes `reports/examples.json` and `reports/examples.tex`."""
    found = collect(rows, selection)
    workdir.write_json(workdir.reports / "examples.json", found)
    storage.write(workdir.reports / "examples.tex", latex(found))
