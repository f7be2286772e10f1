"""Pairs nearest to five probabilities and weights: which ones, in JSON and in LaTeX."""

import json

import pyarrow as pa

from scpo_jax import examples
from tests.run_helpers import GROUPS


def pair(number: int, p: float, weight: float, group="Chile", split="train") -> tuple[dict, dict]:
    """A row of the table and its row of the selection; kept below 0.7."""
    names = {"pair_id": f"pair {number}", "group": group, "split": split}
    row = names | {"prompt": "100 % of\n{what}?", "chosen": f"yes_{number}", "rejected": "no & " + "never " * 60}
    chosen = names | {"p_global": p, "weight": weight, "keep": p < 0.7, "ref_chosen": 1.5, "ref_rejected": -0.25}
    return row | {"score_chosen": 80.0, "score_rejected": None}, chosen


ROWS, SELECTION = zip(
    pair(1, 0.05, 0.1), pair(2, 0.3, 0.4), pair(3, 0.6, 1.0), pair(4, 0.72, 1.0), pair(5, 0.99, 1.0),
    pair(6, 0.0, 0.0, split="test"), pair(7, 0.5, 1.0, group="Israel"), strict=True,
)  # fmt: skip


def numbers(rows: list[dict]) -> list[int]:
    return [int(row["pair_id"].split()[1]) for row in rows]


def test_the_nearest_pairs():
    found = examples.collect(ROWS, SELECTION)
    assert numbers(found["Chile"]["retained"]) == [1, 2, 3, 3, 3]
    assert numbers(found["Chile"]["filtered"]) == [4, 4, 4, 4, 5]
    assert numbers(found["Chile"]["weights"]) == [1, 1, 2, 3, 3]
    assert numbers(found["Israel"]["retained"]) == [7] * 5 and found["Israel"]["filtered"] == []
    first = found["Chile"]["retained"][1]
    assert first["place"] == 0.25 and first["p_global"] == 0.3 and first["chosen"] == "yes_2"
    assert (first["score_chosen"], first["score_rejected"]) == (80.0, None)
    assert examples.collect(ROWS[::-1], SELECTION[::-1])["Chile"] == found["Chile"]


def test_latex():
    text = examples.latex(examples.collect(ROWS, SELECTION))
    assert text.count(r"\begin{tabularx}") == text.count(r"\end{tabularx}") == 6
    assert r"\emph{100 \% of \{what\}?}" in text and r"0.25 & 0.30 & 0.40 & yes\_2 & 1.50 & 80 & no \& never" in text
    assert "never n…" in text and r"& -0.25 & -- \\" in text
    assert examples.escape("a\\b~c^d<e>$#") == (
        r"a\textbackslash{}b\textasciitilde{}c\textasciicircum{}d\textless{}e\textgreater{}\$\#"
    )


def test_a_run_has_examples(finished):
    reports = finished.workdir / "reports"
    found = json.loads((reports / "examples.json").read_text())
    assert set(found) == set(GROUPS) and "日本" in (reports / "examples.tex").read_text()
    for lists in found.values():
        assert [row["place"] for row in lists["weights"]] == [0, 0.25, 0.5, 0.75, 1]
        for row in lists["retained"] + lists["filtered"]:
            assert row["split"] == "train" and row["prompt"] and row["keep"] == (row["p_global"] < row["tau"])


def test_scores_of_annotators_are_kept(tmp_path):
    from scpo_jax.data import preferences, prism, simulated

    simulated.write(tmp_path, users_per_group=5, cultural_strength=1.0, extreme_share=0.0, seed=0)
    source = prism.read(tmp_path)
    limits = {"min_users": 0, "test_size": 0.2, "split_seed": 0, "max_dropped": 0.2}
    table = preferences.build(source, groups=("Chile",), **limits)[0]
    assert all(row["score_chosen"] > row["score_rejected"] for row in table.to_pylist())
    assert table["score_chosen"].type == pa.float64()
